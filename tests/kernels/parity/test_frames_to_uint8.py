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

NAME = "frames_to_uint8"


def triton(x: torch.Tensor) -> torch.Tensor:
    b, _, t, h, w = x.shape
    out = torch.full((b, t, h, w, 3), 77, dtype=torch.uint8, device=kit.DEVICE)
    with ops.use_backend("triton"):
        ops.frames_to_uint8(x, out)
    return out.cpu()


def bytes_of(values: torch.Tensor) -> torch.Tensor:
    """The kernel on a row of numbers, the same in every channel."""
    out = triton(values.view(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1).to(kit.DEVICE))
    assert torch.equal(out[..., 0], out[..., 2]) and torch.equal(out[..., 0], out[..., 1])
    return out[0, 0, 0, :, 0]


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
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    known = ~x.isnan()
    got = bytes_of(x)
    want = functional.to_uint8(x.view(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1))[0, 0, 0, :, 0]
    assert torch.equal(got[known], want[known])
    assert (got[~known] == 0).all() and not known.all()


def test_borders_and_ties():
    """x = k / 127.5 - 1 and its neighbours in fp32, and the borders between two bytes: among them exact ties."""
    k = torch.arange(511).float() / 2
    x = k / 127.5 - 1
    x = torch.cat([x, x.nextafter(torch.tensor(2.0)), x.nextafter(torch.tensor(-2.0))])
    want = ((x + 1) * 127.5).clamp(0, 255)  # fp32, as the op says
    ties = want.frac() == 0.5
    assert ties.sum() > 50, "the rule for ties is tested"
    low = want.floor()
    even = torch.where(low % 2 == 0, low, low + 1)
    nearest = (want.double() + 0.5).floor()
    assert torch.equal(bytes_of(x), torch.where(ties, even, nearest.float()).to(torch.uint8))


def test_numbers_that_are_none():
    x = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1.0, -1.0, 0.0, -0.0])
    assert bytes_of(x).tolist() == [0, 0, 255, 0, 255, 0, 255, 0, 128, 128]


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
