"""Of the motion VAE's ops, the calls that ``calls.py`` has of the others."""

from __future__ import annotations

from typing import Any

import torch

Call = dict[str, Any]


def conv3x3(
    channels: int = 5,
    out: int = 3,
    frames: int = 4,
    size: tuple[int, int] = (5, 6),
    *,
    added: int = 2,
    silu: tuple[bool, bool] = (True, True),
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Call:
    """Maps with channels innermost, each added one of several frames."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, generator=g).to(dtype)
        return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn

    return {
        "x": normal(frames, channels, *size),
        "weight": normal(out, channels, 3, 3) * (9 * channels) ** -0.5,
        "bias": normal(out),
        "added": normal(added, out, *size),
        "scale": 1 + 0.5 * normal(frames, out),
        "shift": normal(frames, out),
        "out": torch.full_like(normal(frames, out, *size), torch.nan),
        "silu_before": silu[0],
        "silu_after": silu[1],
    }


def move_and_paint(
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] = (64, 128),
    *,
    photos: int = 2,
    frames: int = 4,
    window: tuple[int, int, int, int] = (8, 16, 40, 32),
    seed: int = 0,
) -> Call:
    """Flows of a few pixels, more at the border than there is of the photo."""
    g = torch.Generator().manual_seed(seed)

    def drawn(channels: int, rows: int, columns: int) -> torch.Tensor:
        if channels == 2:
            return (0.05 * torch.randn(frames, 2, rows, columns, generator=g)).to(dtype)
        share = torch.rand(frames, 1, rows, columns, generator=g)
        colour = 2 * torch.rand(frames, 3, rows, columns, generator=g) - 1
        return torch.cat([share, share * colour], 1).to(dtype)

    return {
        "photo": (2 * torch.rand(photos, 3, *size, generator=g) - 1).to(dtype),
        "flow": drawn(2, 5, 6),
        "paint": drawn(4, 5, 6),
        "inner_flow": drawn(2, 3, 4),
        "inner_paint": drawn(4, 6, 8),
        "out": torch.full((frames, *size, 3), 77, dtype=torch.uint8),
        "window": list(window),
    }
