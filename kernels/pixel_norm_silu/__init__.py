"""RMS norm over the channels of each pixel, optional scale and shift, SiLU: one read and one write.

    out = silu(x / sqrt(mean_c x^2 + eps) (1 + scale) + shift)

There is one kernel for all layouts. A program holds a tile of pixels with all their channels in registers, so nothing
is read twice. For the load and for the store separately, neighbouring threads follow the axis of stride 1; if these
differ, the tile is transposed in shared memory. Statistics and SiLU are fp32, with one rounding.
Limits: at most ``WIDEST`` channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from rest_fast.kernels import pixels, rows
from rest_fast.kernels.pixel_norm_silu.kernel import pixel_norm_silu_kernel

WIDEST = 8192  # channels; a tile of one pixel is 32 a thread
TILE = 4096  # elements: 32 a thread, four loads of 16 bytes of bf16 in flight
RUN = 16  # pixels of a tile if pixels are neighbours in memory: 32 bytes of bf16, the unit of a GPU's memory
LARGEST = 16384  # elements: 64 a thread at 8 warps; more would spill


def plan(channels: int, planar: bool) -> dict[str, int]:
    """Constants of a launch; ``planar``: pixels, not channels, lie side by side on either end."""
    block = triton.next_power_of_2(channels)
    tile = max(TILE // block, 1)
    if planar:
        tile = max(tile, min(RUN, LARGEST // block))
    return {"C": channels, "BLOCK_P": tile, "BLOCK_C": block, "num_warps": 4 if tile * block <= 2 * TILE else 8}


def supports(spec: Any) -> tuple[bool, str]:
    channels, count = spec.get("channels") or 0, spec.get("pixels") or 0
    if channels > WIDEST:
        return False, f"at most {WIDEST} channels, got {channels}"
    if count >= pixels.LIMIT:
        return False, f"fewer than {pixels.LIMIT} pixels, got {count}"
    return pixels.fits(spec)


def arguments(
    x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, out: torch.Tensor, eps: float
) -> dict[str, Any]:
    """Everything that the kernel is called with, by name."""
    b, c, t, h, w = x.shape
    axes, strides = pixels.coalesced((b, t, h, w), pixels.pixel_strides(x), pixels.pixel_strides(out))
    steps = {
        f"{name}_{axis}": step
        for name, tensor, four in zip(("x", "out"), (x, out), strides, strict=True)
        for axis, step in zip("bthwc", (*four, tensor.stride(1)), strict=True)
    }
    tensors = {"x": x, "scale": scale, "shift": shift, "out": out}
    planar = c > 1 and (x.stride(1) != 1 or out.stride(1) != 1)
    return {**tensors, "pixels": b * t * h * w, "eps": eps, **axes, **steps, **plan(c, planar)}


def launch(
    x: torch.Tensor,  # [B, C, T, H, W], any strides
    scale: torch.Tensor | None,  # [C]
    shift: torch.Tensor | None,  # [C]
    out: torch.Tensor,  # as x, any strides, written
    *,
    eps: float,
) -> None:
    if x.numel() == 0:
        return
    call = arguments(x, scale, shift, out, eps)
    with rows.on(x):
        pixel_norm_silu_kernel[(triton.cdiv(call["pixels"], call["BLOCK_P"]),)](**call)
