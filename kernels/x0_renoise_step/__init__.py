"""Clean latents from the velocity and fresh noise mixed in again, in one launch.

    z <- (1 - after) (z - now v) + after noise,   from token ``held`` of a session on

It makes three reads and one write for each element, where eager PyTorch makes six passes. Noise levels and the count of
tokens that stay are read per session on the device, so that sessions at different steps share a launch. It computes in
fp32 and rounds z once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from rest_fast.kernels import rows as tile
from rest_fast.kernels.x0_renoise_step.kernel import x0_renoise_step_kernel

# 8 elements a thread: 16 bytes of bf16, two times 16 of fp32; 163840 elements a session (FlashHead) make 160 programs.
RUN, WARPS = 1024, 4


def supports(spec: Any) -> tuple[bool, str]:
    if spec.get("velocity") == str(torch.float64):
        return False, "velocities of float32, bfloat16 and float16 only, got torch.float64"
    return tile.fits(spec)


def launch(
    z: torch.Tensor,  # [S, N, C], written
    velocity: torch.Tensor,  # [S, N, C], fp32, bf16 or fp16
    noise: torch.Tensor,  # [S, N, C], dtype of z
    now: torch.Tensor,  # fp32 [S]
    after: torch.Tensor,  # fp32 [S]
    held: torch.Tensor,  # int32 [S]
) -> None:
    sessions, tokens, channels = z.shape
    numel = tokens * channels
    if sessions * numel == 0:
        return
    with tile.on(z):
        x0_renoise_step_kernel[(sessions * triton.cdiv(numel, RUN),)](
            *(z, velocity, noise, now, after, held, numel, channels), BLOCK=RUN, num_warps=WARPS
        )
