"""``gate_norm_modulate`` in Triton against the reference: what is left out, strides, both roundings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rest_fast.kernels import gate_norm_modulate as package
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, same_bits
from tests.ops import calls
from tests.ops.cases.gate_norm_modulate import CENTRED, FP32, LEFT_OUT, ROUNDINGS, WHY, WHY_CENTRED, problems, without
from tests.ops.cases.gate_norm_modulate import SIZES as SIZES_OF_ALL

NAME = "gate_norm_modulate"
SIZES = SIZES_OF_ALL | ({"rest_512": {"frames": 3, "tokens": 256, "width": 2048}} if kit.ON_GPU else {})


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_parity(shape, dtype, rounding):
    call = calls.gate_norm_modulate(**shape, dtype=dtype) | {"rounding": rounding}
    kit.check_parity(NAME, call, fp32=FP32, reason=WHY)


@pytest.mark.parametrize("norm", ["layer", "affine"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [SIZES["odd"], SIZES["demo"]], ids=["odd", "demo"])
def test_parity_of_layer_norms(shape, dtype, rounding, norm):
    call = calls.gate_norm_modulate(**shape, dtype=dtype) | {"rounding": rounding, "norm": norm}
    call["x"] += 2  # a mean that is not near zero
    kit.check_parity(NAME, call, fp32=CENTRED, reason=WHY_CENTRED)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("names", LEFT_OUT.values(), ids=LEFT_OUT)
def test_whatever_is_left_out(names, dtype, rounding):
    call = without(calls.gate_norm_modulate(frames=2, tokens=2, dtype=dtype), names) | {"rounding": rounding}
    got = kit.check_parity(NAME, call, fp32=FP32, reason=WHY)
    if call["branch"] is None:
        assert_same_bits(got["x"], call["x"], "x without a branch")


@settings(max_examples=100 if kit.ON_GPU else 15, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_and_stride(call):
    """Past ``kit.run``, whose copies are contiguous."""
    want, copy = kit.run(NAME, call, "reference"), dict(call)
    for name in ("x", "out"):
        copy[name] = None if call[name] is None else call[name].clone()
    copy = {n: v.to(kit.DEVICE) if isinstance(v, torch.Tensor) else v for n, v in copy.items()}
    args, kwargs = calls.split(NAME, copy)
    package.launch(*args, **kwargs)
    for name, got in (("x", args[0]), ("out", args[5])):
        if got is not None:
            # Of a sample this small the largest result may be small: bound it by the input as well.
            assert_close(got.cpu(), want[name], atol=FP32 * (float(want[name].abs().max()) + 4), reason=WHY)


def table_views(call: calls.Call) -> calls.Call:
    """Gate, scale and shift as AdaLN hands them over: slices of one table that all lanes share, lane stride 0."""
    table = torch.stack([call[name][0] for name in ("gate", "scale", "shift")])
    views = table[:, None].expand(-1, call["x"].shape[0], -1, -1)
    assert views.stride(1) == 0
    return call | dict(zip(("gate", "scale", "shift"), views))


def test_vectors_shared_by_lanes():
    call = table_views(calls.gate_norm_modulate())
    want = kit.run(NAME, call, "triton")  # on copies, which are contiguous
    copy = table_views(kit.copied(call))
    args, kwargs = calls.split(NAME, copy)
    package.launch(*args, **kwargs)
    for name in ("x", "out"):
        assert_same_bits(copy[name].cpu(), want[name], name)
    for name in ("gate", "scale", "shift"):
        assert_same_bits(copy[name].cpu(), call[name], name)


def test_gate_and_scale_of_different_frames():
    """The gate of a previous block's frames and the scale of this one's need not have the same number of frames."""
    call = calls.gate_norm_modulate(frames=3, tokens=4)
    call["gate"] = calls.gate_norm_modulate(frames=2, tokens=6)["gate"]
    kit.check_parity(NAME, call, fp32=FP32, reason=WHY)


@pytest.mark.parametrize("dtype", kit.LOW, ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_it_rounds_where_the_mode_says(rounding, dtype):
    """Bit for bit, but for results that lie within fp32 noise of the middle between two numbers."""
    call = calls.gate_norm_modulate(frames=2, tokens=4, width=512, dtype=dtype)
    got = kit.run(NAME, call | {"rounding": rounding}, "triton")
    mine, other = (kit.run(NAME, call | {"rounding": r}, "reference") for r in sorted(ROUNDINGS, key=rounding.__ne__))
    if rounding == "eager":  # product and sum of two numbers: no noise
        assert_same_bits(got["x"], mine["x"], "x")
    for name in ("x", "out"):
        # The noise is a few 2^-24, the step between numbers 2^-8 or 2^-11: one result in a thousand may fall elsewhere.
        assert (~same_bits(got[name], mine[name])).float().mean() < 0.005, name
        assert (~same_bits(got[name], other[name])).float().mean() > 0.02, f"{name}: the modes are alike"


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_squares_beyond_float16(rounding):
    call = calls.gate_norm_modulate(frames=1, tokens=2, dtype=torch.float16) | {"rounding": rounding}
    call["x"] *= 3000
    got = kit.check_parity(NAME, call, fp32=FP32, reason=WHY)
    assert got["out"].isfinite().all()


def test_zero_rows_are_the_shift():
    call = calls.gate_norm_modulate()
    call["x"].zero_(), call["branch"].zero_()
    got = kit.run(NAME, call, "triton")
    assert_close(got["out"], call["shift"].repeat_interleave(4, 1), reason="0 times anything plus shift")


def test_nan_of_one_row_stays_there():
    call = calls.gate_norm_modulate()
    want = kit.run(NAME, call, "triton")
    call["x"][0, 5, 3], call["branch"][1, 7] = torch.nan, torch.nan
    got = kit.run(NAME, call, "triton")
    rows = torch.zeros(2, 12, dtype=torch.bool)
    rows[0, 5] = rows[1, 7] = True
    assert got["out"][rows].isnan().all()
    for name in ("x", "out"):
        assert_same_bits(got[name][~rows], want[name][~rows], f"{name} of the other rows")


def test_no_tokens_no_launch():
    call = kit.copied(calls.gate_norm_modulate())
    call |= {name: call[name][:, :0] for name in ("x", "branch", "out")}
    args, kwargs = calls.split(NAME, call)
    package.launch(*args, **kwargs)
