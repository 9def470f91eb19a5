"""Attention to the audio of a latent frame, its output projection and the residual: a product of small rank.

    x <- x + base_i + sum over a and h of share[a, h] update_i[a, h]

A program takes 16 tokens of one frame. It reads their queries a group of heads at a time and sums the squares on the
way, since the norm spans all heads; of a query no more is left than a number for each head and audio token. These
shares stay in registers as the left side of a product on tensor cores, for one block of channels of x after the other.
No attention output is written. Where there are few tokens, programs share the channels of a row, and each computes the
shares anew: reading q again costs less than a second launch.
A lane that hears nothing reads one constant row. Which lanes those are is read on the device.
Rounding: fp32 with one rounding; in low precision the shares are rounded before the product, as eager attention rounds
its weights.
Limits: A at most ``MOST``, a rank (padded heads x padded A) of at most ``RANK``, head size at most ``DEEPEST``.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from rest_fast.kernels import rows as tile
from rest_fast.kernels.frame_audio_update.kernel import update_kernel

MOST = 4  # audio tokens
RANK = 256  # of the product, padded
DEEPEST = 128
ROWS = 16  # the least that tensor cores take
HELD = 8192  # channels of 16 queries at a time: 64 per thread at 4 warps
COLUMNS = 64  # channels of x at a time
FULL = 132  # programs: one for each multiprocessor of an H200


def plan(
    lanes: int, frames: int, tokens: int, audio: int, heads: int, dim: int, width: int, dtype: torch.dtype
) -> dict[str, int]:
    """The constants of a launch.

    Programs share a row's channels, at most by four, while that fills the machine. The next block of updates is copied
    while one is used, and in low precision the one after that, which in fp32 takes more shared memory than sm_120 has.
    """
    deep = tile.block(dim)
    padded = max(tile.block(heads), 16 // tile.block(audio))  # tensor cores add up at least 16 products
    group = min(padded, max(HELD // (ROWS * deep), 1))
    groups = padded // group
    programs, parts = lanes * frames * triton.cdiv(tokens, ROWS), 1
    while parts < 4 and programs * parts < FULL and parts * COLUMNS < width:
        parts *= 2
    blocks = triton.cdiv(triton.cdiv(width, COLUMNS), parts)
    shape = {"OTHERS": audio - 1, "HEADS": heads, "DIM": dim, "WIDTH": width, "ROWS": ROWS}
    tiles = {"PART": blocks * COLUMNS, "COLUMNS": COLUMNS, "AUDIO_BLOCK": tile.block(audio)}
    tiles |= {"GROUPS": groups, "GROUP": group, "DIM_BLOCK": deep}
    return shape | tiles | {"num_warps": 4, "num_stages": 2 if dtype == torch.float32 else 3}


def supports(spec: Any) -> tuple[bool, str]:
    audio, heads, dim = (spec.get(name) or 0 for name in ("audio", "heads", "head_dim"))
    if audio > MOST:
        return False, f"at most {MOST} audio tokens, got {audio}"
    if dim > DEEPEST:
        return False, f"head_dim of at most {DEEPEST}, got {dim}"
    if heads and tile.block(heads) * tile.block(audio) > RANK:
        return False, f"a padded rank of at most {RANK}, got {tile.block(heads)} heads x {tile.block(audio)} tokens"
    return tile.fits(spec)


def launch(
    x: torch.Tensor,  # [B, F T, W], written
    q: torch.Tensor,  # [C, F T, H D]
    keys: torch.Tensor,  # [S, F, A - 1, H, D]
    base: torch.Tensor,  # [S, F, W]
    update: torch.Tensor,  # [S, F, A - 1, H, W]
    null: torch.Tensor,  # [W]
    *,
    slot: torch.Tensor,  # int32 [C]
    eps: float,
) -> None:
    (lanes, rows, width), (slots, frames, others, heads, dim) = x.shape, keys.shape
    if lanes * rows == 0:
        return
    constants = plan(lanes, frames, rows // frames, others + 1, heads, dim, width, x.dtype)
    grid = (lanes * frames * triton.cdiv(rows // frames, ROWS), triton.cdiv(width, constants["PART"]))
    with tile.on(x):
        update_kernel[grid](
            *(x, q, keys, base, update, null, slot), *(len(slot), slots, frames, rows // frames, eps), **constants
        )
