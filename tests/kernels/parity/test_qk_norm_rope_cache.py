"""``qk_norm_rope_cache`` in Triton against the reference: phases, rows and banks, odd widths, indices out of range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rest_fast.kernels import qk_norm_rope_cache as package
from tests.kernels import kit
from tests.kernels.guard import FAR, surrounded
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.qk_norm_rope_cache import SHAPES, problems, written_slots

NAME = "qk_norm_rope_cache"

# Three units of 2^-24 for the device's reciprocal root, four of the sum of squares (halved by the root), two products,
# and two products and a sum in the rotation: under 16 units of a pair, |pair| <= 1.5 max|result|.
FP32, WHY = 24 * 2.0**-24, "16 fp32 roundings of a pair"

SIZES = SHAPES | {
    "phases": {"rows": (3, 0, 2), "banks": (0, 1, 1), "slots": (8, 0, 3), "base": (0, 4, 2)},
    "width_42": {"heads": 3, "dim": 14, "frames": 1, "grid": (3, 2), "slots": (0, 14)},
    "demo": {"heads": 3, "dim": 64, "frames": 3, "grid": (2, 2), "cache": (4, 2, 28), "slots": (16, 4)},
    "width_2048": {"heads": 32, "dim": 64, "frames": 1, "grid": (1, 3)},
}
if kit.ON_GPU:
    SIZES["rest_512"] = {
        **{"heads": 32, "dim": 64, "frames": 3, "grid": (16, 16)},
        **{"cache": (4, 1, 1792), "banks": (0, 0), "slots": (256, 1024), "base": (3, 0)},
    }


def problem(**shape) -> calls.Call:
    """A call whose written slots hold NaN: every one of them must be overwritten."""
    call = calls.qk_norm_rope_cache(**shape)
    for name in ("k_cache", "v_cache"):
        call[name][written_slots(call)] = torch.nan
    return call


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_parity_and_nothing_else_is_written(shape, dtype):
    call = problem(**shape, dtype=dtype)
    got = kit.check_parity(NAME, call, fp32=FP32, reason=WHY)
    mask = written_slots(call)
    assert_same_bits(got["v_cache"], kit.run(NAME, call, "reference")["v_cache"], "values, which are copied")
    assert_same_bits(got["k_cache"][~mask], call["k_cache"][~mask], "keys outside the written slots")


@settings(max_examples=200 if kit.ON_GPU else 12, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_row_and_slot(call):
    got, want = kit.run(NAME, call, "triton"), kit.run(NAME, call, "reference")
    for name in ("q_out", "k_cache"):
        # Of a sample this small the largest result may come from a small pair: bound it by the input as well.
        assert_close(got[name], want[name], atol=FP32 * (float(want[name].abs().max()) + 1), reason=WHY)
    mask = written_slots(call)
    assert_same_bits(got["k_cache"][~mask], call["k_cache"][~mask], "keys outside the written slots")
    assert_same_bits(got["v_cache"], want["v_cache"], "values, which are copied")


def test_nan_of_one_lane_stays_there():
    call = problem()
    want = kit.run(NAME, call, "triton")
    call["qkv"][0] = torch.nan
    got = kit.run(NAME, call, "triton")
    assert got["q_out"][0].isnan().all()
    assert_same_bits(got["q_out"][1], want["q_out"][1], "queries of the other lane")
    other = want["k_cache"][0], got["k_cache"][0]  # lane 1 writes row 0
    assert_same_bits(other[1], other[0], "keys of the other lane")


def test_lanes_do_not_depend_on_their_order():
    shape = SIZES["phases"] | {"frames": 1}
    call, order = problem(**shape), [2, 0, 1]
    per_lane = ("qkv", "q_out", "row_index", "bank_index", "write_slot", "base")
    shuffled = call | {name: call[name][order].contiguous() for name in per_lane}
    want, got = kit.run(NAME, call, "triton"), kit.run(NAME, shuffled, "triton")
    assert_same_bits(got["q_out"], want["q_out"][order], "queries")
    assert_same_bits(got["k_cache"], want["k_cache"], "keys")


@pytest.mark.parametrize("argument", ["row_index", "bank_index", "write_slot", "base"])
def test_a_lane_out_of_range_writes_nothing(argument):
    """The kernel called past the host's checks: lane 1 asks for the impossible, lane 0 does its work."""
    shape = {"frames": 1, "grid": (1, 2), "cache": (3, 2, 7), "slots": (1, 5)}
    limit = {"row_index": 3, "bank_index": 2, "write_slot": 6, "base": 4}[argument]
    want = kit.run(NAME, problem(**shape), "triton")
    for value in (limit, -1, FAR, -FAR - 1):
        call = problem(**shape)
        call[argument][1] = value
        copy, memory = surrounded(call, "k_cache", "v_cache", "q_out")
        expected = {name: now.cpu().clone() for name, now in memory.items()}
        for name, lane_0 in (("k_cache", 2), ("v_cache", 2), ("q_out", 0)):  # it writes row 2
            expected[name][1][lane_0] = want[name][lane_0]
        args, kwargs = calls.split(NAME, copy)
        package.launch(*args, **kwargs)
        for name, after in memory.items():
            assert_same_bits(after.cpu(), expected[name], f"{name} with {argument} = {value}")


def test_no_tokens_no_launch():
    call = kit.copied(problem())
    call |= {"qkv": call["qkv"][:, :0], "q_out": call["q_out"][:, :0]}
    args, kwargs = calls.split(NAME, call)
    package.launch(*args, **kwargs)


def test_too_wide_rows_are_refused():
    spec = kit.ops.dispatch.Spec("cpu", torch.float32, (("width", 8194),))
    assert package.supports(spec) == (False, "rows of at most 8192 channels, got 8194")
    assert not package.supports(spec._replace(dtype=torch.float64))[0]
    assert package.supports(spec._replace(dims=()))[0]
