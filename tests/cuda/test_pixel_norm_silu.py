"""``pixel_norm_silu`` in CUDA, on the CPU, against the reference: every layout, edge sizes, numbers that are none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.ops import functional
from tests.cuda_shim import built
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


def parity(call: calls.Call) -> calls.Call:
    got = built.run(NAME, call)
    kit.compare(NAME, call, got, fp32=FP32, reason=REASON)
    return got


def into(call: calls.Call, layout: str, out_layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, the buffer around it) of the call in these layouts."""
    x, _ = placed(call["x"], layout, "cpu")
    out, buffer = placed(call["out"], out_layout, "cpu")
    built.run(NAME, call | {"x": x, "out": out}, in_place=True)
    return out, buffer


@pytest.mark.parametrize("change", [{}, PLAIN], ids=["scale_and_shift", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_parity(dtype, change):
    parity(calls.pixel_norm_silu(dtype) | change)
    last = call_of(2, 48, 1, 3, 7, dtype=dtype) | change
    parity(last | {n: last[n].to(memory_format=torch.channels_last_3d) for n in ("x", "out")})


@pytest.mark.parametrize("out_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_to_any(layout, out_layout):
    """What lies around the output stays."""
    call = call_of(2, 16, 2, 3, 5)
    want = functional.normed_silu(call["x"], call["scale"], call["shift"], eps=call["eps"])
    out, buffer = into(call, layout, out_layout)
    assert_close(out, want, atol=FP32 * float(want.abs().max()), reason=REASON)
    assert_untouched_around(out, buffer)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, n) for n in (2, 70, 2, 4, 6))),
    layouts=st.tuples(st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS)),
    plain=st.booleans(),
)
def test_any_shape_and_layout(sizes, layouts, plain):
    call = call_of(*sizes) | (PLAIN if plain else {})
    want = kit.run(NAME, call, "reference")["out"]
    out, buffer = into(call, *layouts)
    # Of a sample this small the largest result may be small: bound it by what SiLU is given as well.
    assert_close(out, want, atol=FP32 * (float(want.abs().max()) + 1), reason=REASON)
    assert_untouched_around(out, buffer)


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 127, 128, 264, 1023])
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_numbers_of_channels(channels, layout):
    """Lanes of a warp that a pixel fills in part, wholly and more than once, and pixels that fill no block."""
    call = call_of(1, channels, 1, 2, 3)
    parity(laid_out(call, layout))


@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_a_bad_pixel_stays_alone(layout):
    got = parity(bad_pixels(layout))  # NaN exactly where the reference has it
    check_bad_pixels_stay_alone(got["out"])


def test_squares_of_half_precision_do_not_overflow():
    call = call_of(1, 20, 1, 2, 5, dtype=torch.float16)
    call["x"] *= 3000
    assert parity(call)["out"].abs().max() > 1


def test_large_negative_numbers_end_at_zero():
    """exp overflows there: x / inf."""
    call = call_of(1, 20, 1, 2, 2)
    call["scale"].fill_(1e4)
    got = parity(call)
    assert (got["out"] == 0).any() and not got["out"].isnan().any()


@pytest.mark.parametrize("misaligned", ["x", "out"])
@pytest.mark.parametrize("start, between", [(1, 0), (0, 2)], ids=["address", "strides"])
def test_pixels_that_begin_inside_of_a_vector(misaligned, start, between):
    """The first one, or those behind it: numbers instead."""
    call = call_of(1, 16, 1, 2, 3)
    for name in ("x", "out"):
        first, room = (start, between) if name == misaligned else (0, 0)
        memory = torch.full((first + 6 * (16 + room),), torch.nan)[first:].view(1, 1, 2, 3, 16 + room)
        call[name] = memory[..., :16].permute(0, 4, 1, 2, 3).copy_(call[name])
        assert call[name].data_ptr() % 16 == 4 * first and call[name].stride(1) == 1
    want = kit.run(NAME, call, "reference")["out"]
    built.run(NAME, call, in_place=True)
    assert_close(call["out"], want, atol=FP32 * float(want.abs().max()), reason=REASON)


def test_no_pixels():
    assert built.run(NAME, call_of(2, 5, 0, 4, 3))["out"].shape == (2, 5, 0, 4, 3)
