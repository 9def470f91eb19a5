"""``frame_audio_update``: attention to the few audio tokens of a latent frame, output projection and residual, in one.

    x <- x + base_i + sum over a and h of share[a, h] update_i[a, h]

The shares of a token's attention add up to one, so with v_0 for the first value the output projection of what a token
sees is ``Wo v_0 + bo``, the same for all tokens of the frame, and ``Wo (v_a - v_0)``, head by head, times the share of
the other tokens a = 1 .. A - 1. Both are constants of a chunk (:func:`audio_constants`): a product of rank H (A - 1)
replaces the projection of every token. Softmax does not change when a number is taken off all scores, so keys are kept
as differences from the first, too, and carry scale and norm weight: of two audio tokens a share is one sigmoid.
A lane that hears nothing (the null code for every audio token) has equal values, hence no update: it adds a constant
and needs no query.

Constants belong to slots of a pool, not to lanes, and each lane names its slot in a device integer. So a captured step
serves any sessions in any lanes.

There is one rounding mode: fp32 inside, and x rounded once. Triton in low precision is the exception: its tensor cores
take shares in the dtype of x.
"""

from __future__ import annotations

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, OpError, Spec, expect, expect_float, expect_range
from rest_fast.ops.qk_norm_rope_cache import rms_norm

NAME = "frame_audio_update"
MAX_RANK = 512  # kMaxRank of csrc/ops/frame_audio_update.h
WIDEST = 0  # vectors as wide as the machine has
MOST = 4  # audio tokens of a frame; the rank of the update grows with them, the projection that it saves does not

Constants = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def audio_constants(
    k: torch.Tensor,  # [S, F, A, H, D]: normed
    v: torch.Tensor,  # [S, F, A, H, D]
    q_weight: torch.Tensor,  # [W], of the norm of q
    out_weight: torch.Tensor,  # [W, H D]
    out_bias: torch.Tensor,  # [W]
) -> Constants:
    """keys [S, F, A - 1, H, D], base [S, F, W], update [S, F, A - 1, H, W]. Differentiable."""
    linear = torch.nn.functional.linear
    first, others = first_and_others(v)
    return audio_keys(k, q_weight), linear(first, out_weight, out_bias), linear(others, out_weight)


def audio_keys(k: torch.Tensor, q_weight: torch.Tensor) -> torch.Tensor:
    """[S, F, A - 1, H, D]: differences from the first key, times scale and weight of the norm of q."""
    heads, dim = k.shape[-2:]
    wide = torch.promote_types(k.dtype, torch.float32)
    keys = (k[:, :, 1:].to(wide) - k[:, :, :1].to(wide)) * q_weight.to(wide).view(heads, dim) * dim**-0.5
    return keys.to(k.dtype)


