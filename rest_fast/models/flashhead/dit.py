"""SoulX-FlashHead's transformer: Wan's block over one window of latent frames, whose tokens hear audio of their frame.

Shapes: B windows, F latent frames, T tokens of a frame, N = F T, W width, H heads of D, A audio tokens of a frame.
All tokens of a window see each other, so nothing is kept from window to window; positions count from its first frame.
Source: ``flash_head_model.py`` of the published code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast import ops
from rest_fast.config.flashhead import FlashHeadConfig, FlashHeadDiTConfig
from rest_fast.models.cross_attention import KV, CrossAttention
from rest_fast.models.dit_block import SelfAttention
from rest_fast.models.flashhead.audio import AudioProjection
from rest_fast.models.linear import linear

fn = ops.functional


class FlashHeadBlock(nn.Module):
    """Self-attention and MLP between six vectors of the timestep, and attention to audio without a gate."""

    def __init__(self, config: FlashHeadDiTConfig):
        super().__init__()
        w, self.heads, self.eps, self.qk_eps = config.width, config.heads, config.norm_eps, config.qk_eps
        self.attn, self.audio = SelfAttention(config), CrossAttention(config, w)
        self.norm = nn.LayerNorm(w, eps=self.eps)  # before the attention to audio; the other two learn nothing
        self.mlp = nn.Sequential(nn.Linear(w, config.mlp_width), nn.GELU("tanh"), nn.Linear(config.mlp_width, w))
        self.table = nn.Parameter(torch.zeros(6, w))  # shift, scale, gate of attention; of the MLP

    def forward(self, x: torch.Tensor, six: torch.Tensor, table: torch.Tensor, audio: KV) -> torch.Tensor:
        """x [B, N, W], six [6, W], table of :meth:`FlashHeadDiT.positions`, audio k, v [B, F, A, H, D] -> [B, N, W]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.table + six
        qkv = linear(self.attn.qkv, self._normed(x) * (1 + scale1) + shift1)
        norms = self.attn.q_norm, self.attn.k_norm
        seen = fn.attention(*fn.qk_norm_rope(qkv, *norms, table, heads=self.heads, eps=self.qk_eps)).flatten(2)
        x = x + gate1 * linear(self.attn.out, seen)
        heard = fn.frame_attention(linear(self.audio.q, self.norm(x)), self.audio.q_norm, *audio, eps=self.qk_eps)
        x = x + linear(self.audio.out, heard)
        y = self._normed(x) * (1 + scale2) + shift2
        return x + gate2 * linear(self.mlp[2], linear(self.mlp[0], y, gelu=True))

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


class TimeEmbedding(nn.Module):
    """One timestep for all latent frames: a sinusoid in float64, two linear layers, and six vectors for the blocks."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.channels = channels
        self.embed = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.six = nn.Linear(width, 6 * width)

    def forward(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A number in 0..1000, float64 [] -> six [6, W], embedding [W]."""
        half = self.channels // 2
        ranks = torch.arange(half, dtype=torch.float64, device=timestep.device)
        angle = timestep.double() * torch.pow(10000, -ranks / half)
        embedded = self.embed(torch.cat([angle.cos(), angle.sin()]).to(self.six.weight.dtype))
        return self.six(F.silu(embedded)).unflatten(0, (6, -1)), embedded


class FlashHeadDiT(nn.Module):
    rope: torch.Tensor

    def __init__(self, config: FlashHeadConfig):
        super().__init__()
        self.config, dit, channels = config.dit, config.dit, config.vae.latent_channels
        w = dit.width
        self.proj_in, self.proj_out = nn.Linear(2 * channels, w), nn.Linear(w, channels)
        self.time = TimeEmbedding(dit.time_channels, w)
        self.table = nn.Parameter(torch.zeros(2, w))  # shift, scale before the output
        self.blocks = nn.ModuleList(FlashHeadBlock(dit) for _ in range(dit.layers))
        self.audio = AudioProjection(config)
        self.register_buffer("rope", rope_table(dit, config.stream.window, *config.grid), persistent=False)

    def _apply(self, function, recurse=True):
        """The table of rotations stays float32 or float64 whatever the weights around it become."""
        before = self.rope
        super()._apply(function, recurse)
        if self.rope.is_meta or not before.is_meta:
            self.rope = before.to(self.rope.device)
        return self

    def hear(self, heard: torch.Tensor) -> list[KV]:
        """Audio tokens [B, F, A, W] of :class:`AudioProjection` -> keys and values [B, F, A, H, D] of each block."""
        return [block.audio.keys_values(heard) for block in self.blocks]

    def forward(
        self, z: torch.Tensor, reference: torch.Tensor, timestep: torch.Tensor, audio: list[KV]
    ) -> torch.Tensor:
        """Velocity of a window.

        Args:
            z: noised latents [B, N, C], whose first ones are those of the motion, clean.
            reference: the photo's latents [B, N, C].
            timestep: of all latents, 0..1000, float64 [].
            audio: of :meth:`hear`.
        Returns: [B, N, C].
        """
        six, embedded = self.time(timestep)
        x = linear(self.proj_in, torch.cat([z, reference], -1))
        for block, kv in zip(self.blocks, audio, strict=True):
            x = block(x, six, self.rope.to(torch.promote_types(x.dtype, torch.float32)), kv)
        shift, scale = self.table + embedded  # not that of the blocks: the embedding before its projection
        x = F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps) * (1 + scale) + shift
        return linear(self.proj_out, x)


def rope_table(config: FlashHeadDiTConfig, frames: int, rows: int, columns: int) -> torch.Tensor:
    """float64 [F h w, W / 2, 2] (cos, sin): Wan's rotations, the same for every head.

    The D / 2 channel pairs of a head belong to time, rows and columns, in this order: of 64 pairs 22, 21 and 21. Each
    axis has frequencies of its own, theta^(-2 i / 2 n) for its n pairs, and positions are whole numbers.
    """
    pairs = config.head_dim // 2
    each = pairs // 3
    angles = []
    for axis, (extent, n) in enumerate(zip((frames, rows, columns), (pairs - 2 * each, each, each), strict=True)):
        frequencies = config.rope_theta ** (-torch.arange(n, dtype=torch.float64) / n)
        shape = [1, 1, 1, n]
        shape[axis] = extent
        angle = torch.outer(torch.arange(extent, dtype=torch.float64), frequencies)
        angles.append(angle.view(shape).expand(frames, rows, columns, n))
    angle = torch.cat(angles, -1).flatten(0, 2).repeat(1, config.heads)
    return torch.stack([angle.cos(), angle.sin()], -1)
