"""SoulX-FlashHead's transformer: Wan's block over one window of latent frames, whose tokens hear audio of their frame.

Shapes: B windows, F latent frames, T tokens of a frame, N = F T, W width, H heads of D, A audio tokens of a frame.
All tokens of a window see each other, so nothing is kept from window to window; positions count from its first frame.
Source: ``flash_head_model.py`` of the published code.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast import ops
from rest_fast.config.flashhead import FlashHeadConfig, FlashHeadDiTConfig
from rest_fast.models.cross_attention import KV, CrossAttention
from rest_fast.models.dit import Modulation
from rest_fast.models.dit_block import Branch, SelfAttention, Workspace
from rest_fast.models.flashhead.audio import AudioProjection
from rest_fast.models.linear import linear
from rest_fast.ops.rope import head_table

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

    def step(self, work: Windows, mod: torch.Tensor, rows: torch.Tensor, audio: KV, pending: Branch) -> Branch:
        """The same in place on ``work.x``, of lanes with vectors mod [6, B, 1, W] and audio k, v [B, F, A, H, D].

        As :meth:`rest_fast.models.dit_block.DiTBlock.step`: the first norm also adds ``pending``, the last branch of
        the block before, and this block's last branch and its gate are returned. ``rows``: see :meth:`Windows.attend`.
        """
        x, y = work.x, work.y
        shift1, scale1, gate1, shift2, scale2, gate2 = mod
        ops.gate_norm_modulate(x, *pending, scale1, shift1, y, eps=self.eps, norm="layer")
        seen = work.attend(self.attn, linear(self.attn.qkv, y), rows, self.qk_eps)
        learned = (v.expand(len(x), 1, -1) for v in (self.norm.weight, self.norm.bias))
        ops.gate_norm_modulate(x, linear(self.attn.out, seen), gate1, *learned, y, eps=self.eps, norm="affine")
        heard = self.audio.step(y, audio, work.out.flatten(2))
        ops.gate_norm_modulate(x, heard, None, scale2, shift2, y, eps=self.eps, norm="layer")
        return linear(self.mlp[2], linear(self.mlp[0], y, gelu=True)), gate2


class Windows(Workspace):
    """Buffers of an evaluation of B windows: those of any step, and the keys and values of one block, which serve all
    blocks in turn, since nothing is kept."""

    def __init__(self, lanes: int, dit: FlashHeadDiT):
        config, like, tokens = dit.config, dit.table, dit.tokens
        super().__init__(lanes, tokens, config, like)
        self.tables = [table.float().to(like.device) for table in axis_tables(config, *dit.extents)]
        self.k, self.v = (like.new_zeros(lanes, 1, tokens, config.heads, config.head_dim) for _ in range(2))
        self.zero = torch.zeros(lanes, dtype=torch.int32, device=like.device)
        self.length = torch.full_like(self.zero, tokens)
        self.lengths: list[int] | None = None  # the same on the host, and each lane's row, where no lane is idle
        self.places: list[int] | None = None

    def first(self, lanes: int) -> Windows:
        part = super().first(lanes)
        assert isinstance(part, Windows)
        part.zero, part.length = self.zero[:lanes], self.length[:lanes]
        return part

    def all_busy(self) -> Windows:
        """The same memory, of whose lanes none is idle: lane i has row i, and backends may ask the host."""
        part = copy.copy(self)
        lanes, tokens = self.x.shape[:2]
        part.lengths, part.places = [tokens] * lanes, list(range(lanes))
        return part

    def attend(self, layer: SelfAttention, qkv: torch.Tensor, rows: torch.Tensor, eps: float) -> torch.Tensor:
        """All tokens of a window see each other: qkv [B, N, 3 W] -> [B, N, W].

        ``rows``, int32 [B]: each lane's own row of :attr:`k` and :attr:`v`, or -1 for an idle lane.
        """
        where = {"row_index": rows, "bank_index": self.zero}
        begin = {"write_slot": self.zero, "base": self.zero}
        into, norms = (self.k, self.v, self.q), (layer.q_norm, layer.k_norm)
        ops.qk_norm_rope_cache(qkv, *norms, *self.tables, *into, **where, **begin, eps=eps, rope="by_head")
        lengths = {"n_valid": self.length, "host_n_valid": self.lengths, "host_place": self.places}
        scale = self.k.shape[-1] ** -0.5
        ops.sink_ring_attention(self.q, self.k, self.v, self.out, **where, **lengths, scale=scale)
        return self.out.flatten(2)


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
        self.extents = (config.stream.window, *config.grid)  # latent frames, rows and columns of a window
        self.tokens, self.channels = math.prod(self.extents), channels
        self.heard_shape = (config.stream.window, dit.audio_tokens, w)  # of :meth:`hear`, without lanes
        self.register_buffer("rope", rope_table(dit, *self.extents), persistent=False)

    def _apply(self, function, recurse=True):
        """The table of rotations stays float32 or float64 whatever the weights around it become."""
        before = self.rope
        super()._apply(function, recurse)
        if self.rope.is_meta or not before.is_meta:
            self.rope = before.to(self.rope.device)
        return self

    def modulation(self, timestep: torch.Tensor) -> torch.Tensor:
        """The vectors of a timestep, 0..1000, float64 []: six of each block, two before the output [6 L + 2, W]."""
        six, embedded = self.time(timestep)
        return torch.cat([*(block.table + six for block in self.blocks), self.table + embedded])

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

    @torch.no_grad()
    def step(
        self,
        z: torch.Tensor,
        reference: torch.Tensor,
        mod: Modulation,
        rows: torch.Tensor,
        work: Windows,
        audio: list[KV],
    ) -> torch.Tensor:
        """:meth:`forward` for B lanes in place, each with its own timestep: z and reference [B, N, C] -> [B, N, C].

        ``work`` is of B lanes; ``audio`` of :meth:`hear`, of each lane; ``rows``: see :meth:`Windows.attend`.
        """
        work.x.copy_(linear(self.proj_in, torch.cat([z, reference], -1)))
        pending: Branch = (None, None)
        for i, (block, kv) in enumerate(zip(self.blocks, audio, strict=True)):
            pending = block.step(work, mod.blocks[i], rows, kv, pending)
        shift, scale = mod.final
        ops.gate_norm_modulate(work.x, *pending, scale, shift, work.y, eps=self.config.norm_eps, norm="layer")
        return linear(self.proj_out, work.y)


def rope_table(config: FlashHeadDiTConfig, frames: int, rows: int, columns: int) -> torch.Tensor:
    """float64 [F h w, W / 2, 2] (cos, sin): Wan's rotations, the same for every head.

    The D / 2 channel pairs of a head belong to time, rows and columns, in this order: of 64 pairs 22, 21 and 21. Each
    axis has frequencies of its own, theta^(-2 i / 2 n) for its n pairs, and positions are whole numbers.
    """
    table = head_table(*axis_tables(config, frames, rows, columns))
    return table.repeat(1, config.heads, 1)


def axis_tables(config: FlashHeadDiTConfig, *extents: int) -> list[torch.Tensor]:
    """float64 [P, n, 2] (cos, sin) at the P places along time, rows and columns, for the n pairs of each axis."""
    pairs = config.head_dim // 2
    each, tables = pairs // 3, []
    for extent, n in zip(extents, (pairs - 2 * each, each, each), strict=True):
        frequencies = config.rope_theta ** (-torch.arange(n, dtype=torch.float64) / n)
        angle = torch.outer(torch.arange(extent, dtype=torch.float64), frequencies)
        tables.append(torch.stack([angle.cos(), angle.sin()], -1))
    return tables