def first_and_others(v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the output projection turns into base and update: [S, F, H D], and [S, F, A - 1, H, H D].

    One product for all heads, each with zeros in place of the others: on a CPU twice as fast as one product a head.
    """
    own = torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)[:, :, None]
    return v[:, :, 0].flatten(-2), ((v[:, :, 1:] - v[:, :, :1])[..., None, :, :] * own).flatten(-2)


def audio_update(
    x: torch.Tensor,  # [B, F T, W]
    q: torch.Tensor,  # [B, F T, H D]: the projection, before its norm
    keys: torch.Tensor,  # [B, F, A - 1, H, D]
    base: torch.Tensor,  # [B, F, W]
    update: torch.Tensor,  # [B, F, A - 1, H, W]
    *,
    eps: float,
) -> torch.Tensor:
    """Functional reference, ``[B, F T, W]``. Differentiable."""
    frames, _, heads, dim = keys.shape[1:]
    q = rms_norm(q, None, eps).unflatten(1, (frames, -1)).unflatten(-1, (heads, dim))
    score = torch.einsum("bfthd,bfahd->bftah", q, keys.to(q.dtype))
    share = torch.nn.functional.pad(score, (0, 0, 1, 0)).softmax(-2)[..., 1:, :]  # the first key has a score of zero
    branch = base.to(q.dtype)[:, :, None] + torch.einsum("bftah,bfahw->bftw", share, update.to(q.dtype))
    return (x + branch.flatten(1, 2)).to(x.dtype)


def check(x, q, keys, base, update, null, *, slot, eps) -> Spec:
    expect_float(NAME, "x", x)
    expect(NAME, "x", x, (-1, -1, -1))
    lanes, tokens, width = x.shape
    same = {"dtype": x.dtype, "device": x.device}
    expect(NAME, "keys", keys, (-1, -1, -1, -1, -1), **same)
    slots, frames, others, heads, dim = keys.shape
    if 0 in (slots, frames, others) or tokens % frames:
        raise OpError(
            f"{NAME}: argument keys: expected [S, F, A - 1, H, D] with F dividing {tokens} and no size of zero, "
            f"got {list(keys.shape)}"
        )
    expect(NAME, "q", q, (-1, tokens, heads * dim), **same)
    if q.shape[0] > lanes:
        raise OpError(f"{NAME}: argument q: expected at most {lanes} lanes, got {q.shape[0]}")
    expect(NAME, "base", base, (slots, frames, width), **same)
    expect(NAME, "update", update, (slots, frames, others, heads, width), **same)
    expect(NAME, "null", null, (width,), **same)
    expect(NAME, "slot", slot, (q.shape[0],), dtype=torch.int32, device=x.device)
    return Spec(
        x.device.type,
        x.dtype,
        (
            ("lanes", lanes),
            ("hearing", q.shape[0]),
            ("frames", frames),
            ("tokens", tokens),
            ("audio", others + 1),
            ("heads", heads),
            ("head_dim", dim),
            ("width", width),
        ),
    )


def ranges(x, q, keys, base, update, null, *, slot, eps) -> None:
    expect_range(NAME, "slot", slot, -1, keys.shape[0] - 1)


def reference(
    x: torch.Tensor,
    q: torch.Tensor,
    keys: torch.Tensor,
    base: torch.Tensor,
    update: torch.Tensor,
    null: torch.Tensor,
    *,
    slot: torch.Tensor,
    eps: float,
) -> None:
    """x += what the tokens of B lanes hear: the first C lanes the audio of their slots, the others nothing.

    Args:
        x: [B, N, W], floating. Written.
        q: [C, N, H D] with C of at most B, before its norm.
        keys: [S, F, A - 1, H, D], F dividing N, of S slots: differences from the first key, times scale and weight
            of the norm of q.
        base: [S, F, W], the projected first value, bias included.
        update: [S, F, A - 1, H, W], differences from the first value, projected head by head.
        null: [W], what a lane adds that hears nothing.
        slot: int32 [C] in [-1, S); -1: this lane hears nothing.
        eps: of the norm of q.
    """
    # No decision by the values of slot: the host would have to wait for them.
    lanes, slots = len(slot), slot.clamp(min=0).long()
    heard = audio_update(x[:lanes], q, keys[slots], base[slots], update[slots], eps=eps)
    x.add_(null)
    x[:lanes] = torch.where((slot < 0)[:, None, None], x[:lanes], heard)


def _arguments(x, q, keys, base, update, null, *, slot, eps) -> tuple[int | float, ...]:
    """The arguments that csrc/ops/frame_audio_update.h lists."""
    slots, frames, others, heads, dim = keys.shape
    return (
        *(t.data_ptr() for t in (x, q, keys, base, update, null, slot)),
        *x.shape,
        q.shape[0],
        slots,
        frames,
        others,
        heads,
        dim,
        WIDEST,
        eps,
        native.DTYPES[x.dtype],
    )


def _unfit(spec: Spec) -> str:
    rank = (spec.get("heads") or 0) * ((spec.get("audio") or 1) - 1)
    too_high = f"rank {rank} of the update, heads x (audio tokens - 1), is over {MAX_RANK}"
    return too_high if rank > MAX_RANK else ""


frame_audio_update = Op(
    f"{NAME}(Tensor(a!) x, Tensor q, Tensor keys, Tensor base, Tensor update, Tensor null, *, Tensor slot, float eps)",
    check=check,
    ranges=ranges,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, _unfit, measured="audio_and_paint_cpu.json"),
        native.cuda_backend(NAME, _arguments, _unfit),
    ),
)
