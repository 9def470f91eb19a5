"""``rotate_context`` in CUDA, on the CPU, against the reference: what moves, and that nothing else does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rest_fast.ops import OpError
from tests.cuda_shim import built
from tests.kernels import kit
from tests.kernels.guard import FAR
from tests.kit.compare import assert_same_bits
from tests.ops import calls
from tests.ops.cases.rotate_context import CASES, moving, problems

NAME = "rotate_context"
FP32, WHY = 3 * 2.0**-24, "two products and a sum"
SIZES = CASES | {
    "demo_width": {"heads": 3, "dim": 64, "rows": (1,), "skip": (2,), "enabled": (1,), "cache": (1, 2, 2, 9)},
    "more_pairs_than_threads": {
        **{"heads": 50, "dim": 64, "rows": (1,), "skip": (2,), "enabled": (1,)},
        "cache": (1, 2, 1, 6),
    },
    "nothing_turns": {"heads": 1, "dim": 4, "cache": (1, 5, 1, 11)},
}


def parity(call: calls.Call) -> calls.Call:
    got = built.run(NAME, call)
    kit.compare(NAME, call, got, fp32=FP32, reason=WHY)
    still = ~moving(call)
    assert_same_bits(got["k_cache"][still], call["k_cache"][still], "whatever does not move")
    return got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_parity_and_nothing_else_moves(shape, dtype):
    call = calls.rotate_context(**shape, dtype=dtype)
    call["k_cache"][:, :, :, : call["sink"]] = torch.nan  # must come back with the bits they had
    parity(call)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_row_and_slot(call):
    parity(call)


def test_keys_that_are_not_aligned():
    """A cache that begins between two pairs: two accesses a pair, with the same bits."""
    call = calls.rotate_context()
    want = built.run(NAME, call)["k_cache"]
    memory = torch.full((want.numel() + 2,), 77.0)
    cache = memory[1:-1].view(want.shape).copy_(call["k_cache"])
    built.run(NAME, call | {"k_cache": cache}, in_place=True)
    assert_same_bits(cache, want, "k_cache")
    assert memory[0] == memory[-1] == 77


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_touches_its_pair_alone(bad):
    """In every channel in turn, one key each: NaN and infinities are where the reference has them."""
    call = calls.rotate_context(rows=(1,), skip=(0,), enabled=(1,), sink=0, chunk=1, cache=(1, 2, 1, 21))
    for channel in range(20):
        call["k_cache"][0, 1, 0, 1 + channel].view(-1)[channel] = bad
    got, want = built.run(NAME, call)["k_cache"], kit.run(NAME, call, "reference")["k_cache"]
    assert_same_bits(got[~moving(call)], want[~moving(call)], "whatever does not move")
    torch.testing.assert_close(got.nan_to_num(77), want.nan_to_num(77), rtol=2.0**-20, atol=2.0**-20)


def test_lanes_that_are_not_enabled_may_share_a_row():
    call = calls.rotate_context(rows=(4, 4, 1), skip=(2, 2, 8), enabled=(0, 0, 1))
    got = built.run(NAME, call)
    assert_same_bits(got["k_cache"][:, 4], call["k_cache"][:, 4], "the scratch row")
    assert (got["k_cache"][:, 1] != call["k_cache"][:, 1]).any()


@pytest.mark.parametrize("argument, limit", [("row_index", 5), ("skip_slot", 9)])
def test_a_lane_out_of_range_writes_nothing(argument, limit):
    """The kernel called past the host's checks: lane 0 asks for the impossible, lane 2 moves row 1."""
    shape = {"cache": (1, 5, 1, 11)}
    want = built.run(NAME, calls.rotate_context(**shape))["k_cache"]
    for value in (limit, -1, FAR, -FAR - 1):
        call = calls.rotate_context(**shape)
        call[argument][0] = value
        got = built.run(NAME, call)["k_cache"]
        assert_same_bits(got[:, 3], call["k_cache"][:, 3], "the row of lane 0")
        assert_same_bits(got[:, 1], want[:, 1], "the row of lane 2")


def test_refusals():
    with pytest.raises(OpError, match="bad shape"):
        built.run(NAME, calls.rotate_context(), layers=1 << 16)
    call = calls.rotate_context()
    with pytest.raises(OpError, match="not a multiple of a channel pair"):
        built.run(NAME, call, shift=call["shift"].data_ptr() + 4)
