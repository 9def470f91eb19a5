"""``depth_to_space`` against index arithmetic, and its inverse."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops import functional
from tests.kit.compare import assert_same_bits
from tests.ops import calls

NAME = "depth_to_space"
FACTORS = pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 3), (2, 1, 1), (3, 1, 2), (1, 1, 1)], ids=str)


def numbered(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape).to(dtype)


def by_index(x: torch.Tensor, factors: tuple[int, int, int], drop: int) -> torch.Tensor:
    """out[b, c, t, y, z] is channel ((c p1 + t % p1) p2 + y % p2) p3 + z % p3 at (t / p1, y / p2, z / p3)."""
    (b, c, t, h, w), (p1, p2, p3) = x.shape, factors
    out = x.new_full((b, c // (p1 * p2 * p3), t * p1, h * p2, w * p3), -1)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in out.shape)).tolist():
        n, channel, i, y, z = place
        source = ((channel * p1 + i % p1) * p2 + y % p2) * p3 + z % p3
        out[tuple(place)] = x[n, source, i // p1, y // p2, z // p3]
    return out[:, :, drop:]


@FACTORS
def test_functional_is_index_arithmetic(factors):
    x = numbered(2, 3 * torch.Size(factors).numel(), 3, 2, 3)
    for drop in range(factors[0] + 1):
        assert_same_bits(functional.depth_to_space(x, factors, drop), by_index(x, factors, drop), f"drop {drop}")


@FACTORS
def test_space_to_depth_is_the_inverse(factors):
    x = numbered(2, 2 * torch.Size(factors).numel(), 3, 2, 3)
    y = numbered(2, 2, 3 * factors[0], 2 * factors[1], 3 * factors[2])
    assert torch.equal(functional.space_to_depth(functional.depth_to_space(x, factors), factors), x)
    assert torch.equal(functional.depth_to_space(functional.space_to_depth(y, factors), factors), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("drop", [0, 1, 5])
def test_in_place_is_index_arithmetic(drop, dtype):
    x = (numbered(2, 24, 3, 2, 3) % 251).to(dtype)
    out = torch.full((2, 2, 6 - drop, 6, 6), 255, dtype=dtype)
    before = x.clone()
    calls.invoke(NAME, {"x": x, "out": out, "factors": [2, 3, 2], "drop": drop})
    assert_same_bits(out, by_index(x, (2, 3, 2), drop), "out")
    assert_same_bits(x, before, "x")


def test_strided_input_and_output():
    x, following = numbered(2, 16, 4, 2, 3)[:, ::2], torch.full((2, 1, 10, 4, 6), -2.0, dtype=torch.float64)
    calls.invoke(NAME, {"x": x, "out": following[:, :, 2:], "factors": [2, 2, 2], "drop": 0})
    assert_same_bits(following[:, :, 2:].contiguous(), by_index(x, (2, 2, 2), 0), "out")
    assert (following[:, :, :2] == -2).all()
