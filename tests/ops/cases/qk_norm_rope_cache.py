"""Cases of ``qk_norm_rope_cache``, for the tests of all its backends."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.ops import calls

SHAPES = {
    "toy": {"heads": 2, "dim": 6, "frames": 1, "grid": (1, 1)},
    "one_still_pair": {"heads": 2, "dim": 10, "frames": 2, "grid": (2, 3)},
    "two_still_pairs": {"heads": 1, "dim": 16, "frames": 3, "grid": (1, 2)},
    "no_still_pair": {"heads": 3, "dim": 4, "frames": 1, "grid": (3, 1)},
    "by_head": {"heads": 3, "dim": 16, "frames": 2, "grid": (2, 3), "rope": "by_head", "cache": (4, 2, 17)},
    "one_pair_a_head": {"heads": 2, "dim": 2, "frames": 1, "grid": (2, 1), "rope": "by_head"},
}


def written_slots(call: calls.Call) -> torch.Tensor:
    """bool [rows, banks, slots]: what the call may write."""
    mask = torch.zeros(call["k_cache"].shape[:3], dtype=torch.bool)
    for lane, row in enumerate(call["row_index"].tolist()):
        slot = int(call["write_slot"][lane])
        mask[row, int(call["bank_index"][lane]), slot : slot + call["qkv"].shape[1]] = True
    return mask


# Two roundings of the statistics' reciprocal root, at most eight of the sum of squares (halved by the root), two
# products, and two products and a sum in the rotation: under 12 units of 2^-24 of a pair, |pair| <= 1.5 max|result|.
FP32 = 18 * 2.0**-24


SIZES = SHAPES | {
    "demo": {"heads": 3, "dim": 64, "frames": 3, "grid": (4, 4), "cache": (4, 2, 112), "slots": (64, 16)},
    "wide": {"heads": 32, "dim": 64, "frames": 1, "grid": (1, 3)},
    "whole_stack": {"heads": 128, "dim": 64, "frames": 1, "grid": (1, 3)},
    "flashhead": {"heads": 12, "dim": 128, "frames": 2, "grid": (1, 2), "rope": "by_head"},
    "beyond_the_stack": {"heads": 129, "dim": 64, "frames": 1, "grid": (1, 3)},
}


@st.composite
def problems(draw):
    lanes = draw(st.integers(1, 4))
    frames, h, w = (draw(st.integers(1, 3)) for _ in range(3))
    rows, banks = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    lanes = min(lanes, rows * banks)
    slots = frames * h * w + draw(st.integers(0, 7))
    places = draw(st.permutations(range(rows * banks)))[:lanes]

    def each(high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(0, high), min_size=lanes, max_size=lanes)))

    return calls.qk_norm_rope_cache(
        heads=draw(st.integers(1, 5)),
        dim=2 * draw(st.integers(1, 12)),
        frames=frames,
        grid=(h, w),
        rows=tuple(p // banks for p in places),
        banks=tuple(p % banks for p in places),
        slots=each(slots - frames * h * w),
        base=each(9),
        cache=(rows, banks, slots),
        rope=draw(st.sampled_from(["interleaved", "by_head"])),
        seed=draw(st.integers(0, 99)),
    )
