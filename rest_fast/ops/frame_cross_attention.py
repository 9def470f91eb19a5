"""``frame_cross_attention``: the tokens of latent frame i see the context tokens of frame i, and no others.

    out = softmax(scale rms_norm(q) K_i^T) V_i

Keys (normed) and values are computed once per chunk. Paper section 3.2: frame-level audio cross-attention, no cache.
Text attention is the same with one frame: all tokens see all keys, and all lanes share them (a batch of 1).
The next ``gate_norm_modulate`` adds the residual, after the output projection.

There is one rounding mode: fp32 inside, and out rounded once, as the functional reference does. Triton with 9 keys or
more is the exception: its tensor cores take normed queries and weights in the dtype of q.
"""

from __future__ import annotations

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, OpError, Spec, expect, expect_float
from rest_fast.ops.qk_norm_rope_cache import rms_norm

NAME = "frame_cross_attention"
MAX_HEAD_DIM = 128  # kMaxHeadDim of csrc/ops/frame_cross_attention.h
WIDEST = 0  # vectors as wide as the machine has


def frame_attention(
    q: torch.Tensor,  # [B, F T, W]: the projection, before its norm
    q_weight: torch.Tensor,  # [W]
    k: torch.Tensor,  # [B or 1, F, A, H, D]: normed
    v: torch.Tensor,  # [B or 1, F, A, H, D]
    *,
    eps: float,
) -> torch.Tensor:
    """Functional reference, ``[B, F T, W]``. Differentiable."""
    frames, heads, dim = k.shape[1], k.shape[3], k.shape[4]
    k, v = (t.expand(q.shape[0], *t.shape[1:]) for t in (k, v))
    q = rms_norm(q, q_weight, eps).unflatten(1, (frames, -1)).unflatten(-1, (heads, dim))
    score = torch.einsum("bfthd,bfahd->bfhta", q, k.to(q.dtype)) * dim**-0.5
    out = torch.einsum("bfhta,bfahd->bfthd", score.softmax(-1), v.to(q.dtype))
    return out.flatten(1, 2).flatten(2).to(v.dtype)


def check(q, q_weight, k, v, out, *, eps) -> Spec:
    expect_float(NAME, "q", q)
    expect(NAME, "q", q, (-1, -1, -1))
    lanes = q.shape[0]
    shared = k.ndim == 5 and k.shape[0] == 1
    expect(NAME, "k", k, (1 if shared else lanes, -1, -1, -1, -1), dtype=q.dtype, device=q.device)
    _, frames, audio, heads, dim = k.shape
    if audio == 0:
        raise OpError(f"{NAME}: argument k: expected at least one token a frame, got shape {list(k.shape)}")
    expect(NAME, "v", v, tuple(k.shape), dtype=q.dtype, device=q.device)
    tokens = -(-q.shape[1] // max(frames, 1)) * frames
    expect(NAME, "q", q, (lanes, tokens, heads * dim))
    expect(NAME, "q_weight", q_weight, (heads * dim,), dtype=q.dtype, device=q.device)
    expect(NAME, "out", out, tuple(q.shape), dtype=q.dtype, device=q.device)
    return Spec(
        q.device.type,
        q.dtype,
        (
            ("lanes", lanes),
            ("shared", int(shared)),
            ("frames", frames),
            ("tokens", q.shape[1]),
            ("audio", audio),
            ("width", heads * dim),
            ("head_dim", dim),
        ),
    )


def reference(
    q: torch.Tensor, q_weight: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, *, eps: float
) -> None:
    """out = softmax(rms_norm(q) K_i^T / sqrt(D)) V_i of B lanes of N tokens: those of frame i see its A keys.

    Args:
        q: [B, N, H D], floating, before its norm.
        q_weight: [H D], of the norm.
        k, v: [B or 1, F, A, H, D], F dividing N; k normed. A batch of 1 is shared by all lanes.
        out: [B, N, H D]. Written.
        eps: of the norm.
    """
    out.copy_(frame_attention(q, q_weight, k, v, eps=eps))


def _arguments(q, q_weight, k, v, out, *, eps) -> tuple:
    """Those that csrc/ops/frame_cross_attention.h lists: addresses, sizes, strides."""
    batch, frames, audio, heads, dim = k.shape
    return (
        *(t.data_ptr() for t in (q, q_weight, k, v, out)),
        q.shape[0],
        batch,
        q.shape[1],
        frames,
        audio,
        heads,
        dim,
        WIDEST,
        eps,
        native.DTYPES[q.dtype],
    )


def _unfit(spec: Spec) -> str:
    dim = spec.get("head_dim") or 0
    return f"head_dim {dim} is over {MAX_HEAD_DIM}" if dim > MAX_HEAD_DIM else ""


frame_cross_attention = Op(
    f"{NAME}(Tensor q, Tensor q_weight, Tensor k, Tensor v, Tensor(a!) out, *, float eps)",
    check=check,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, _unfit, measured="ops_cpu.json"),
        native.cuda_backend(NAME, _arguments, _unfit),
    ),
)
