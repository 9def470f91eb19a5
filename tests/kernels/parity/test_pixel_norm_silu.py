"""Triton's ``pixel_norm_silu`` against the reference: every layout, edge sizes, numbers that are none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops import functional
from rest_fast.ops.dispatch import Spec
from tests.kernels import kit
from tests.kit.compare import assert_close
from tests.kit.pictures import LAYOUTS, assert_untouched_around, placed
from tests.ops import calls
from tests.ops.cases.pixel_norm_silu import (
    FP32,
    PLAIN,
    REASON,
    bad_pixels,
    call_of,
    check_bad_pixels_stay_alone,
    laid_out,
)

NAME = "pixel_norm_silu"


@pytest.mark.parametrize("change", [{}, PLAIN], ids=["scale_and_shift", "plain"])
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_parity(dtype, change):
    kit.check_parity(NAME, calls.pixel_norm_silu(dtype) | change, fp32=FP32, reason=REASON)
    last = call_of(2, 48, 3, 5, 7, dtype=dtype) | change
    last |= {n: last[n].to(memory_format=torch.channels_last_3d) for n in ("x", "out")}
    kit.check_parity(NAME, last, fp32=FP32, reason=REASON)


@pytest.mark.parametrize("out_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_to_any(layout, out_layout):
    """Two and a half tiles of pixels; what lies around the output stays."""
    call = call_of(2, 40, 3, 5, 7)
    want = functional.normed_silu(call["x"], call["scale"], call["shift"], eps=call["eps"])
    scale, shift = call["scale"].to(kit.DEVICE), call["shift"].to(kit.DEVICE)
    x, _ = placed(call["x"], layout, kit.DEVICE)
    out, buffer = placed(call["out"], out_layout, kit.DEVICE)
    with ops.use_backend("triton"):
        ops.pixel_norm_silu(x, scale, shift, out, eps=call["eps"])
    assert_close(out.cpu(), want, atol=FP32 * float(want.abs().max()), reason=REASON)
    assert_untouched_around(out, buffer)


@settings(max_examples=100 if kit.ON_GPU else 15, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (2, 70, 3, 6, 6))),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    plain=st.booleans(),
)
def test_any_shape_and_layout(sizes, layouts, plain):
    call = call_of(*sizes) | (PLAIN if plain else {})
    want = kit.run(NAME, call, "reference")["out"]
    scale, shift = (None if plain else call[n].to(kit.DEVICE) for n in ("scale", "shift"))
    x, _ = placed(call["x"], layouts[0], kit.DEVICE)
    out, buffer = placed(call["out"], layouts[1], kit.DEVICE)
    with ops.use_backend("triton"):
        ops.pixel_norm_silu(x, scale, shift, out, eps=call["eps"])
    # Of a sample this small the largest result may be small: bound it by what SiLU is given as well.
    assert_close(out.cpu(), want, atol=FP32 * (float(want.abs().max()) + 1), reason=REASON)
    assert_untouched_around(out, buffer)


@pytest.mark.parametrize("channels", [1, 2, 3, 127, 128, 129, 1023, 2048, 5000, 8192])
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_numbers_of_channels(channels, layout):
    call = call_of(1, channels, 1, 2, 3)
    kit.check_parity(NAME, laid_out(call, layout), fp32=FP32, reason=REASON)


def test_one_lane_for_many():
    """An expanded input, whose clips are one."""
    call = call_of(1, 5, 2, 3, 4)
    want = functional.normed_silu(call["x"], None, None, eps=1e-8)
    out = calls.nans(3, 5, 2, 3, 4).to(kit.DEVICE)
    with ops.use_backend("triton"):
        ops.pixel_norm_silu(call["x"].to(kit.DEVICE).expand_as(out), None, None, out, eps=1e-8)
    for clip in out.cpu():
        assert_close(clip[None], want, atol=FP32 * float(want.abs().max()), reason=REASON)


@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_a_bad_pixel_stays_alone(layout):
    got = kit.check_parity(NAME, bad_pixels(layout), fp32=FP32, reason=REASON)  # NaN exactly where the reference has it
    check_bad_pixels_stay_alone(got["out"])


def test_squares_of_half_precision_do_not_overflow():
    call = call_of(1, 20, 2, 4, 5, dtype=torch.float16)
    call["x"] *= 3000
    got = kit.check_parity(NAME, call, fp32=FP32, reason=REASON)
    assert got["out"].abs().max() > 1


def test_large_negative_numbers_end_at_zero():
    """exp overflows there: x / inf."""
    call = call_of(1, 20, 1, 2, 2)
    call["scale"].fill_(1e4)
    got = kit.check_parity(NAME, call, fp32=FP32, reason=REASON)
    assert (got["out"] == 0).any() and not got["out"].isnan().any()


def test_no_pixels():
    call = call_of(2, 5, 0, 4, 3)
    assert kit.run(NAME, call, "triton")["out"].shape == (2, 5, 0, 4, 3)


@pytest.mark.parametrize(
    "spec, reason",
    [
        (Spec(kit.DEVICE, torch.float64, (("channels", 8),)), "float32, bfloat16 and float16 only, got torch.float64"),
        (Spec(kit.DEVICE, torch.float16, (("channels", 8193),)), "at most 8192 channels, got 8193"),
        (Spec(kit.DEVICE, torch.float16, (("channels", 8), ("pixels", 2**31))), "fewer than 2147475456 pixels"),
    ],
    ids=["float64", "channels", "pixels"],
)
def test_refused_with_a_reason(spec, reason):
    ok, said = next(b for b in ops.pixel_norm_silu.backends if b.name == "triton").supports(spec)
    assert not ok and reason in said


@pytest.mark.skipif(not kit.ON_GPU, reason="real shapes take a GPU")
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
@pytest.mark.parametrize("shape", [(1, 1024, 1, 16, 16), (2, 256, 4, 64, 64), (1, 128, 24, 128, 128)])
def test_real_shapes(shape, layout, dtype):
    call = call_of(*shape, dtype=dtype)
    dense = {n: placed(call[n], layout, "cpu")[0] for n in ("x", "out")}
    kit.check_parity(NAME, call | dense, fp32=4e-6, reason=REASON + ", 1024 squares")
