"""Guidance and the Euler update in one launch.

    v = v_u + g (v_c - v_u),   z <- z + dt v

It makes three reads and one write for each element, where eager PyTorch makes five passes. Guidance and step size are
read per session on the device, so that sessions at different steps share a launch. It computes in fp32 and rounds z
once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from rest_fast.kernels import rows as tile
from rest_fast.kernels.cfg_euler_step.kernel import cfg_euler_step_kernel

# 8 elements a thread: 16 bytes of bf16, two times 16 of fp32; 98304 elements a session (rest-512) make 96 programs.
RUN, WARPS = 1024, 4


def supports(spec: Any) -> tuple[bool, str]:
    if spec.get("velocity") == str(torch.float64):
        return False, "velocities of float32, bfloat16 and float16 only, got torch.float64"
    return tile.fits(spec)


def launch(
    z: torch.Tensor,  # [S, N, C], written
    v_cond: torch.Tensor,  # [S, N, C], fp32, bf16 or fp16, as the next
    v_uncond: torch.Tensor,
    guidance: torch.Tensor,  # fp32 [S]
    dt: torch.Tensor,  # fp32 [S]
) -> None:
    sessions, numel = z.shape[0], z.shape[1] * z.shape[2]
    if sessions * numel == 0:
        return
    with tile.on(z):
        cfg_euler_step_kernel[(sessions * triton.cdiv(numel, RUN),)](
            *(z, v_cond, v_uncond, guidance, dt, numel), BLOCK=RUN, num_warps=WARPS
        )
