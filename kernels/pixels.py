"""The pixels of tensors [B, C, T, H, W] with any strides: axes merged on the host, addresses found in the kernel.

Axes that follow one another in memory, in every tensor of the call, are merged into one, so that the compiler sees long
runs and loads 16 bytes at a time. A contiguous tensor has two axes left (clip, pixel), a ``channels_last_3d`` one has a
single axis, and a few frames inside a longer buffer have two.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIMIT = 2**31 - 2**13  # pixel numbers have 32 bits, and a tile may reach beyond the last pixel; addresses have 64


def fits(spec: Any) -> tuple[bool, str]:
    """Whether a call of that dtype may run here."""
    if spec.dtype not in DTYPES:
        return False, f"float32, bfloat16 and float16 only, got {spec.dtype}"
    return True, ""


def pixel_strides(x: torch.Tensor) -> tuple[int, ...]:
    """Strides of B, T, H, W."""
    return tuple(x.stride(axis) for axis in (0, 2, 3, 4))


def coalesced(sizes: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[dict[str, int], list[tuple[int, ...]]]:
    """Merge those of the axes (B, T, H, W) that are one run of memory in every tensor.

    Returns: AXES (how many are left, a constant of the kernel) with the sizes T, H and W (the outermost axis needs
    none), and for each tensor its four strides. An axis that was merged into another has size 1 and stride 0.
    """
    left: list[tuple[int, list[int]]] = []  # innermost first
    for size, *steps in reversed(list(zip(sizes, *strides, strict=True))):
        if size == 1:
            continue
        if left and all(step == left[-1][0] * inner for step, inner in zip(steps, left[-1][1], strict=True)):
            left[-1] = (left[-1][0] * size, left[-1][1])
        else:
            left.append((size, steps))
    padded = [*left, *[(1, [0] * len(strides))] * (4 - len(left))][::-1]
    _, t, h, w = (size for size, _ in padded)
    axes = {"T": t, "H": h, "W": w, "AXES": max(len(left), 1)}
    return axes, [tuple(steps[i] for _, steps in padded) for i in range(len(strides))]


@triton.jit
def offsets(pixel, T, H, W, stride_b, stride_t, stride_h, stride_w, AXES: tl.constexpr):
    """int64 offsets of numbered pixels from the start of a tensor."""
    if AXES == 1:
        return pixel.to(tl.int64) * stride_w
    at = (pixel % W).to(tl.int64) * stride_w
    pixel = pixel // W
    if AXES == 2:
        return at + pixel.to(tl.int64) * stride_h
    at += (pixel % H).to(tl.int64) * stride_h
    pixel = pixel // H
    if AXES == 3:
        return at + pixel.to(tl.int64) * stride_t
    at += (pixel % T).to(tl.int64) * stride_t
    return at + (pixel // T).to(tl.int64) * stride_b
