"""``frame_cross_attention``: the tokens of latent frame i see the audio tokens of frame i, and no others.

    out = softmax(scale rms_norm(q) K_i^T) V_i

Keys (normed) and values are computed once per chunk. Paper section 3.2: frame-level audio cross-attention, no cache.
The residual is the next ``gate_norm_modulate``'s, after the output projection.
"""

from __future__ import annotations

import torch

from rest_fast.ops import triton_kernels
from rest_fast.ops.dispatch import Op, Spec, expect, expect_float
from rest_fast.ops.qk_norm_rope_cache import rms_norm

NAME = "frame_cross_attention"


def frame_attention(
    q: torch.Tensor,  # [B, F T, W]: the projection, before its norm
    q_weight: torch.Tensor,  # [W]
    k: torch.Tensor,  # [B, F, A, H, D]: normed
    v: torch.Tensor,  # [B, F, A, H, D]
    *,
    eps: float,
) -> torch.Tensor:
    """Functional reference, ``[B, F T, W]``. Differentiable."""
    frames, heads, dim = k.shape[1], k.shape[3], k.shape[4]
    q = rms_norm(q, q_weight, eps).unflatten(1, (frames, -1)).unflatten(-1, (heads, dim))
    score = torch.einsum("bfthd,bfahd->bfhta", q, k.to(q.dtype)) * dim**-0.5
    out = torch.einsum("bfhta,bfahd->bfthd", score.softmax(-1), v.to(q.dtype))
    return out.flatten(1, 2).flatten(2).to(v.dtype)


def check(q, q_weight, k, v, out, *, eps) -> Spec:
    expect_float(NAME, "q", q)
    expect(NAME, "q", q, (-1, -1, -1))
    expect(NAME, "k", k, (q.shape[0], -1, -1, -1, -1), dtype=q.dtype, device=q.device)
    lanes, frames, audio, heads, dim = k.shape
    expect(NAME, "v", v, (lanes, frames, audio, heads, dim), dtype=q.dtype, device=q.device)
    tokens = -(-q.shape[1] // max(frames, 1)) * frames
    expect(NAME, "q", q, (lanes, tokens, heads * dim))
    expect(NAME, "q_weight", q_weight, (heads * dim,), dtype=q.dtype, device=q.device)
    expect(NAME, "out", out, tuple(q.shape), dtype=q.dtype, device=q.device)
    return Spec(
        q.device.type,
        q.dtype,
        (("lanes", lanes), ("frames", frames), ("tokens", q.shape[1]), ("audio", audio), ("width", heads * dim)),
    )


def reference(q, q_weight, k, v, out, *, eps) -> None:
    out.copy_(frame_attention(q, q_weight, k, v, eps=eps))


frame_cross_attention = Op(
    f"{NAME}(Tensor q, Tensor q_weight, Tensor k, Tensor v, Tensor(a!) out, *, float eps)",
    check=check,
    reference=reference,
    backends=(triton_kernels.backend(NAME),),
)
