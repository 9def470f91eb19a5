"""Cases of ``frames_to_uint8``, for the tests of all its backends: they give the same bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rest_fast.ops import functional

NO_NUMBERS = [torch.nan, -torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1.0, -1.0, 0.0, -0.0]
THEIR_BYTES = [0, 0, 255, 0, 255, 0, 255, 0, 128, 128]


def bytes_of(values: torch.Tensor, made: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What a kernel makes of a row of numbers, the same in every channel; ``made``: [1, 3, 1, 1, n] -> its pictures."""
    out = made(values.view(1, 1, 1, 1, -1).expand(1, 3, 1, 1, -1))
    assert torch.equal(out[..., 0], out[..., 2]) and torch.equal(out[..., 0], out[..., 1])
    return out[0, 0, 0, :, 0]


def check_every_16_bit_number(made: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    known = ~x.isnan()
    got = bytes_of(x, made)
    want = bytes_of(x, functional.to_uint8)
    assert torch.equal(got[known], want[known])
    assert (got[~known] == 0).all() and not known.all()


def check_borders_and_ties(made: Callable[[torch.Tensor], torch.Tensor]) -> None:
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
    assert torch.equal(bytes_of(x, made), torch.where(ties, even, nearest.float()).to(torch.uint8))
