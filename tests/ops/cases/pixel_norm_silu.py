"""Cases of ``pixel_norm_silu``, for the tests of its kernels."""

from __future__ import annotations

import torch

from tests.kit.pictures import placed
from tests.ops import calls

# A sum of a few dozen squares in another order, a root, an exponential and a division of 2 units of 2^-24 each.
FP32, REASON = 1e-6, "fp32 in another order, an approximate root, exponential and quotient"
PLAIN = {"scale": None, "shift": None}


def call_of(*shape: int, dtype: torch.dtype = torch.float32) -> calls.Call:
    g = torch.Generator().manual_seed(0)
    x, scale, shift = (torch.randn(s, generator=g).to(dtype) for s in (shape, shape[1], shape[1]))
    return {"x": 2 * x, "scale": scale, "shift": shift, "out": calls.nans(*shape, dtype=dtype), "eps": 1e-8}


def laid_out(call: calls.Call, layout: str) -> calls.Call:
    return call | {n: placed(call[n], layout, "cpu")[0] for n in ("x", "out")}


def bad_pixels(layout: str) -> calls.Call:
    """Pixels of NaN, infinities and zeros, and one with one NaN, among good ones."""
    call = call_of(1, 20, 2, 4, 5) | PLAIN
    for at, value in enumerate((torch.nan, torch.inf, -torch.inf, 0.0)):
        call["x"][0, :, 0, at, 1] = value
    call["x"][0, 3, 1, 2, 2] = torch.nan
    return laid_out(call, layout)


def check_bad_pixels_stay_alone(out: torch.Tensor) -> None:
    assert out[0, :, 0, 3, 1].eq(0).all() and out.isnan().any(1).sum() == 4
