"""Channels into frames, rows and columns: the decoder's upsampler, without its three permutes.

A program takes the channels of a few input pixels (cells) and writes the blocks of P1 x P2 x P3 output pixels that
they become. Values are moved as integers of their size, so every real dtype of 1, 2, 4 or 8 bytes arrives bit for bit.
For the load and for the store separately, neighbouring threads follow the axis of stride 1; in between the tile is
transposed in shared memory. Transposed pictures (LTX-Video's patches) are read and written along their columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from rest_fast.kernels import pixels, rows
from rest_fast.kernels.depth_to_space.kernel import depth_to_space_kernel

KINDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MOST = 65536  # channels of the input: a cell of the largest possible block is one tile
TILE, WARPS = 4096, 4  # elements: 32 a thread, four loads of 16 bytes of bf16 in flight
SCATTERED = 1024  # the same if addresses are not consecutive, as then each one takes registers
WIDE = 128  # output channels of a tile where channels lie side by side: 256 bytes of bf16
MIXED, PLANAR = 16, 64  # cells of a tile where cells lie side by side at one end (32 bytes of bf16), or at both


def plan(channels: int, factors: tuple[int, int, int], ends: int, runs: bool) -> dict[str, int]:
    """Constants of a launch: C of out, P1 P2 P3, how many of x and out have channels side by side (0 to 2), RUNS."""
    rows, columns = triton.next_power_of_2(factors[0] * factors[1]), triton.next_power_of_2(factors[2])
    elements = max((TILE if runs else SCATTERED) // (rows * columns), 1)
    c = WIDE if ends == 2 else max(elements // (MIXED if ends == 1 else PLANAR), 1)
    c = min(c, elements, triton.next_power_of_2(channels))
    return {"BLOCK_P": elements // c, "BLOCK_C": c, "BLOCK_R": rows, "BLOCK_K": columns, "num_warps": WARPS}


def supports(spec: Any) -> tuple[bool, str]:
    if spec.dtype.is_complex:  # it may be a view that PyTorch conjugates as it reads; its bits do not tell
        return False, f"real numbers only, got {spec.dtype}"
    if spec.dtype.itemsize not in KINDS:
        return False, f"numbers of 1, 2, 4 or 8 bytes only, got {spec.dtype}"
    channels = spec.get("channels") or 0
    if channels > MOST:
        return False, f"at most {MOST} channels, got {channels}"
    count = spec.get("pixels") or 0
    if count >= pixels.LIMIT:
        return False, f"fewer than {pixels.LIMIT} pixels, got {count}"
    return True, ""


def arguments(x: torch.Tensor, out: torch.Tensor, factors: list[int], drop: int) -> dict[str, Any]:
    """Everything that the kernel is called with, by name."""
    p1, p2, p3 = factors
    swapped = x.stride(1) > x.stride(4) > x.stride(3)
    if swapped:  # pictures on their side, as for LTX-Video's patches: along the columns, then
        x, out, p2, p3 = x.transpose(3, 4), out.transpose(3, 4), p3, p2
    b, deep, t, h, w = x.shape
    channels, cells = deep // (p1 * p2 * p3), b * t * h * w
    out_b, sub_t, sub_h, sub_w = pixels.pixel_strides(out)
    blocks = (out_b, p1 * sub_t, p2 * sub_h, p3 * sub_w)
    axes, (x_four, out_four) = pixels.coalesced((b, t, h, w), pixels.pixel_strides(x), blocks)
    steps = dict(zip(("x_b", "x_t", "x_h", "x_w", "x_c"), (*x_four, x.stride(1)), strict=True))
    steps |= dict(zip(("out_b", "out_t", "out_h", "out_w", "out_c"), (*out_four, out.stride(1)), strict=True))
    steps |= {"sub_t": sub_t, "sub_h": sub_h, "sub_w": sub_w}
    sizes = {"cells": cells, "channels": channels, "frames": t, "area": h * w, "drop": drop}
    even = all(n == triton.next_power_of_2(n) for n in (p1 * p2, p3))
    runs = even and out_four[3] == p3 * sub_w
    tile = plan(channels, (p1, p2, p3), (x.stride(1) == 1) + (out.stride(1) == 1), runs)
    constants = {"DROPS": drop > 0, "RUNS": runs, "SWAPPED": swapped, "P1": p1, "P2": p2, "P3": p3}
    kind = KINDS[x.element_size()]
    return {"x": x.view(kind), "out": out.view(kind), **sizes, **axes, **steps, **constants, **tile}


def launch(
    x: torch.Tensor,  # [B, C P1 P2 P3, T, H, W], any strides
    out: torch.Tensor,  # [B, C, T P1 - drop, H P2, W P3], any strides, written
    *,
    factors: list[int],
    drop: int,
) -> None:
    if out.numel() == 0:
        return
    call = arguments(x, out, factors, drop)
    grid = triton.cdiv(call["cells"], call["BLOCK_P"]) * triton.cdiv(call["channels"], call["BLOCK_C"])
    with rows.on(x):
        depth_to_space_kernel[(grid,)](**call)
