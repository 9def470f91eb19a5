"""Tensors [B, C, T, H, W] in the layouts that the kernels of the VAE meet, and calls of its convolution."""

from __future__ import annotations

from math import prod

import torch

from rest_fast.ops.memory_layouts import HALOED, haloed, layout
from tests.kit.compare import assert_same_bits
from tests.ops import calls

# dense: as the shape says, channels innermost, rows and columns changed; the others inside a larger buffer
LAYOUTS = ("planes", "channels_last", "sideways", "frames", "channels_last_frames", "cropped")


def placed(x: torch.Tensor, layout: str, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(x in that layout, the buffer around it, whose other elements are 99)."""
    b, c, t, h, w = x.shape
    if layout == "sideways":
        buffer = torch.full((b, c, t, w, h), 99, device=device).to(x.dtype)
        view = buffer.transpose(3, 4)
    else:
        before, around = (2, 1) if layout == "cropped" else (2, 0) if layout.endswith("frames") else (0, 0)
        buffer = torch.full((b, c, before + t, h + 2 * around, w + 2 * around), 99, device=device).to(x.dtype)
        if layout.startswith("channels_last"):
            buffer = buffer.to(memory_format=torch.channels_last_3d)
        view = buffer[:, :, before:, around : around + h, around : around + w]
    view.copy_(x)
    return view, buffer


def assert_untouched_around(view: torch.Tensor, buffer: torch.Tensor) -> None:
    """What :func:`placed` put around a view is still there; overwrites the view."""
    view.fill_(99)
    assert_same_bits(buffer, torch.full_like(buffer, 99), "around the output")


def convolution_call(
    channels: int = 16,
    to: int = 16,  # of the result: the convolution has as many for each place of the cell
    frames: int = 2,
    size: tuple[int, int] = (4, 5),
    *,
    lanes: int = 2,
    past: int = 2,
    first: bool = False,
    keep: int | None = None,
    factors: tuple[int, int, int] = (1, 1, 1),
    drop: int = 0,
    residual: int = 1,  # how often it is tiled over the channels
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> calls.Call:
    """A call of ``causal_conv3d`` as its kernel takes it, with all but pictures. What must not be read, and what is to
    be written, is NaN."""
    g, deep = torch.Generator().manual_seed(seed), to * prod(factors)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g).to(dtype)

    buffer, history = (haloed((lanes, channels, n, *size), dtype=dtype) for n in (frames + 2, past))
    buffer.copy_(normal(*buffer.shape))
    buffer[:, :, :past], buffer[:, :, past + frames :] = torch.nan, torch.nan
    history.copy_(torch.nan * history if first else normal(*history.shape))
    weight = normal(deep, channels, 3, 3, 3) / (27 * channels) ** 0.5
    shape = (lanes, to, frames * factors[0] - drop, size[0] * factors[1], size[1] * factors[2])
    normed = haloed(shape, dtype=dtype)
    return {
        "buffer": buffer,
        "history": history,
        "weight": weight.contiguous(memory_format=torch.channels_last_3d),
        "bias": normal(deep),
        "noise": normal(lanes, *size),
        "noise_scale": normal(deep),
        "residual": normal(lanes, deep // residual, frames, *size),
        "scale": normal(to),
        "shift": normal(to),
        "out": calls.nans(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last_3d),
        "normed": normed.fill_(torch.nan),
        "pictures": None,
        "factors": list(factors),
        "drop": drop,
        "keep": frames if keep is None else keep,
        "first": first,
        "reflect": False,
        "eps": 1e-6,
    }


def moved(x, device: str, dtype: torch.dtype | None = None):
    """A copy with the same strides, its border, if it has one, of zeros."""
    if not isinstance(x, torch.Tensor):
        return x
    dtype = dtype if dtype is not None and x.is_floating_point() else x.dtype
    if layout(x) == HALOED:
        return haloed(tuple(x.shape), dtype=dtype, device=device).copy_(x)
    return torch.empty_like(x, dtype=dtype, device=device).copy_(x)
