"""Encoder and decoder of the LTX-Video family, from the configuration of a checkpoint (0.9.0, 0.9.1, 0.9.5 to 0.9.8).

The encoder is causal. The :class:`~rest_fast.models.vae.state.StreamState` decides what the decoder's convolutions see:
two past frames, or one past and one later frame. Norms take their statistics from a single pixel, in fp32.
"""

from __future__ import annotations

import functools
import math
from math import prod

import torch
from torch import nn

from rest_fast import noise
from rest_fast.config import STRIDES, TEMPORAL, ConvVAEConfig
from rest_fast.models.vae.family import Decoder
from rest_fast.models.vae.layers import (
    NORM_EPS,
    Buffer,
    CausalConv3d,
    Piece,
    ResBlock,
    ScaleShift,
    depth_to_space,
    normed_silu,
)
from rest_fast.models.vae.state import StreamState
from rest_fast.ops import functional
from rest_fast.ops.derived import derived
from rest_fast.ops.latent_noise import drawn
from rest_fast.ops.library_convolution import conv3d


class StridedConv(nn.Module):
    """Causal 3x3x3 convolution with strides, by which the encoders of 0.9.0 and 0.9.1 downsample."""

    def __init__(self, channels: int, stride: tuple[int, int, int], reflect: bool):
        super().__init__()
        self.path, self.stride, self.reflect = "", stride, reflect
        init = nn.Conv3d(channels, channels, 3)
        self.weight, self.bias = init.weight, init.bias

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        before = state.histories.get(self.path)
        x = torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1) if before is None else before, x], 2)
        history = x[:, :, x.shape[2] - (3 - self.stride[0]) :]
        state.histories[self.path] = history if history.requires_grad else history.clone()
        side = 1
        if self.reflect:
            x, side = functional.mirrored(x), 0
        return conv3d(x, self.weight, self.bias, self.stride, (0, side, side))


class Downsampler(nn.Module):
    """Space-to-depth of a convolution, plus the group mean of the input's own space-to-depth."""

    def __init__(self, channels: int, out_channels: int, stride: tuple[int, int, int], reflect: bool = False):
        super().__init__()
        self.stride, cell = stride, prod(stride)
        assert out_channels % cell == 0 and channels * cell % out_channels == 0, (
            f"downsampler: {channels} -> {out_channels} channels do not divide by the cell of {cell}"
        )
        self.group = channels * cell // out_channels
        self.conv = CausalConv3d(channels, out_channels // cell, reflect=reflect)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        if not state.started:  # the first frame stands alone, so copies complete its group
            x = torch.cat([x[:, :, : self.stride[0] - 1], x], 2)
        residual = functional.space_to_depth(x, self.stride).unflatten(1, (-1, self.group)).mean(2)
        return functional.space_to_depth(self.conv(x, state), self.stride) + residual


class Upsampler(nn.Module):
    """Depth-to-space of a convolution, plus the input's own depth-to-space, tiled over the channels."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        stride: tuple[int, int, int],
        *,
        rate: int = 1,
        residual: bool = True,
        reflect: bool = False,
    ):
        super().__init__()
        self.stride, self.residual, self.channels, cell = stride, residual, out_channels, prod(stride)
        assert not residual or (channels % cell == 0 and out_channels % (channels // cell) == 0), (
            f"upsampler: {channels} -> {out_channels} channels do not divide by the cell of {cell}"
        )
        self.tiles = out_channels * cell // channels
        self.conv = CausalConv3d(channels, out_channels * cell, rate, reflect)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        drop = 0 if state.started else self.stride[0] - 1
        y = depth_to_space(self.conv(x, state), self.stride, drop)
        if not self.residual:
            return y
        residual = depth_to_space(x, self.stride, drop).unsqueeze(1)
        return (y.unflatten(1, (self.tiles, -1)) + residual).flatten(1, 2)

    def shape(self, x: torch.Tensor, first: bool) -> tuple[int, int, int, int, int]:
        """Shape of the result for an input [B, C, T, H, W]."""
        (b, _, t, h, w), (p1, p2, p3) = x.shape, self.stride
        return b, self.channels, t * p1 - (p1 - 1 if first else 0), h * p2, w * p3

    def step(self, source: Buffer, piece: Piece, **results) -> None:
        residual = source.frames if self.residual else None
        self.conv.step(source, piece, residual=residual, factors=self.stride, **results)


def patchify(x: torch.Tensor, p: int) -> torch.Tensor:
    """[B, C, T, H p, W p] -> [B, C p p, T, H, W]; LTX-Video's channel order is (c, column, row)."""
    return functional.space_to_depth(x.transpose(3, 4), (1, p, p)).transpose(3, 4)


def unpatchify(x: torch.Tensor, p: int) -> torch.Tensor:
    return depth_to_space(x.transpose(3, 4), (1, p, p)).transpose(3, 4)


class ConvEncoder(nn.Module):
    """[B, 3, 1 + 8n, H, W] -> posterior mean and one shared log-variance [B, latent + 1, 1 + n, H / 32, W / 32]."""

    def __init__(self, config: ConvVAEConfig):
        super().__init__()
        channels, self.patch = config.encoder_channels, config.patch_size
        reflect = config.encoder_padding == "reflect"
        self.conv_in = CausalConv3d(3 * self.patch**2, channels[0], reflect=reflect)
        self.blocks = nn.ModuleList()
        for i, layers in enumerate(config.encoder_layers):
            self.blocks.extend(ResBlock(channels[i], reflect=reflect) for _ in range(layers))
            if i == len(config.encoder_down):
                break
            stride = STRIDES[config.encoder_down[i]]
            if config.encoder_resample == "fold":
                self.blocks.append(Downsampler(channels[i], channels[i + 1], stride, reflect))
                continue
            self.blocks.append(StridedConv(channels[i], stride, reflect))
            if channels[i] != channels[i + 1]:
                self.blocks.append(ResBlock(channels[i], channels[i + 1], reflect=reflect))
        self.conv_out = CausalConv3d(channels[-1], config.latent_channels + 1, reflect=reflect)
        for layer in self.modules():  # there is no other pass of an encoder than the functional one
            if isinstance(layer, CausalConv3d):
                layer.convolve = conv3d

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        x = self.conv_in(patchify(x, self.patch), state)
        for block in self.blocks:
            x = block(x, state)
        return self.conv_out(normed_silu(x, eps=NORM_EPS), state)


def timestep_embedder(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))


