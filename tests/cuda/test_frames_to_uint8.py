"""``frames_to_uint8`` in CUDA, on the CPU: the reference's bytes."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops import functional
from tests.cuda_shim import built
from tests.kit.compare import assert_same_bits
from tests.kit.pictures import LAYOUTS, placed

NAME = "frames_to_uint8"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def made(x: torch.Tensor) -> torch.Tensor:
    b, _, t, h, w = x.shape
    return built.run(NAME, {"x": x, "out": torch.full((b, t, h, w, 3), 77, dtype=torch.uint8)})["out"]


def bytes_of(values: torch.Tensor) -> torch.Tensor:
    """The kernel on a row of numbers, the same in every channel."""
    out = made(values.view(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1))
    assert torch.equal(out[..., 0], out[..., 2]) and torch.equal(out[..., 0], out[..., 1])
    return out[0, 0, 0, :, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(3, 5), (3, 8), (13, 36)], ids=str)
def test_parity(size, dtype):
    x = torch.randn(2, 3, 2, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(made(x), functional.to_uint8(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [7, 8])
def test_any_layout(layout, width):
    x = torch.randn(2, 3, 2, 5, width, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(placed(x, layout, "cpu")[0]), functional.to_uint8(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
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


def test_memory_around_out_stays():
    """An output that begins between two words, so that a thread makes one pixel."""
    x = torch.randn(1, 3, 1, 2, 8, generator=torch.Generator().manual_seed(0))
    memory = torch.full((50,), 77, dtype=torch.uint8)
    out = memory[1:49].view(1, 1, 2, 8, 3)
    built.run(NAME, {"x": x, "out": out}, in_place=True)
    assert_same_bits(out, functional.to_uint8(x), "out")
    assert memory[0] == memory[-1] == 77


def test_no_frames():
    assert made(torch.zeros(1, 3, 0, 4, 4)).shape == (1, 0, 4, 4, 3)
