"""One block of the Streaming A2V-DiT: LTX-Video's, with attention to audio (paper section 3.3); shapes as in dit.py."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from rest_fast import ops
from rest_fast.config import DiTConfig
from rest_fast.config.flashhead import FlashHeadDiTConfig
from rest_fast.models.cross_attention import KV, Audio, CrossAttention
from rest_fast.models.linear import linear

fn = ops.functional
Branch = tuple[torch.Tensor | None, torch.Tensor | None]  # what will be added to the residual stream, and its gate


class Workspace:
    """Buffers of a step for B lanes of N tokens: residual stream, normed stream, query, attention output."""

    def __init__(self, lanes: int, tokens: int, config: DiTConfig | FlashHeadDiTConfig, like: torch.Tensor):
        heads = (lanes, tokens, config.heads, config.head_dim)
        self.x, self.y = (like.new_empty(lanes, tokens, config.width) for _ in range(2))
        self.q, self.out = like.new_empty(heads), like.new_empty(heads)

    def first(self, lanes: int) -> Workspace:
        """The same memory for fewer lanes."""
        part = copy.copy(self)
        part.x, part.y, part.q, part.out = (buffer[:lanes] for buffer in (self.x, self.y, self.q, self.out))
        return part


class SelfAttention(nn.Module):
    def __init__(self, config: DiTConfig | FlashHeadDiTConfig):
        super().__init__()
        w = config.width
        self.qkv, self.out = nn.Linear(w, 3 * w), nn.Linear(w, w)
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(w)), nn.Parameter(torch.ones(w))


class DiTBlock(nn.Module):
    """Self-attention, text attention, audio attention, MLP; AdaLN-single around the first and the last."""

    def __init__(self, config: DiTConfig, audio_width: int):
        super().__init__()
        w, self.eps, self.qk_eps = config.width, config.norm_eps, config.qk_eps
        self.attn = SelfAttention(config)
        self.text = CrossAttention(config, w) if config.text_tokens else None
        self.audio = CrossAttention(config, audio_width) if config.audio else None
        hidden = config.mlp_ratio * w
        self.mlp = nn.Sequential(nn.Linear(w, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, w))
        self.table = nn.Parameter(torch.zeros(6, w))  # shift, scale, gate of attention; of the MLP

    def modulation(self, six: torch.Tensor) -> torch.Tensor:
        """The vectors shared by all blocks [B, F, 6, W] -> this block's [6, B, F, W]."""
        return (self.table + six).permute(2, 0, 1, 3)

    def forward(
        self,
        x: torch.Tensor,
        six: torch.Tensor,
        attend: Callable[[torch.Tensor], torch.Tensor],
        prompt: torch.Tensor | None,
        codes: torch.Tensor | None,
    ) -> torch.Tensor:
        """x [B, N, W], six [B, F, 6, W], prompt [1, tokens, W], codes [B, F, A, Wa]. Differentiable."""
        # FSDP gathers the block's weights only while this runs, so nothing outside of this method may use them.
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(six)
        y = fn.norm_modulate(x, scale1, shift1, self.eps)
        x = fn.gated_residual(x, self.attn.out(attend(self.attn.qkv(y))), gate1)
        if self.text is not None and prompt is not None:
            x = fn.gated_residual(x, self.text.attend(x, self.text.keys_values(prompt[:, None])), None)
        if self.audio is not None and codes is not None:
            audio = self.audio.keys_values(codes)
            seen = fn.frame_attention(self.audio.q(x), self.audio.q_norm, *audio, eps=self.qk_eps)
            x = fn.gated_residual(x, self.audio.out(seen), None)
        y = fn.norm_modulate(x, scale2, shift2, self.eps)
        return fn.gated_residual(x, self.mlp(y), gate2)

    def step(
        self,
        work: Workspace,
        mod: torch.Tensor,
        attend: Callable[[torch.Tensor], torch.Tensor],
        text: KV | None,
        audio: Audio | None,
        hears: torch.Tensor,
        pending: Branch,
    ) -> Branch:
        """The same in place on ``work.x``. The first norm also adds ``pending``, the last branch of the block before.

        ``work.y`` is scratch; ``hears`` is that of :class:`rest_fast.models.dit.Lanes`. Returns this block's last
        branch and its gate, which the next block, or the end, adds.
        """
        x, y = work.x, work.y
        shift1, scale1, gate1, shift2, scale2, gate2 = mod
        ops.gate_norm_modulate(x, *pending, scale1, shift1, y, eps=self.eps)
        pending = linear(self.attn.out, attend(linear(self.attn.qkv, y))), gate1
        if self.text is not None and text is not None:
            ops.gate_norm_modulate(x, *pending, None, None, None, eps=self.eps)
            pending = self.text.step(x, text, y), None
        if self.audio is not None and audio is not None:
            ops.gate_norm_modulate(x, *pending, None, None, None, eps=self.eps)
            audio.add(self.audio, x, y, hears)
            pending = None, None
        ops.gate_norm_modulate(x, *pending, scale2, shift2, y, eps=self.eps)
        return linear(self.mlp[2], linear(self.mlp[0], y, gelu=True)), gate2
