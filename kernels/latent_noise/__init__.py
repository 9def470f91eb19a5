"""Noise of latent frames in one launch: Philox4x32-10 and Box-Muller.

    out[f, i] = a normal number of (seed, latent index, purpose, i)

Seed, index and purpose of each frame are read on the device, so that a captured graph draws other noise at each replay.
A thread makes the four numbers of one Philox block, which it stores as 16 bytes. Integers are those of the reference.
The transform runs in float64, of which a number takes some 80 operations, and is rounded once; see ``kernel.py`` for
its errors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from rest_fast.kernels import rows as tile
from rest_fast.kernels.latent_noise.kernel import latent_noise_kernel

BLOCKS, WARPS = 128, 4  # a block of four numbers a thread; 32768 numbers a frame (rest-512) make 64 programs
MOST = 1 << 30  # numbers of a frame, and programs: 32 bits count them


def supports(spec: Any) -> tuple[bool, str]:
    frames, count = spec.get("frames") or 0, spec.get("count") or 0
    if count > MOST or frames * triton.cdiv(count, 4 * BLOCKS) > MOST:
        return False, f"at most {MOST} numbers a frame and {MOST} programs, got {frames} frames of {count}"
    return tile.fits(spec)


def launch(
    out: torch.Tensor,  # fp32 [frames, count], written
    words: torch.Tensor,  # int32 [frames, 5]
) -> None:
    frames, count = out.shape
    if frames * count == 0:
        return
    with tile.on(out):
        latent_noise_kernel[(frames * triton.cdiv(count, 4 * BLOCKS),)](
            *(out, words, count), BLOCKS=BLOCKS, num_warps=WARPS
        )
