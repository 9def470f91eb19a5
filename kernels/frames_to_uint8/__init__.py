"""Decoder output in -1..1 to 8-bit pictures, channels last: one read, one write.

    out = round(clamp((x + 1) 127.5, 0, 255)),  ties to even, NaN to 0

The tile [pixels, 4], whose fourth channel is masked, is read in the memory order of x, 16 bytes at a time if pixels are
neighbours there. It is transposed in shared memory, so that a warp writes 24 bytes in a row. The bytes are those of the
reference: with the sum before the product nothing can be contracted, and adding 2^23 rounds as ``torch.round`` does.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from rest_fast.kernels import pixels, rows
from rest_fast.kernels.frames_to_uint8.kernel import frames_to_uint8_kernel

BLOCK, WARPS = 1024, 4  # 8 pixels a thread: one load of 16 bytes of bf16 and two of fp32, for each channel


def supports(spec: Any) -> tuple[bool, str]:
    count = (spec.get("frames") or 0) * (spec.get("height") or 0) * (spec.get("width") or 0)
    if count >= pixels.LIMIT:
        return False, f"fewer than {pixels.LIMIT} pixels, got {count}"
    return pixels.fits(spec)


def arguments(x: torch.Tensor, out: torch.Tensor) -> dict[str, Any]:
    """Everything that the kernel is called with, by name."""
    b, _, t, h, w = x.shape
    axes, (four,) = pixels.coalesced((b, t, h, w), pixels.pixel_strides(x))
    steps = {f"x_{axis}": step for axis, step in zip("bthwc", (*four, x.stride(1)), strict=True)}
    return {"x": x, "out": out, "pixels": b * t * h * w, **axes, **steps, "BLOCK": BLOCK, "num_warps": WARPS}


def launch(
    x: torch.Tensor,  # [B, 3, T, H, W], any strides
    out: torch.Tensor,  # uint8 [B, T, H, W, 3], contiguous, written
) -> None:
    if x.numel() == 0:
        return
    call = arguments(x, out)
    with rows.on(x):
        frames_to_uint8_kernel[(triton.cdiv(call["pixels"], BLOCK),)](**call)
