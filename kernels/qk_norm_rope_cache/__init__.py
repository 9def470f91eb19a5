"""Q and K normed and rotated, K and V into the lane's slots: one pass over the fused projection.

    q' = rope(rms_norm(q) q_weight) -> q_out;   k' likewise, v as it is -> the cache

One program holds the whole row of one token, because the norm spans all heads: qkv is read once and every result is
written once, where eager PyTorch runs a dozen kernels. q and k share the angles, which come from three small tables;
their pairs alternate over the full width, or (by head) lie one axis after another in every head.
A lane with an index out of range writes nothing at all. Statistics and rotation are fp32, with one rounding.
Limits: W at most ``rows.WIDEST``; lanes must not share slots, except in scratch rows that nobody reads.
"""

from __future__ import annotations

from typing import Any

import torch

from rest_fast.kernels import rows as tile
from rest_fast.kernels.qk_norm_rope_cache.kernel import qk_norm_rope_cache_kernel


def plan(width: int, head: int = 0, of_t: int = 0, of_y: int = 0) -> dict[str, int]:
    """The constants of a launch; by head, the channel pairs of a head, and how many of them are those of t and y."""
    block = tile.block(width)
    return {"WIDTH": width, "BLOCK": block, "HEAD": head, "OF_T": of_t, "OF_Y": of_y, "num_warps": tile.warps(block)}


def supports(spec: Any) -> tuple[bool, str]:
    return tile.fits(spec)


def launch(
    qkv: torch.Tensor,  # [B, N, 3 W]
    q_weight: torch.Tensor,  # [W]
    k_weight: torch.Tensor,  # [W]
    rope_t: torch.Tensor,  # fp32 [positions, n, 2]
    rope_y: torch.Tensor,  # fp32 [h, n, 2]
    rope_x: torch.Tensor,  # fp32 [w, n, 2]
    k_cache: torch.Tensor,  # [rows, banks, slots, H, D], written
    v_cache: torch.Tensor,  # the same
    q_out: torch.Tensor,  # [B, N, H, D], written
    *,
    row_index: torch.Tensor,  # int32 [B], as the next three
    bank_index: torch.Tensor,
    write_slot: torch.Tensor,
    base: torch.Tensor,
    eps: float,
    rope: str = "interleaved",
) -> None:
    (lanes, tokens), (rows, banks, slots) = qkv.shape[:2], k_cache.shape[:3]
    if lanes * tokens == 0:
        return
    sizes = (rows, banks, slots, tokens, rope_t.shape[0], rope_y.shape[0], rope_x.shape[0])
    by_head = () if rope == "interleaved" else (k_cache.shape[-1] // 2, rope_t.shape[1], rope_y.shape[1])
    with tile.on(qkv):
        qk_norm_rope_cache_kernel[(lanes * tokens,)](
            *(qkv, q_weight, k_weight, rope_t, rope_y, rope_x, k_cache, v_cache, q_out),
            *(row_index, bank_index, write_slot, base),
            *sizes,
            eps,
            **plan(qkv.shape[2] // 3, *by_head),
        )
