"""``frames_to_uint8`` in CUDA, on the CPU: the reference's bytes."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops import functional
from tests.cuda_shim import built
from tests.kit.compare import assert_same_bits
from tests.kit.pictures import LAYOUTS, placed
from tests.ops.cases.frames_to_uint8 import (
    NO_NUMBERS,
    THEIR_BYTES,
    bytes_of,
    check_borders_and_ties,
    check_every_16_bit_number,
)

NAME = "frames_to_uint8"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def made(x: torch.Tensor) -> torch.Tensor:
    b, _, t, h, w = x.shape
    return built.run(NAME, {"x": x, "out": torch.full((b, t, h, w, 3), 77, dtype=torch.uint8)})["out"]


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


def test_rows_that_begin_inside_of_a_vector():
    """The first begins at a multiple of one."""
    x = torch.randn(1, 3, 1, 4, 10, generator=torch.Generator().manual_seed(0))[..., :8]
    assert torch.equal(made(x), functional.to_uint8(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number(dtype):
    check_every_16_bit_number(made, dtype)


def test_borders_and_ties():
    check_borders_and_ties(made)


def test_numbers_that_are_none():
    assert bytes_of(torch.tensor(NO_NUMBERS), made).tolist() == THEIR_BYTES


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
