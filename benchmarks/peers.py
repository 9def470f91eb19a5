"""Block and step as public video stacks write them: eager PyTorch, and a cache that is copied at every layer and step.

What stacks do, read in their sources (own words, own code), from the dearest to the cheapest:

* ``roll``: LongLive (``wan/modules/causal_model.py``) at the first step of a chunk. Clone keys and values of the
  window, shift what stays by one more clone, write the chunk, concatenate sink and rest for the attention; then shift
  and write the kept cache as well.
* ``clone``: LongLive at the other steps of a chunk, the same without the shifts.
* ``concatenate``: the past, kept apart, and the chunk in one concatenation each of keys and values (Live Avatar).
* ``write``: Self-Forcing and FastVideo at the steps of a chunk after its first, which shifts: write the chunk, attend
  to a slice. Their host waits (counters read from the device, layer by layer) are left out.

Around it stands the block of LTX-Video: norms by ``F.rms_norm``, per-frame modulation with the block's table added at
every step, rotation in fp32 by ready tables. In the peers' favour, so that only the glue differs: QKV is one product
(stacks have three), keys and values of text and audio are ready, and so is the embedding of the noise level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

KV = tuple[torch.Tensor, torch.Tensor]
STYLES = ("roll", "clone", "concatenate", "write")  # methods of Window


@dataclass
class Window:
    """Keys and values of one layer in the order of time: sink, chunks; [B, slots, H, D]."""

    k: torch.Tensor
    v: torch.Tensor
    sink: int  # tokens
    chunk: int

    def write(self, k: torch.Tensor, v: torch.Tensor) -> KV:
        """k, v [B, chunk, H, D] of the current chunk -> what the chunk sees, [B, slots, H, D]; so do all of these."""
        self.k[:, -self.chunk :], self.v[:, -self.chunk :] = k, v
        return self.k, self.v

    def concatenate(self, k: torch.Tensor, v: torch.Tensor) -> KV:
        past = self.k.shape[1] - self.chunk
        return torch.cat([self.k[:, :past], k], 1), torch.cat([self.v[:, :past], v], 1)

    def clone(self, k: torch.Tensor, v: torch.Tensor) -> KV:
        seen = self._joined(self.k.clone(), k), self._joined(self.v.clone(), v)
        self.write(k, v)
        return seen

    def roll(self, k: torch.Tensor, v: torch.Tensor) -> KV:
        seen = self._joined(self._shifted(self.k.clone()), k), self._joined(self._shifted(self.v.clone()), v)
        self._shifted(self.k), self._shifted(self.v)
        self.write(k, v)
        return seen

    def _joined(self, cache: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        cache[:, -self.chunk :] = new
        return torch.cat([cache[:, : self.sink], cache[:, self.sink :]], 1)

    def _shifted(self, cache: torch.Tensor) -> torch.Tensor:
        """The oldest chunk leaves; its successors move into its place."""
        cache[:, self.sink : -self.chunk] = cache[:, self.sink + self.chunk :].clone()
        return cache


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """All [B, tokens, H, D] -> [B, tokens, H, D], a view."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


def pair_tables(table: torch.Tensor) -> KV:
    """[N, W / 2, 2] of cos and sin -> cos, sin [N, W], each value for both channels of its pair."""
    cos, sin = table.unbind(-1)
    return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)


def rotate(x: torch.Tensor, tables: KV) -> torch.Tensor:
    """x [B, N, W] by cos, sin [N, W], in the tables' precision, rounded once."""
    cos, sin = tables
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], -1).flatten(-2)
    return (x.to(cos.dtype) * cos + turned.to(cos.dtype) * sin).to(x.dtype)


def heads(qkv: torch.Tensor, q_weight, k_weight, tables: KV, count: int, eps: float) -> tuple[torch.Tensor, ...]:
    """[B, N, 3 W] -> normed and rotated q, k and v, [B, N, H, D]."""
    q, k, v = qkv.chunk(3, -1)
    q = rotate(F.rms_norm(q, q_weight.shape, q_weight, eps), tables)
    k = rotate(F.rms_norm(k, k_weight.shape, k_weight, eps), tables)
    return q.unflatten(-1, (count, -1)), k.unflatten(-1, (count, -1)), v.unflatten(-1, (count, -1))


def modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """x [B, N, W]; scale, shift [B, F, W] of the latent frames."""
    y = F.rms_norm(x, x.shape[-1:], eps=eps).unflatten(1, (scale.shape[1], -1))
    return (y * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2)


def gated(x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    if gate is None:
        return x + branch
    return x + (branch.unflatten(1, (gate.shape[1], -1)) * gate[:, :, None]).flatten(1, 2)


def cross_attention(q: torch.Tensor, weight: torch.Tensor, kv: KV, eps: float) -> torch.Tensor:
    """q [B, N, W] sees k, v [B or 1, F, A, H, D]: the tokens of latent frame i those of frame i."""
    frames, count, dim = kv[0].shape[1], *kv[0].shape[3:]
    q = F.rms_norm(q, weight.shape, weight, eps)
    seen = (x.expand(q.shape[0], -1, -1, -1, -1).flatten(0, 1) for x in kv)
    out = sdpa(q.reshape(q.shape[0] * frames, -1, count, dim), *seen)
    return out.reshape(q.shape)


def block(
    weights: torch.nn.Module,
    x: torch.Tensor,
    six: torch.Tensor,
    tables: KV,
    remember: Callable[[torch.Tensor, torch.Tensor], KV],
    text: KV | None,
    audio: KV | None,
    count: int,
) -> torch.Tensor:
    """One block on x [B, N, W] with the weights of a ``Block``: six [B, F, 6, W], ``remember`` a method of a
    :class:`Window`, ``count`` heads."""
    shift1, scale1, gate1, shift2, scale2, gate2 = (weights.table + six).unbind(2)
    attn, eps = weights.attn, weights.qk_eps
    q, k, v = heads(attn.qkv(modulate(x, scale1, shift1, weights.eps)), attn.q_norm, attn.k_norm, tables, count, eps)
    x = gated(x, attn.out(sdpa(q, *remember(k, v)).flatten(2)), gate1)
    for branch, kv in ((weights.text, text), (weights.audio, audio)):
        if branch is not None and kv is not None:
            x = gated(x, branch.out(cross_attention(branch.q(x), branch.q_norm, kv, eps)), None)
    return gated(x, weights.mlp(modulate(x, scale2, shift2, weights.eps)), gate2)


@dataclass
class Known:
    """What a step needs beside weights, of its B lanes; those without a condition come last."""

    six: torch.Tensor  # [B, F, 6, W]
    final: torch.Tensor  # [2, B, F, W]: shift and scale before the output
    tables: KV
    windows: dict[str, list[Window]]  # by style, one of each layer
    text: list[KV | None]  # of each layer
    audio: list[KV | None]

    def to(self, dtype: torch.dtype, style: str) -> Known:
        """A copy in another precision, with the windows of one style."""

        def pair(kv: KV | None) -> KV | None:
            return None if kv is None else (kv[0].to(dtype), kv[1].to(dtype))

        windows = [
            Window(w.k.to(dtype, copy=True), w.v.to(dtype, copy=True), w.sink, w.chunk) for w in self.windows[style]
        ]
        cos, sin = (table.to(dtype) for table in self.tables)
        text, audio = ([pair(kv) for kv in found] for found in (self.text, self.audio))
        return Known(self.six.to(dtype), self.final.to(dtype), (cos, sin), {style: windows}, text, audio)


def step(
    dit: torch.nn.Module,
    z: torch.Tensor,
    known: Known,
    style: str,
    guidance: float,
    dt: float,
    function: Callable[..., torch.Tensor] = block,
) -> None:
    """z [S, N, C] += dt v, of S or, with guidance, 2 S lanes; ``function`` is :func:`block`, as it is or compiled."""
    lanes, heads = len(known.six), dit.config.heads
    x = dit.proj_in(torch.cat([z] * (lanes // len(z))).to(known.six.dtype))
    layers = zip(dit.blocks, known.windows[style], known.text, known.audio, strict=True)
    for weights, window, text, audio in layers:
        x = function(weights, x, known.six, known.tables, getattr(window, style), text, audio, heads)
    v = dit.output(x, known.final).to(z.dtype)
    if lanes > len(z):
        cond, uncond = v.chunk(2)
        v = uncond + guidance * (cond - uncond)
    z.add_(v, alpha=dt)
