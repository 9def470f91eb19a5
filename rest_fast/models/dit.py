"""Streaming A2V-DiT (paper section 3.3): LTX-Video's block, the ID-Context cache, frame-level audio attention.

Two passes over the same weights. :meth:`StreamingDiT.forward` is the functional reference and what training uses: all
latent frames of a clip at once, in one of three attention layouts, differentiable. :meth:`StreamingDiT.step` is one
evaluation for the current chunk of several lanes, in place, through the slots of a cache. Shapes: B lanes, F latent
frames, T tokens of a frame, N = F T, W width, H heads of D, L blocks, A audio tokens of a frame.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rest_fast import ops
from rest_fast.config import Layout, ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.clip_attention import Attend, Context, clip_attention
from rest_fast.models.cross_attention import KV, Audio
from rest_fast.models.dit_block import Branch, DiTBlock, Workspace
from rest_fast.models.positions import PositionTables

fn = ops.functional


@dataclass
class Lanes:
    """The slots of a cache as one step sees them. What differs from lane to lane is int32 [B] on the device."""

    k: torch.Tensor  # [L, rows, banks, slots, H, D]
    v: torch.Tensor
    rope_t: torch.Tensor  # fp32 [P, n, 2]
    row_index: torch.Tensor
    bank_index: torch.Tensor
    write_slot: torch.Tensor
    base: torch.Tensor  # index in rope_t of the position of the chunk's first frame
    n_valid: torch.Tensor
    turn: torch.Tensor  # the row of z [S, N, C] that the lane denoises
    hears: torch.Tensor  # int32 [C] of the first lanes, C <= B: the slot of audio, or -1; further lanes hear nothing
    host_n_valid: list[int] | None  # None: only the device knows the lengths
    host_place: list[int] | None = None  # row * banks + bank of each lane; None: one is idle, or only the device knows


class PositionwiseLinear(nn.Module):
    """A matrix and a bias of its own for each of the T positions of a latent frame."""

    def __init__(self, positions: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(positions, inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(positions, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, F T, inputs] -> [B, F T, outputs]."""
        x = x.unflatten(1, (-1, self.weight.shape[0]))
        return (torch.einsum("bftc,tcw->bftw", x, self.weight) + self.bias).flatten(1, 2)


