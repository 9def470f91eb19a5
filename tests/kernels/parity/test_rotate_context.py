"""``rotate_context`` in Triton against the reference: what moves, and that nothing else does, bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rest_fast.kernels import rotate_context as package
from tests.kernels import kit
from tests.kernels.guard import FAR, surrounded
from tests.kit.compare import assert_same_bits
from tests.ops import calls
from tests.ops.cases.rotate_context import CASES, moving, problems

NAME = "rotate_context"
SIZES = CASES | {
    "whole_blocks_skipped": {"sink": 1, "chunk": 8, "skip": (1, 9, 3), "cache": (2, 5, 1, 17)},
    "demo_width": {"heads": 3, "dim": 64, "rows": (1,), "skip": (2,), "enabled": (1,), "cache": (1, 2, 2, 9)},
    "width_2048": {"heads": 32, "dim": 64, "rows": (1,), "skip": (2,), "enabled": (1,), "cache": (1, 2, 1, 9)},
}
if kit.ON_GPU:
    SIZES["rest_512"] = {
        **{"heads": 32, "dim": 64, "cache": (28, 3, 1, 1792), "sink": 256, "chunk": 768},
        **{"rows": (2, 0), "skip": (256, 1024), "enabled": (1, 1)},
    }


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_parity_and_nothing_else_moves(shape, dtype):
    call = calls.rotate_context(**shape, dtype=dtype)
    still = ~moving(call)
    call["k_cache"][:, :, :, : call["sink"]] = torch.nan  # must come back with the bits they had
    got = kit.check_parity(NAME, call, fp32=3 * 2.0**-24, reason="two products and a sum")
    assert_same_bits(got["k_cache"][still], call["k_cache"][still], "whatever does not move")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_touches_its_pair_alone(bad, dtype):
    """In every channel in turn, one key each: NaN and infinities are where the reference has them."""
    call = calls.rotate_context(rows=(1,), skip=(0,), enabled=(1,), sink=0, chunk=1, cache=(1, 2, 1, 21), dtype=dtype)
    for channel in range(20):
        call["k_cache"][0, 1, 0, 1 + channel].view(-1)[channel] = bad
    got, want = (kit.run(NAME, call, backend)["k_cache"] for backend in ("triton", "reference"))
    assert_same_bits(got[~moving(call)], want[~moving(call)], "whatever does not move")
    torch.testing.assert_close(got.nan_to_num(77), want.nan_to_num(77), rtol=2.0**-7, atol=2.0**-20)


@settings(max_examples=100 if kit.ON_GPU else 15, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_row_and_slot(call):
    still = ~moving(call)
    got = kit.check_parity(NAME, call, fp32=3 * 2.0**-24, reason="two products and a sum")
    assert_same_bits(got["k_cache"][still], call["k_cache"][still], "whatever does not move")


@pytest.mark.filterwarnings("ignore:invalid value")
def test_all_bits_of_what_stays():
    """The pairs that stay pass through registers: signalling NaN, infinities and -0 keep every bit."""
    call = calls.rotate_context(dtype=torch.float16, cache=(1, 4, 1, 11))
    bits = torch.arange(call["k_cache"].numel()) * 7919 % 65536
    call["k_cache"] = bits.to(torch.int32).to(torch.int16).view(torch.float16).view(call["k_cache"].shape)
    still = ~moving(call)
    got = kit.run(NAME, call, "triton")
    assert_same_bits(got["k_cache"][still], call["k_cache"][still], "whatever does not move")


def test_lanes_that_are_not_enabled_may_share_a_row():
    call = calls.rotate_context(rows=(4, 4, 1), skip=(2, 2, 8), enabled=(0, 0, 1))
    got = kit.run(NAME, call, "triton")
    assert_same_bits(got["k_cache"][:, 4], call["k_cache"][:, 4], "the scratch row")
    assert (got["k_cache"][:, 1] != call["k_cache"][:, 1]).any()


def test_nan_of_one_row_stays_there():
    call = calls.rotate_context()
    want = kit.run(NAME, call, "triton")
    call["k_cache"][:, 3] = torch.nan
    got = kit.run(NAME, call, "triton")
    others = [0, 1, 2, 4]
    assert_same_bits(got["k_cache"][:, others], want["k_cache"][:, others], "the other rows")


@pytest.mark.parametrize("argument, limit", [("row_index", 5), ("skip_slot", 9)])
def test_a_lane_out_of_range_writes_nothing(argument, limit):
    """The kernel called past the host's checks: lane 0 asks for the impossible, lane 2 moves row 1."""
    shape = {"cache": (1, 5, 1, 11)}
    want = kit.run(NAME, calls.rotate_context(**shape), "triton")
    for value in (limit, -1, FAR, -FAR - 1):
        call = calls.rotate_context(**shape)
        call[argument][0] = value
        copy, memory = surrounded(call, "k_cache")
        expected = memory["k_cache"].cpu().clone()
        expected[1][:, 1] = want["k_cache"][:, 1]
        args, kwargs = calls.split(NAME, copy)
        package.launch(*args, **kwargs)
        assert_same_bits(memory["k_cache"].cpu(), expected, f"{argument} = {value}")
