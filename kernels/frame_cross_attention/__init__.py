"""Cross-attention to the keys of a latent frame: two audio tokens, or a whole text.

    out = softmax(rms_norm(q) q_weight K^T / sqrt(D)) V

Few keys (audio, up to ``FEW``): a program norms whole rows, since the norm spans all heads, and takes one key after the
other with an online softmax, in fp32 registers. It reads q once and writes out once. Tensor cores would be of no use.
Several tokens of a frame share each load of its keys.
Many keys (text): two launches. The first writes the normed queries into ``out``, rounded as the tensor cores need them.
In the second, a program takes one head of a tile of queries from there, runs over the keys in blocks and overwrites
what it read. With the norm in the second launch every row would be read once per head; separate scratch memory would
have to be allocated.
Rounding: fp32 with one rounding for few keys; for many, normed queries and softmax weights are rounded before the
products, as eager attention rounds them.
Lanes may share one k and one v. Limits: W at most ``rows.WIDEST``, D at most ``DEEPEST``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from rest_fast.kernels import rows as tile
from rest_fast.kernels.frame_cross_attention.kernel import few_keys_kernel, many_keys_kernel, norm_kernel

FEW = 8  # with fewer than 16 keys a product of tiles is padded, with 8 by half
DEEPEST = 128  # 256 takes more shared memory than sm_120 has
FULL = 264  # programs: two for each of the 132 multiprocessors of an H200


def plan_few(lanes: int, frames: int, tokens: int, keys: int, heads: int, dim: int) -> dict[str, int]:
    """The constants of a launch for few keys: four rows share the keys.

    Fewer rows do if that would leave half of the machine idle, or if the registers do not hold four.
    """
    blocks = {"HEADS_BLOCK": tile.block(heads), "DIM_BLOCK": tile.block(dim)}
    padded = blocks["HEADS_BLOCK"] * blocks["DIM_BLOCK"]
    rows = 4 if lanes * frames * (tokens // 4) >= FULL and 4 * padded <= tile.WIDEST else 1
    return {"KEYS": keys, "HEADS": heads, "DIM": dim, "ROWS": rows, **blocks, "num_warps": tile.warps(padded)}


def plan_norm(width: int) -> dict[str, int]:
    """The constants of the norm before many keys."""
    block = tile.block(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": tile.warps(block)}


def plan_many(tokens: int, keys: int, heads: int, dim: int, dtype: torch.dtype) -> dict[str, int]:
    """The constants of a launch for many keys.

    64 rows are one wgmma of a warpgroup; 64 keys, because 128 take 255 registers on sm_80 and sm_120. Two stages copy a
    block of keys while the one before it is used; with one, sm_120 spills. Heads smaller than 32 take 32 keys: with
    64, sm_100 spills. fp32 has no tensor cores at full precision, so its tiles have to fit the registers.
    """
    exact = dtype == torch.float32
    most_rows, most_keys = 16 if exact else 64, 32 if exact or dim < 32 else 64
    return {
        "KEYS": keys,
        "HEADS": heads,
        "DIM": dim,
        "ROWS": min(max(tile.block(tokens), 16), most_rows),
        "KEYS_BLOCK": min(max(tile.block(keys), 16), most_keys),
        "DIM_BLOCK": max(tile.block(dim), 16),
        "num_warps": 4,
        "num_stages": 2,
    }


def supports(spec: Any) -> tuple[bool, str]:
    if (spec.get("head_dim") or 0) > DEEPEST:
        return False, f"head_dim of at most {DEEPEST}, got {spec.get('head_dim')}"
    return tile.fits(spec)


def launch(
    q: torch.Tensor,  # [B, F T, W]
    q_weight: torch.Tensor,  # [W]
    k: torch.Tensor,  # [B or 1, F, A, H, D]
    v: torch.Tensor,  # the same
    out: torch.Tensor,  # [B, F T, W], written
    *,
    eps: float,
) -> None:
    (lanes, rows, width), (_, frames, keys, heads, dim) = q.shape, k.shape
    if lanes * rows == 0:
        return
    tokens = rows // frames
    shared = k.shape[0] == 1
    scale = dim**-0.5 * math.log2(math.e)
    with tile.on(q):
        if keys <= FEW:
            few = plan_few(lanes, frames, tokens, keys, heads, dim)
            few_keys_kernel[(lanes * frames * triton.cdiv(tokens, few["ROWS"]),)](
                *(q, q_weight, k, v, out), *(frames, tokens, eps, scale), SHARED=shared, **few
            )
            return
        norm_kernel[(lanes * rows,)](q, q_weight, out, eps, **plan_norm(width))
        many = plan_many(tokens, keys, heads, dim, q.dtype)
        many_keys_kernel[(lanes * frames * triton.cdiv(tokens, many["ROWS"]) * heads,)](
            *(out, k, v), *(frames, tokens, scale), SHARED=shared, **many
        )