class TimestepEmbedding(nn.Module):
    """AdaLN-single: sinusoid of 1000 t, two linear layers, six vectors shared by all blocks."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.six = nn.Linear(width, 6 * width)

    def forward(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """t [...] in 0..1 -> (six [..., 6, W], embedding [..., W])."""
        freq = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        angle = 1000 * t.float()[..., None] * freq
        wave = torch.cat([angle.cos(), angle.sin()], -1).to(self.six.weight.dtype)
        embedded = self.embed(wave)
        return self.six(F.silu(embedded)).unflatten(-1, (6, -1)), embedded


@dataclass
class Modulation:
    """AdaLN vectors of one evaluation: per block [6, B, F, W], and [2, B, F, W] before the output."""

    blocks: list[torch.Tensor]
    final: torch.Tensor

    def block(self, i: int, lanes: int) -> torch.Tensor:
        """[6, lanes, F, W]. With B = 1 all lanes share the same vectors."""
        return self.blocks[i].expand(-1, lanes, -1, -1)


class StreamingDiT(nn.Module):
    prompt: torch.Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.stream, dit = config.dit, config.stream, config.dit
        self.tokens = config.tokens
        self.checkpointing = False  # training: compute the blocks twice rather than keep what they need
        channels, w = config.vae.latent_channels, dit.width
        self.channels, self.audio_shape = channels, (config.speech.tokens, config.speech.width)
        if dit.positionwise_io:
            self.proj_in: nn.Module = PositionwiseLinear(self.tokens, channels, w)
            self.proj_out: nn.Module = PositionwiseLinear(self.tokens, w, channels)
        else:
            self.proj_in, self.proj_out = nn.Linear(channels, w), nn.Linear(w, channels)
        self.time = TimestepEmbedding(w)
        self.table = nn.Parameter(torch.zeros(2, w))  # shift, scale before the output
        if dit.text_tokens:
            self.caption = nn.Sequential(nn.Linear(dit.text_channels, w), nn.GELU(approximate="tanh"), nn.Linear(w, w))
            self.register_buffer("prompt", torch.zeros(1, dit.text_tokens, dit.text_channels))
        self.blocks = nn.ModuleList(DiTBlock(dit, config.speech.width) for _ in range(dit.layers))
        self.positions = PositionTables(config)
        self._initialise()

    def _initialise(self) -> None:
        """Start close to the identity: open gates, no modulation, small branches, zero output and zero audio."""
        depth = 0.02 / math.sqrt(2 * len(self.blocks))
        for block in self.blocks:
            nn.init.ones_(block.table[2].data)
            nn.init.ones_(block.table[5].data)
            for linear in (block.attn.out, block.mlp[2]):
                nn.init.normal_(linear.weight, std=depth)
            if block.audio is not None:
                nn.init.zeros_(block.audio.out.weight)
                nn.init.zeros_(block.audio.out.bias)
        nn.init.zeros_(self.time.six.weight)
        nn.init.zeros_(self.proj_out.weight)

    # -- constants of a model, a schedule, a chunk

    def text_kv(self) -> list[KV | None]:
        """Keys and values of the fixed prompt [1, 1, tokens, H, D], per block: constants of the model."""
        if not self.config.text_tokens:
            return [None] * len(self.blocks)
        projected = self.caption(self.prompt)[:, None]  # text attention sees it as one frame that all tokens attend to
        return [block.text.keys_values(projected) for block in self.blocks]

    def hear(self, codes: torch.Tensor | None) -> list[Audio | None]:
        """What sessions in slots 0 .. S - 1 hear: codes [S, F, A, Wa], per block. Constants of a chunk."""
        if codes is None or not self.config.audio:
            return [None] * len(self.blocks)
        return [block.audio.hear(codes) for block in self.blocks]

    def modulation(self, t: torch.Tensor) -> Modulation:
        """AdaLN vectors for timesteps t [B, F] in 0..1."""
        six, embedded = self.time(t)
        return Modulation([block.modulation(six) for block in self.blocks], self._final(embedded))

    def _final(self, embedded: torch.Tensor) -> torch.Tensor:
        """[B, F, W] -> shift and scale before the output [2, B, F, W]."""
        return (self.table + embedded[..., None, :]).permute(2, 0, 1, 3)

    # -- functional pass

    def forward(
        self,
        z: torch.Tensor,
        t: torch.Tensor,
        codes: torch.Tensor | None,
        layout: Layout | None = None,
        context: Context | None = None,
    ) -> torch.Tensor:
        """Velocity of a whole clip.

        Args:
            z: noised latents [B, F T, C], frame 0 the clean reference.
            t: timestep of each latent frame [B, F] in 0..1, frame 0 at 0.
            codes: audio codes [B, F, A, Wa], frame 0 null (zeros); None only for a model without audio.
            layout: ``full``, ``teacher`` or ``streaming``; the configuration's when None.
            context: how training treats the context of ``streaming``.
        Returns: velocity [B, F T, C], frame 0 without meaning.
        """
        frames = z.shape[1] // self.tokens
        if z.ndim != 3 or z.shape[1] != frames * self.tokens or tuple(t.shape) != (z.shape[0], frames):
            raise ArgumentError(
                f"dit: expected z [B, F x {self.tokens}, C] and t [B, F], got {list(z.shape)} and {list(t.shape)}"
            )
        attend = clip_attention(self.positions, self.qkv_heads, layout or self.config.layout, frames, context)
        return self._run(z, t, attend, codes)

    def _run(self, z: torch.Tensor, t: torch.Tensor, attend: Attend, codes: torch.Tensor | None) -> torch.Tensor:
        x, prompt = self.proj_in(z), self.caption(self.prompt) if self.config.text_tokens else None
        six, embedded = self.time(t)
        for i, block in enumerate(self.blocks):
            arguments = (x, six, lambda qkv, i=i: attend(i, qkv), prompt, codes)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        return self.output(x, self._final(embedded))

    def output(self, x: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
        x = F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps).unflatten(1, (final.shape[2], -1))
        shift, scale = final[:, :, :, None]
        return self.proj_out((x * (1 + scale) + shift).flatten(1, 2))

    def qkv_heads(self, layer: int, qkv: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Normed and rotated q, k and v [B, N, H, D] at time positions [F]."""
        attn = self.blocks[layer].attn
        table = self.positions.tokens_at(times).to(torch.promote_types(qkv.dtype, torch.float32))
        eps = self.config.qk_eps
        return fn.qk_norm_rope(qkv, attn.q_norm, attn.k_norm, table, heads=self.config.heads, eps=eps)

    @torch.no_grad()
    def sink(self, reference: torch.Tensor, codes: torch.Tensor | None) -> KV:
        """Keys and values of the reference [B, T, C], isolated: t = 0, null audio -> k, v [L, B, T, H, D]."""
        keys, values = [], []

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv_heads(layer, qkv, torch.zeros(1, dtype=torch.float32))
            keys.append(k)
            values.append(v)
            return fn.attention(q, k, v).flatten(2)

        t = torch.zeros(reference.shape[0], 1, dtype=torch.float32, device=reference.device)
        self._run(reference, t, attend, codes)
        return torch.stack(keys), torch.stack(values)

    # -- streaming pass

    @torch.no_grad()
    def step(
        self,
        z: torch.Tensor,
        mod: Modulation,
        lanes: Lanes,
        work: Workspace,
        text: list[KV | None],
        audio: list[Audio | None],
    ) -> torch.Tensor:
        """One evaluation of the current chunk of B lanes: z [S, N, C] -> velocity [B, N, C]; writes their slots.

        ``work`` is of B lanes; the branches of one session share z.
        """
        torch.index_select(self.proj_in(z), 0, lanes.turn, out=work.x)
        pending: Branch = (None, None)
        for i, block in enumerate(self.blocks):
            attend = functools.partial(self.attend_cache, i, lanes=lanes, work=work)
            pending = block.step(work, mod.block(i, len(work.x)), attend, text[i], audio[i], lanes.hears, pending)
        ops.gate_norm_modulate(work.x, *pending, None, None, None, eps=self.config.norm_eps)
        return self.output(work.x, mod.final)

    def attend_cache(self, layer: int, qkv: torch.Tensor, lanes: Lanes, work: Workspace) -> torch.Tensor:
        attn, k, v = self.blocks[layer].attn, lanes.k[layer], lanes.v[layer]
        ops.qk_norm_rope_cache(
            qkv,
            attn.q_norm,
            attn.k_norm,
            lanes.rope_t,
            self.positions.y,
            self.positions.x,
            k,
            v,
            work.q,
            row_index=lanes.row_index,
            bank_index=lanes.bank_index,
            write_slot=lanes.write_slot,
            base=lanes.base,
            eps=self.config.qk_eps,
        )
        ops.sink_ring_attention(
            work.q,
            k,
            v,
            work.out,
            row_index=lanes.row_index,
            bank_index=lanes.bank_index,
            n_valid=lanes.n_valid,
            host_n_valid=lanes.host_n_valid,
            host_place=lanes.host_place,
            scale=self.config.head_dim**-0.5,
        )
        return work.out.flatten(2)
