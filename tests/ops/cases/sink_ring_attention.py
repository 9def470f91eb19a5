"""Cases of ``sink_ring_attention``, for the tests of all its backends."""

from __future__ import annotations

import torch

from tests.kit.compare import assert_close
from tests.ops import calls

# In a cache of 4 rows, 2 banks and 100 slots.
HUNDRED_SLOTS = {
    "lanes_at_different_lengths": {"n_valid": (63, 100, 1)},
    "whole_tiles_only": {"n_valid": (32, 64, 96)},
    "first_slot_only": {"n_valid": (1, 1, 1)},
    "every_slot": {"n_valid": (100, 100, 100)},
    "two_banks_of_one_row": {"rows": (2, 2), "banks": (1, 0), "n_valid": (17, 80)},
    "two_lanes_read_one_row": {"rows": (1, 1), "banks": (1, 1), "n_valid": (33, 33)},
    "one_query": {"tokens": 1, "n_valid": (5, 50, 95)},
    "one_lane_one_head": {"rows": (3,), "banks": (0,), "n_valid": (99,), "heads": 1, "tokens": 33},
}
# A device integer out of range, of the second of three lanes in that cache.
WRONG = [
    {"row_index": (2, 2**31 - 1, 3)},
    {"row_index": (2, -1, 3)},
    {"row_index": (2, 4, 3)},
    {"bank_index": (1, 2, 1)},
    {"bank_index": (1, -(2**31), 1)},
    {"n_valid": (63, 0, 1)},
    {"n_valid": (63, -5, 1)},
    {"n_valid": (63, 101, 1)},
    {"n_valid": (63, 2**31 - 1, 1)},
]

# channel 0 of all keys, and of queries 1 and 3; the largest score of a query and what is not finite follow
BROKEN = {
    "an_infinite_query": (1.0, torch.inf),
    "an_infinite_query_against_every_sign": (None, -torch.inf),
    "a_query_that_no_key_answers": (1.0, -torch.inf),
    "an_infinite_key": ((2, torch.inf), None),
    "infinite_keys_of_both_signs": ((2, torch.inf, -torch.inf), None),
    "a_key_without_a_number": ((2, torch.nan), None),
    "one_without_a_number_and_one_infinite": ((2, torch.nan, torch.inf), None),
    "a_query_without_a_number": (None, torch.nan),
}


def spoilt(name: str, **shape) -> calls.Call:
    """One lane; channel 0 of keys and queries as ``BROKEN`` says."""
    call, (keys, query) = calls.sink_ring_attention((0,), (0,), (70,), heads=2, cache=(1, 1, 75), **shape), BROKEN[name]
    if isinstance(keys, tuple):
        call["k_cache"][0, 0, keys[0] : keys[0] + len(keys) - 1, :, 0] = torch.tensor(keys[1:])[:, None]
    elif keys is not None:
        call["k_cache"][0, 0, :70, :, 0] = keys
    if query is not None:
        call["q"][0, [1, 3], :, 0] = query
    return call


def assert_same_kind(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    """NaN where NaN is wanted, infinities of the same sign, and otherwise few roundings of fp32 or of the dtype."""
    assert torch.equal(got.isnan(), want.isnan()), f"{what}: NaN at {got.isnan().nonzero().tolist()}"
    infinite = want.isinf()
    assert torch.equal(got.double()[infinite], want.double()[infinite]), f"{what}: infinities"
    finite, step = want.isfinite(), {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[got.dtype]
    assert_close(got[finite], want[finite], rtol=step, atol=step, reason="softmax of 70 scores below 5, few roundings")
