"""Names for the memory layouts of the VAE's tensors [B, C, T, H, W], for a :class:`Spec`, and checks of layouts."""

from __future__ import annotations

import torch

from rest_fast.ops.dispatch import OpError

CONTIGUOUS, CHANNELS_LAST, HALOED, STRIDED = "contiguous", "channels_last", "haloed", "strided"


def layout(x: torch.Tensor) -> str:
    """``contiguous`` as the shape says, ``channels_last`` (memory order B, T, H, W, C), ``haloed`` (the same inside a
    border, :func:`haloed`), or ``strided`` for the rest.
    """
    if halo(x) is not None:  # first: a picture of one pixel is contiguous in any layout
        return HALOED
    if x.is_contiguous():
        return CONTIGUOUS
    return CHANNELS_LAST if x.is_contiguous(memory_format=torch.channels_last_3d) else STRIDED


def expect_writable(op: str, name: str, out: torch.Tensor) -> None:
    """Raise :class:`OpError` for an output whose elements share memory: expanded, or of overlapping windows."""
    if out.numel() == 0:
        return
    end = 0  # offset of the last element along the axes seen so far, from the smallest stride on
    for stride, size in sorted((s, n) for s, n in zip(out.stride(), out.shape, strict=True) if n > 1):
        if stride <= end:
            raise OpError(f"{op}: argument {name}: expected elements that share no memory, got strides {out.stride()}")
        end += stride * (size - 1)


def haloed(shape: tuple[int, int, int, int, int], **options) -> torch.Tensor:
    """Zeros [B, C, T, H, W], channels innermost, inside a border that is one row or column wide on each side.

    What surrounds the tensor stays zero as long as writes go through it: a convolution can address pixels as rows of
    one matrix [T, (H + 2) (W + 2), C] and finds its zero padding there.
    """
    b, c, t, h, w = shape
    return torch.zeros(b, t, h + 2, w + 2, c, **options).permute(0, 4, 1, 2, 3)[..., 1:-1, 1:-1]


def halo(x: torch.Tensor) -> torch.Tensor | None:
    """The whole [B, C, T, H + 2, W + 2] of a tensor made by :func:`haloed`, or of some of its frames; None for others.

    Only the strides tell: a crop of a larger picture, which has no zeros around it, looks the same.
    """
    if x.ndim != 5:
        return None
    (b, c, t, h, w), (sb, sc, st, sh, sw) = x.shape, x.stride()
    offset = x.storage_offset() - sh - sw
    fits = sc == 1 and sw == c and sh == (w + 2) * sw and st == (h + 2) * sh and (b == 1 or sb % st == 0)
    if not fits or offset < 0:
        return None
    return x.as_strided((b, c, t, h + 2, w + 2), x.stride(), offset)
