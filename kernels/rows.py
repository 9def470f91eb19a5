"""Shared by the kernels in which one program handles the row of one token: block, warps, limits, launch device."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 8192  # channels: a row of these takes 32 per thread at 8 warps; wider rows would spill


def block(width: int) -> int:
    """Channels that a program holds: the next power of two, as Triton's tensors need."""
    return triton.next_power_of_2(width)


def warps(elements: int) -> int:
    """Warps for a tile of this many elements: 8 per thread, one load of 16 bytes of bf16; more of them beyond 2048."""
    return min(max(elements // 256, 1), 8)


def fits(spec: Any) -> tuple[bool, str]:
    """Whether a row of that dtype and width fits into one program."""
    if spec.dtype not in DTYPES:
        return False, f"float32, bfloat16 and float16 only, got {spec.dtype}"
    width = spec.get("width") or 0
    return (False, f"rows of at most {WIDEST} channels, got {width}") if width > WIDEST else (True, "")


def on(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context in which the device of x is current, since Triton launches there; the interpreter needs none."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
