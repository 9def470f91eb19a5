"""Triton's ``frames_to_uint8`` against the reference: the same bytes."""

from __future__ import annotations

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional
from rest_fast.ops.dispatch import Spec
from tests.kernels import kit
from tests.kit.pictures import LAYOUTS, placed
from tests.ops import calls
from tests.ops.cases.frames_to_uint8 import (
    NO_NUMBERS,
    THEIR_BYTES,
    bytes_of,
    check_borders_and_ties,
    check_every_16_bit_number,
)

NAME = "frames_to_uint8"


def triton(x: torch.Tensor) -> torch.Tensor:
    b, _, t, h, w = x.shape
    out = torch.full((b, t, h, w, 3), 77, dtype=torch.uint8, device=kit.DEVICE)
    with ops.use_backend("triton"):
        ops.frames_to_uint8(x.to(kit.DEVICE), out)
    return out.cpu()


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_parity(dtype):
    kit.check_parity(NAME, calls.frames_to_uint8(dtype), fp32=0.0, reason="the same bytes")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout):
    """More than one run of pixels, of a number that is no multiple of 4."""
    x = torch.randn(2, 3, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    assert torch.equal(triton(placed(x, layout, kit.DEVICE)[0]), functional.to_uint8(x))


@pytest.mark.parametrize("dtype", kit.LOW, ids=str)
def test_every_16_bit_number(dtype):
    check_every_16_bit_number(triton, dtype)


def test_borders_and_ties():
    check_borders_and_ties(triton)


def test_numbers_that_are_none():
    assert bytes_of(torch.tensor(NO_NUMBERS), triton).tolist() == THEIR_BYTES


def test_no_frames():
    assert triton(torch.zeros(1, 3, 0, 4, 4, device=kit.DEVICE)).shape == (1, 0, 4, 4, 3)


@pytest.mark.parametrize(
    "spec, reason",
    [
        (Spec(kit.DEVICE, torch.float64), "float32, bfloat16 and float16 only, got torch.float64"),
        (Spec(kit.DEVICE, torch.float16, (("frames", 2**15), ("height", 256), ("width", 256))), "fewer than 2147"),
    ],
    ids=["dtype", "pixels"],
)
def test_refused_with_a_reason(spec, reason):
    ok, said = next(b for b in ops.frames_to_uint8.backends if b.name == "triton").supports(spec)
    assert not ok and reason in said


@pytest.mark.skipif(not kit.ON_GPU, reason="real shapes take a GPU")
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_real_shapes(layout, dtype):
    x = torch.randn(2, 3, 24, 512, 512, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(triton(placed(x, layout, kit.DEVICE)[0]), functional.to_uint8(x))
