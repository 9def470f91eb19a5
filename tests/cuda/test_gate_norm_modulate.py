"""``gate_norm_modulate`` in CUDA, on the CPU, against the reference: what is left out, strides, both roundings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rest_fast.ops import OpError
from tests.cuda_shim import built
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, same_bits
from tests.ops import calls
from tests.ops.cases.gate_norm_modulate import CENTRED, FP32, LEFT_OUT, ROUNDINGS, WHY, WHY_CENTRED, problems, without
from tests.ops.cases.gate_norm_modulate import SIZES as SIZES_OF_ALL

NAME = "gate_norm_modulate"
SIZES = SIZES_OF_ALL | {
    "more_vectors_than_threads": {"frames": 1, "tokens": 1, "width": 8192, "lanes": 1},
    "the_widest_row_without_vectors": {"frames": 1, "tokens": 1, "width": 8191, "lanes": 1},
}


def parity(call: calls.Call) -> calls.Call:
    got = built.run(NAME, call)
    kit.compare(NAME, call, got, fp32=FP32, reason=WHY)
    return got


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_parity(shape, dtype, rounding):
    parity(calls.gate_norm_modulate(**shape, dtype=dtype) | {"rounding": rounding})


@pytest.mark.parametrize("norm", ["layer", "affine"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["odd", "demo", "more_vectors_than_threads"])
def test_parity_of_layer_norms(name, dtype, rounding, norm):
    call = calls.gate_norm_modulate(**SIZES[name], dtype=dtype) | {"rounding": rounding, "norm": norm}
    call["x"] += 2  # a mean that is not near zero
    kit.compare(NAME, call, built.run(NAME, call), fp32=CENTRED, reason=WHY_CENTRED)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("width", [10, 16], ids=["numbers", "vectors"])
@pytest.mark.parametrize("names", LEFT_OUT.values(), ids=LEFT_OUT)
def test_whatever_is_left_out(names, width, rounding):
    call = without(calls.gate_norm_modulate(frames=2, tokens=2, width=width, dtype=torch.bfloat16), names)
    got = parity(call | {"rounding": rounding})
    if call["branch"] is None:
        assert_same_bits(got["x"], call["x"], "x without a branch")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_and_stride(call):
    got, want = built.run(NAME, call), kit.run(NAME, call, "reference")
    for name in ("x", "out"):
        if call[name] is not None:
            # Of a sample this small the largest result may be small: bound it by the input as well.
            assert_close(got[name], want[name], atol=FP32 * (float(want[name].abs().max()) + 4), reason=WHY)


@pytest.mark.parametrize("shift", [0, 1], ids=["aligned", "misaligned"])
def test_a_vector_that_is_not_aligned_changes_nothing(shift):
    """Gate, scale and shift one number further on, as a view of a table may lie: numbers instead of vectors."""
    call = calls.gate_norm_modulate(width=64, dtype=torch.bfloat16)
    want = built.run(NAME, call)
    for name in ("gate", "scale", "shift"):
        table = torch.full((2, 3, 66), torch.nan, dtype=torch.bfloat16)
        table[..., shift : shift + 64] = call[name]
        call[name] = table[..., shift : shift + 64]
    got = built.run(NAME, call)
    for name in ("x", "out"):
        assert_close(got[name], want[name], rtol=2.0**-8, reason="squares in another order: the last bit")


def test_gate_and_scale_of_different_frames():
    """The gate of a previous block's frames and the scale of this one's need not have the same number of frames."""
    parity(calls.gate_norm_modulate(frames=3, tokens=4, gate_frames=2))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_it_rounds_where_the_mode_says(rounding):
    """Bit for bit, but for results that lie within fp32 noise of the middle between two numbers."""
    call = calls.gate_norm_modulate(frames=2, tokens=4, width=256, dtype=torch.bfloat16)
    got = built.run(NAME, call | {"rounding": rounding})
    mine, other = (kit.run(NAME, call | {"rounding": r}, "reference") for r in sorted(ROUNDINGS, key=rounding.__ne__))
    if rounding == "eager":  # product and sum of two numbers: no noise
        assert_same_bits(got["x"], mine["x"], "x")
    for name in ("x", "out"):
        # The noise is a few 2^-24, the step between numbers 2^-8: one result in a thousand may fall elsewhere.
        assert (~same_bits(got[name], mine[name])).float().mean() < 0.005, name
        assert (~same_bits(got[name], other[name])).float().mean() > 0.02, f"{name}: the modes are alike"


def test_squares_beyond_float16():
    call = calls.gate_norm_modulate(frames=1, tokens=2, dtype=torch.float16)
    call["x"] *= 3000
    assert parity(call)["out"].isfinite().all()


def test_nan_of_one_row_stays_there():
    call = calls.gate_norm_modulate()
    want = built.run(NAME, call)
    call["x"][0, 5, 3], call["branch"][1, 7] = torch.nan, torch.nan
    got = built.run(NAME, call)
    rows = torch.zeros(2, 12, dtype=torch.bool)
    rows[0, 5] = rows[1, 7] = True
    assert got["out"][rows].isnan().all()
    for name in ("x", "out"):
        assert_same_bits(got[name][~rows], want[name][~rows], f"{name} of the other rows")


def test_no_tokens_no_launch():
    call = calls.gate_norm_modulate()
    built.run(NAME, call | {name: call[name][:, :0] for name in ("x", "branch", "out")})


def test_refusals():
    call = calls.gate_norm_modulate()
    with pytest.raises(OpError, match="bad shape"):
        built.run(NAME, call, width=8193)
    cuda = next(b for b in calls.OPS[NAME].backends if b.name == "cuda")
    wide = kit.ops.dispatch.Spec("cuda", torch.float16, (("width", 8193),))
    assert cuda.supports(wide) == (False, "rows of at most 8192 channels, got 8193")
