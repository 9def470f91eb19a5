"""How the tensors [B, C, T, H, W] of the VAE lie in memory: names for a :class:`Spec`, and what no output may be."""

from __future__ import annotations

import torch

from rest_fast.ops.dispatch import OpError

CONTIGUOUS, CHANNELS_LAST, STRIDED = "contiguous", "channels_last", "strided"


def layout(x: torch.Tensor) -> str:
    """``contiguous`` as the shape says, ``channels_last`` (memory order B, T, H, W, C), or ``strided`` for the rest."""
    if x.is_contiguous():
        return CONTIGUOUS
    return CHANNELS_LAST if x.is_contiguous(memory_format=torch.channels_last_3d) else STRIDED


def expect_writable(op: str, name: str, out: torch.Tensor) -> None:
    """Raise :class:`OpError` for an output whose elements share memory: expanded, or of overlapping windows."""
    end = 0  # of what one step along the axes so far, from the narrowest on, covers
    for stride, size in sorted((s, n) for s, n in zip(out.stride(), out.shape, strict=True) if n > 1):
        if stride <= end:
            raise OpError(f"{op}: argument {name}: expected elements that share no memory, got strides {out.stride()}")
        end += stride * (size - 1)
