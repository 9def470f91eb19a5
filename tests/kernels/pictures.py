"""Tensors [B, C, T, H, W] in the layouts that the kernels of the VAE meet."""

from __future__ import annotations

import torch

from tests.kit.compare import assert_same_bits

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
