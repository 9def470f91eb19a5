"""Attention to text and to audio, and what lanes hear in a chunk.

The functional pass attends and projects. A step of few audio tokens adds an update of small rank instead, whose
constants are made once a chunk (:mod:`rest_fast.ops.frame_audio_update`). A lane of the branch without a condition
hears the null code, zeros: its values are equal, so that whatever it asks, it gets one constant vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from rest_fast import ops
from rest_fast.config import DiTConfig
from rest_fast.config.flashhead import FlashHeadDiTConfig
from rest_fast.models.linear import linear
from rest_fast.ops.derived import derived
from rest_fast.ops.frame_audio_update import MOST, audio_keys, first_and_others

fn = ops.functional
KV = tuple[torch.Tensor, torch.Tensor]


class CrossAttention(nn.Module):
    """Attention to given tokens; Q and K normed over the full width, no positions, no gate."""

    def __init__(self, config: DiTConfig | FlashHeadDiTConfig, context: int):
        super().__init__()
        w, self.heads, self.eps = config.width, config.heads, config.qk_eps
        self.q, self.kv, self.out = nn.Linear(w, w), nn.Linear(context, 2 * w), nn.Linear(w, w)
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(w)), nn.Parameter(torch.ones(w))

    def keys_values(self, context: torch.Tensor) -> KV:
        """[..., context] -> k, v [..., H, D]."""
        k, v = linear(self.kv, context).chunk(2, -1)
        k = fn.rms_norm(k, self.k_norm, self.eps).to(v.dtype)
        return k.unflatten(-1, (self.heads, -1)), v.unflatten(-1, (self.heads, -1)).contiguous()

    def attend(self, x: torch.Tensor, kv: KV) -> torch.Tensor:
        """x [B, N, W] sees all tokens of kv [1, 1, tokens, H, D] -> [B, N, W]."""
        q = fn.rms_norm(self.q(x), self.q_norm, self.eps).to(x.dtype).unflatten(-1, (self.heads, -1))
        k, v = (c[0].expand(x.shape[0], -1, -1, -1) for c in kv)
        return self.out(fn.attention(q, k, v).flatten(2))

    def step(self, x: torch.Tensor, kv: KV, scratch: torch.Tensor) -> torch.Tensor:
        """The tokens of latent frame i of x [B, N, W] see those of kv [B or 1, F, tokens, H, D] -> [B, N, W]."""
        ops.frame_cross_attention(linear(self.q, x), self.q_norm, *kv, scratch, eps=self.eps)
        return linear(self.out, scratch)

    def hear(self, codes: torch.Tensor) -> Audio:
        """The codes [S, F, A, Wa] of sessions, as a pool of S slots."""
        k, v = self.keys_values(codes)
        null = derived(self, "null", (self.kv.bias, self.out.weight, self.out.bias), self._null)
        if not 1 < codes.shape[2] <= MOST:
            return AudioKeys((k, v), null)
        first, others = first_and_others(v)
        base, update = linear(self.out, first), linear(self.out, others, bias=False)
        return AudioUpdate((audio_keys(k, self.q_norm), base, update), null)

    def _null(self) -> torch.Tensor:
        """[W]: the output for the null code, whose value is the bias."""
        return linear(self.out, self.kv.bias[-len(self.q_norm) :][None])[0]


@dataclass
class Audio:
    """Of one block: tensors [S, ...] that hold what the sessions of S slots hear, and the constant of those who hear
    nothing."""

    slots: tuple[torch.Tensor, ...]
    null: torch.Tensor  # [W]

    def put(self, slot: torch.Tensor, heard: Audio) -> None:
        """Replace a slot, int32 [1], by the only one of another pool."""
        for mine, other in zip(self.slots, heard.slots, strict=True):
            mine.index_copy_(0, slot.long(), other)

    def add(self, layer: CrossAttention, x: torch.Tensor, scratch: torch.Tensor, hears: torch.Tensor) -> None:
        """x [B, N, W] += what its lanes hear; ``hears``, int32 [C], names the slots of the first lanes, or -1.

        ``scratch``, of the size of x, may be written.
        """
        raise NotImplementedError


class AudioUpdate(Audio):
    """Slots of keys, base and update (:data:`rest_fast.ops.frame_audio_update.Constants`)."""

    def add(self, layer: CrossAttention, x: torch.Tensor, scratch: torch.Tensor, hears: torch.Tensor) -> None:
        keys, base, update = self.slots
        q = linear(layer.q, x[: len(hears)])
        ops.frame_audio_update(x, q, keys, base, update, self.null, slot=hears, eps=layer.eps)


class AudioKeys(Audio):
    """Slots of keys and values, where an update's rank would be too large."""

    def add(self, layer: CrossAttention, x: torch.Tensor, scratch: torch.Tensor, hears: torch.Tensor) -> None:
        lanes, slots = len(hears), hears.clamp(min=0)
        k, v = (tensor.index_select(0, slots) for tensor in self.slots)
        branch = torch.where((hears < 0)[:, None, None], self.null, layer.step(x[:lanes], (k, v), scratch[:lanes]))
        ops.gate_norm_modulate(x[:lanes], branch, None, None, None, None, eps=layer.eps)
        x[lanes:] += self.null