class ConvDecoder(Decoder):
    """[B, latent, n, h, w] -> [B, 3, 8n (- 7 at the start), 32 h, 32 w]."""

    def __init__(self, config: ConvVAEConfig):
        super().__init__()
        self.config, channels, self.patch = config, config.decoder_channels, config.patch_size
        self.causal, self.noise_share = config.causal_decoder, config.decode_noise_scale
        reflect, modulated, rate = config.decoder_padding == "reflect", config.timestep_conditioning, 1
        self.conv_in = CausalConv3d(config.latent_channels, channels[0], reflect=reflect)
        self.blocks = nn.ModuleList()
        self.stages: list[int] = []  # the stage of each block
        for i, layers in enumerate(config.decoder_layers):
            if i > 0:
                width, stride = channels[i - 1], STRIDES[config.decoder_up[i - 1]]
                if config.decoder_widen and width != channels[i]:
                    self.blocks.append(ResBlock(width, channels[i], rate=rate, reflect=reflect))
                    width = channels[i]
                residual = config.decoder_residual
                self.blocks.append(Upsampler(width, channels[i], stride, rate=rate, residual=residual, reflect=reflect))
                rate *= stride[0]
            self.blocks.extend(
                ResBlock(channels[i], rate=rate, reflect=reflect, noise=config.decoder_noise[i], modulated=modulated)
                for _ in range(layers)
            )
            self.stages += [i] * (len(self.blocks) - len(self.stages))
        self.conv_out = CausalConv3d(channels[-1], 3 * self.patch**2, rate, reflect)
        self.time, self.time_out, self.table = None, None, None
        if modulated:
            self.time = nn.ModuleList(timestep_embedder(4 * c) for c in channels)
            self.time_out = timestep_embedder(2 * channels[-1])
            self.table = nn.Parameter(torch.randn(2, channels[-1]) / channels[-1] ** 0.5)

    def embedded(self) -> tuple[list[torch.Tensor | None], ScaleShift | None]:
        """The timestep embedding of each stage [4 C], and scale and shift of the last norm.

        They are constants, since the decoder is always told the same noise level (``decode_timestep``).
        """
        if self.time is None or self.time_out is None or self.table is None:
            return [None] * len(self.config.decoder_channels), None
        device = self.table.device
        freq = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=device) / 128)
        angle = 1000 * self.config.decode_timestep * freq
        wave = torch.cat([angle.cos(), angle.sin()]).to(self.table.dtype)
        shift, scale = self.table + self.time_out(wave).view(2, -1)
        return [embedder(wave) for embedder in self.time], (scale, shift)

    def forward(self, z: torch.Tensor, state: StreamState) -> torch.Tensor:
        embedded, last = self.embedded()
        x = self.conv_in(z, state)
        for block, stage in zip(self.blocks, self.stages, strict=True):
            x = block(x, state) if isinstance(block, Upsampler) else block(x, state, embedded[stage])
        return unpatchify(self.conv_out(normed_silu(x, last, eps=NORM_EPS), state), self.patch)

    def images(self, z: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        (b, _, _, h, w), spread = z.shape, 1
        for block in self.blocks:
            if isinstance(block, Upsampler):
                spread *= block.stride[1]
            elif block.noise1 is not None:
                size = (h * spread, w * spread)
                for conv in (block.conv1, block.conv2):
                    made = drawn(seed, [len(found)], size[0] * size[1], noise.TEXTURE, z.device)
                    found[conv.path] = made.view(1, *size).repeat(b, 1, 1).to(z.dtype)
        return found

    # -- in place

    def pack(self) -> None:
        self.modulations()
        self.pixel_order()
        for conv in self.convolutions():
            if conv is not self.conv_out:
                conv.ordered(conv.weight.dtype)

    def run(self, z: torch.Tensor, piece: Piece, *, pictures: bool) -> torch.Tensor:
        b, frames = len(z), TEMPORAL * z.shape[2] - (TEMPORAL - 1 if piece.first else 0)
        h, w = (n * self.config.spatial for n in z.shape[3:])
        if pictures:
            out = z.new_empty(b, frames, h, w, 3, dtype=torch.uint8)
            self.step(z, piece, pictures=out)
        else:
            out = z.new_empty(b, frames, h, w, 3).movedim(-1, 1)
            self.step(z, piece, video=out)
        return out

    def modulations(self) -> list[tuple[ScaleShift | None, ScaleShift | None]]:
        """Scale and shift of both norms of each block; the last entry is for the norm before ``conv_out``."""

        def make() -> list[tuple[ScaleShift | None, ScaleShift | None]]:
            embedded, last = self.embedded()
            pairs = [
                (None, None) if isinstance(block, Upsampler) else block.modulation(embedded[stage])
                for block, stage in zip(self.blocks, self.stages, strict=True)
            ]
            return [*pairs, (last, None)]

        return derived(self, "constants", tuple(self.time_parameters()), make)

    def time_parameters(self) -> list[nn.Parameter]:
        tables = [m.table for m in (self, *self.blocks) if getattr(m, "table", None) is not None]
        return [*tables, *(p for m in (self.time, self.time_out) if m is not None for p in m.parameters())]

    def step(
        self, z: torch.Tensor, piece: Piece, *, video: torch.Tensor | None = None, pictures: torch.Tensor | None = None
    ) -> None:
        """In place: latents [B, C, n, h, w] into ``video`` [B, 3, T, H, W] or ``pictures`` uint8 [B, T, H, W, 3]."""
        modulations = self.modulations()
        (b, _, t, h, w), width = z.shape, self.config.decoder_channels[0]
        source = piece.buffer("latents", tuple(z.shape), z)
        source.frames.copy_(z)
        shape: tuple[int, ...] = (b, width, t, h, w)
        convolve, stage = self.conv_in.step, 0
        for i, block in enumerate(self.blocks):
            # The convolution before this block writes what the block reads: the residual stream as it is, or normed.
            # Each stage has its own buffers, since an upsampler reads those of one stage and writes those of the next.
            ready = piece.buffer(f"ready {stage}", shape, z)
            if isinstance(block, Upsampler):
                convolve(source, piece, out=ready.frames)
                shape, convolve, stage = block.shape(ready.frames, piece.first), block.step, stage + 1
            else:
                x = piece.work.plain(f"stream {stage}", shape, z)
                convolve(source, piece, out=x, normed=ready.frames, modulation=modulations[i][0])
                convolve = functools.partial(block.step, x=x, second=modulations[i][1], role=f"middle {stage}")
                shape = (shape[0], block.channels, *shape[2:])
            source = ready
        ready = piece.buffer(f"ready {stage}", shape, z)
        convolve(source, piece, normed=ready.frames, modulation=modulations[-1][0])
        p, (weight, bias) = self.patch, self.pixel_order()
        self.conv_out.step(ready, piece, weight=weight, bias=bias, out=video, pictures=pictures, factors=(1, p, p))

    def pixel_order(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``conv_out`` with its output channels in the order (c, row, column): then unpatchify is a depth to space."""
        weight, bias, p = self.conv_out.weight, self.conv_out.bias, self.patch

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            order = torch.arange(3 * p * p, device=weight.device).view(3, p, p).transpose(1, 2).flatten()
            turned = weight.detach()[order].contiguous(memory_format=torch.channels_last_3d)
            return turned, bias.detach()[order].contiguous()

        return derived(self, "turned", (weight, bias), make)


def build(config: ConvVAEConfig, grid: tuple[int, int] | None) -> tuple[nn.Module, Decoder]:
    """Pictures may have any whole number of cells."""
    return ConvEncoder(config), ConvDecoder(config)
