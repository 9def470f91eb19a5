"""``frames_to_uint8``: rounding at every border, clamping, and the layout."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops import functional
from tests.kit.compare import assert_same_bits
from tests.ops import calls

NAME = "frames_to_uint8"


def bytes_of(values: torch.Tensor) -> torch.Tensor:
    """The op on a column of numbers, through one channel of a picture."""
    out = torch.full((1, 1, 1, values.numel(), 3), 77, dtype=torch.uint8)
    calls.invoke(NAME, {"x": values.view(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1).contiguous(), "out": out})
    assert torch.equal(out[..., 0], out[..., 2])
    return out[0, 0, 0, :, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_border_between_two_values(dtype):
    """x = (k + 1/2 - 127.5) / 127.5 is the border of k and k + 1; 1e-5 in x is 1e-3 of a step."""
    k = torch.arange(255)
    border = (k.double() - 127) / 127.5
    assert torch.equal(bytes_of((border - 1e-5).to(dtype)), k.to(torch.uint8))
    assert torch.equal(bytes_of((border + 1e-5).to(dtype)), (k + 1).to(torch.uint8))


def test_every_value_comes_back():
    k = torch.arange(256)
    assert torch.equal(bytes_of((k.float() / 127.5) - 1), k.to(torch.uint8))


def test_ties_go_to_even():
    """Only 0 is a border that floats can hold exactly: 127.5 becomes 128, as numpy and torch round."""
    assert bytes_of(torch.tensor([0.0, -0.0])).tolist() == [128, 128]


def test_clamping():
    values = torch.tensor([-1.0, -1.0001, -2.0, -torch.inf, -3e38, 1.0, 1.0001, 2.0, torch.inf, 3e38])
    assert bytes_of(values).tolist() == [0] * 5 + [255] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number(dtype):
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    x = x[~x.isnan()]
    exact = x.double() * 127.5 + 127.5  # float64 holds products of 11 by 8 bits
    # fp32 arithmetic may move a number by half a unit of 2^-16 (at 128): closer to a border than that, either is right.
    clear = (exact - exact.floor() - 0.5).abs() > 2.0**-17
    want = exact.clamp(0, 255).round().to(torch.uint8)
    got = bytes_of(x)
    assert torch.equal(got[clear], want[clear])
    assert int((got.int() - want.int()).abs().max()) <= 1
    usual = (x.double().abs() > 1e-5) & (x.double().abs() < 2)
    assert clear[usual].double().mean() > 0.99, "the comparison above covers almost everything"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layout(dtype):
    """[B, 3, T, H, W] -> [B, T, H, W, 3], from a strided input too."""
    call = calls.frames_to_uint8(dtype)
    x = torch.stack([call["x"], -call["x"]], -1)[..., 0]
    assert not x.is_contiguous()
    for source in (call["x"], x):
        out = torch.full_like(call["out"], 77)
        calls.invoke(NAME, {"x": source, "out": out})
        for b, t, y, z, c in torch.cartesian_prod(*(torch.arange(n) for n in out.shape)).tolist():
            value = min(max(float(source[b, c, t, y, z]) * 127.5 + 127.5, 0), 255)
            assert abs(int(out[b, t, y, z, c]) - value) <= 0.5 + 1e-4
        assert_same_bits(functional.to_uint8(source), out, "functional")
    assert functional.to_uint8(x).is_contiguous()
