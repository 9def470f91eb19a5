"""``pixel_norm_silu`` against the formula, one pixel at a time."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls

NAME = "pixel_norm_silu"


def closed_form(call: calls.Call) -> torch.Tensor:
    """float64 [B, C, T, H, W]."""
    out = torch.zeros(call["x"].shape, dtype=torch.float64)
    c = out.shape[1]
    scale, shift = ([0.0] * c if call[n] is None else call[n].double().tolist() for n in ("scale", "shift"))
    for b, t, y, x in torch.cartesian_prod(*(torch.arange(out.shape[i]) for i in (0, 2, 3, 4))).tolist():
        pixel = call["x"][b, :, t, y, x].double().tolist()
        root = math.sqrt(math.fsum(v * v for v in pixel) / c + call["eps"])
        values = [v / root * (1 + scale[i]) + shift[i] for i, v in enumerate(pixel)]
        out[b, :, t, y, x] = torch.tensor([v / (1 + math.exp(-v)) for v in values], dtype=torch.float64)
    return out


PLAIN = {"scale": None, "shift": None}
MODULATED = pytest.mark.parametrize("change", [{}, PLAIN], ids=["scale_and_shift", "plain"])


@MODULATED
def test_functional_is_the_formula(change):
    call = calls.pixel_norm_silu(torch.float64) | change
    got = functional.normed_silu(call["x"], call["scale"], call["shift"], eps=call["eps"])
    assert_close(got, closed_form(call), atol=1e-14, reason="a dozen float64 roundings of numbers below 10")


@MODULATED
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_place_is_functional(change, dtype):
    call = calls.pixel_norm_silu(dtype) | change
    want = functional.normed_silu(call["x"], call["scale"], call["shift"], eps=call["eps"])
    before = call["x"].clone()
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_same_bits(call["out"], want, "out")
    assert_same_bits(call["x"], before, "x")


@MODULATED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_at_most_twice_eager(change, dtype):
    call = calls.pixel_norm_silu(dtype) | change
    x = call["x"]
    eager = x * (x * x).mean(1, keepdim=True).add(call["eps"]).rsqrt()
    if call["scale"] is not None:
        scale, shift = (call[name].view(-1, 1, 1, 1) for name in ("scale", "shift"))
        eager = eager * (1 + scale) + shift
    calls.invoke(NAME, call)
    twice_eager(call["out"], torch.nn.functional.silu(eager), closed_form(call), tiny=1e-6)


def test_squares_of_half_precision_do_not_overflow():
    call = calls.pixel_norm_silu(torch.float16)
    call["x"] *= 3000  # squares of up to 1e8; fp16 ends at 65504
    calls.invoke(NAME, call)
    # One rounding to fp16 of numbers below 10: half a unit of 2^-7.
    assert_close(call["out"], closed_form(call), atol=2.0**-8, reason="fp32 inside, one rounding to fp16")


def test_strided_input_and_output():
    """Frames 2.. of a buffer with history on either side, as between two convolutions."""
    call = calls.pixel_norm_silu()
    want = call | {"out": call["out"].clone()}
    calls.invoke(NAME, want)
    source, target = torch.randn(2, 5, 5, 4, 3), torch.randn(2, 5, 5, 4, 3)
    source[:, :, 2:] = call["x"]
    history = target[:, :, :2].clone()
    calls.invoke(NAME, call | {"x": source[:, :, 2:], "out": target[:, :, 2:]})
    # Sums of 5 channels may run in another order: two fp32 roundings of numbers below 10.
    assert_close(target[:, :, 2:], want["out"], atol=2e-6, reason="another order of summation in fp32")
    assert_same_bits(target[:, :, :2], history, "history of the next buffer")


def test_black_pixels_are_finite():
    call = calls.pixel_norm_silu() | PLAIN
    call["x"].zero_()
    calls.invoke(NAME, call)
    assert torch.equal(call["out"], torch.zeros_like(call["out"]))
