"""Cases of ``rotate_context``, for the tests of all its backends."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.ops import calls

CASES = {
    "mixed": {},
    "no_sink": {"sink": 0, "skip": (0, 3, 8)},
    "one_lane": {"rows": (4,), "skip": (5,), "enabled": (1,)},
    "all_disabled": {"enabled": (0, 0, 0)},
    "no_still_pair": {"heads": 3, "dim": 4, "cache": (1, 5, 1, 11)},
    "skip_leaves_no_context": {"sink": 0, "chunk": 11, "skip": (0, 0, 0)},
}


def moving(call: calls.Call) -> torch.Tensor:
    """bool, the shape of the cache: the time pairs of the slots that move."""
    mask = torch.zeros(call["k_cache"].shape, dtype=torch.bool).flatten(4)
    still = mask.shape[-1] // 2 - 3 * (mask.shape[-1] // 6)
    pairs = torch.arange(mask.shape[-1] // 2) - still
    time = ((pairs >= 0) & (pairs % 3 == 0)).repeat_interleave(2)
    for row, skip, enabled in zip(*(call[n].tolist() for n in ("row_index", "skip_slot", "enabled"))):
        for slot in range(call["sink"], mask.shape[3]):
            if enabled and not skip <= slot < skip + call["chunk"]:
                mask[:, row, :, slot] = time
    return mask.view(call["k_cache"].shape)


@st.composite
def problems(draw):
    layers, rows, banks, slots = (draw(st.integers(1, n)) for n in (3, 5, 3, 12))
    chunk = draw(st.integers(1, slots))
    sink = draw(st.integers(0, slots - chunk))
    lanes = draw(st.integers(1, rows))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=lanes, max_size=lanes)))

    return calls.rotate_context(
        rows=tuple(draw(st.permutations(range(rows)))[:lanes]),
        skip=each(sink, slots - chunk),
        enabled=each(0, 1),
        sink=sink,
        chunk=chunk,
        heads=draw(st.integers(1, 5)),
        dim=2 * draw(st.integers(1, 20)),
        cache=(layers, rows, banks, slots),
        seed=draw(st.integers(0, 99)),
    )
