"""Temporal VAE: 8 video frames and 32x32 pixels to one latent cell, encoder and decoder causal in time.

A clip of 1 + 8n frames gives 1 + n latents: the first frame stands alone (paper section 3.1). A causal decoder needs
two past input frames per convolution and nothing else, so decoding latent by latent equals decoding the whole clip.
Two families behind one interface: :class:`ConvVAEConfig` in the layout of LTX-Video, and the small
:mod:`~rest_fast.models.vae_basis` of the demo model.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from rest_fast import ops
from rest_fast.config import STRIDES, TEMPORAL, BasisVAEConfig, ConvVAEConfig, ModelConfig
from rest_fast.ops import functional

NORM_EPS = 1e-8
REFERENCE = "reference"  # among a stream's histories: the first frame, for decoders that look at it


def to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, n, h, w] -> [B, n h w, C]."""
    return latents.flatten(2).transpose(1, 2)


def to_latents(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[B, n h w, C] -> [B, C, n, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, (-1, *grid))


# Both faces of an op give the same numbers, but for fp32 roundings: the one that keeps what a gradient needs where one
# is wanted, else the one that writes its result in one pass.


def normed_silu(x: torch.Tensor, *, eps: float) -> torch.Tensor:
    """silu(x / sqrt(mean_c x^2 + eps)) of [B, C, T, H, W]."""
    if torch.is_grad_enabled() and x.requires_grad:
        return functional.normed_silu(x, eps=eps)
    out = torch.empty_like(x)
    ops.pixel_norm_silu(x, None, None, out, eps=eps)
    return out


def unfold_channels(x: torch.Tensor, factors: tuple[int, int, int], drop: int = 0) -> torch.Tensor:
    """[B, C p1 p2 p3, T, H, W] -> [B, C, T p1 - drop, H p2, W p3], with rows and columns in memory as in x."""
    if torch.is_grad_enabled() and x.requires_grad:
        return functional.unfold_channels(x, factors, drop)
    (b, c, t, h, w), (p1, p2, p3) = x.shape, factors
    c, t, h, w = c // (p1 * p2 * p3), t * p1 - drop, h * p2, w * p3
    turned = x.stride(3) < x.stride(4)
    out = x.new_empty(b, c, t, w, h).transpose(3, 4) if turned else x.new_empty(b, c, t, h, w)
    ops.depth_to_space(x, out, factors=list(factors), drop=drop)
    return out


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Video [B, 3, T, H, W] in -1..1 -> pictures, uint8 [B, T, H, W, 3]."""
    b, channels, t, h, w = video.shape
    out = video.new_empty(b, t, h, w, channels, dtype=torch.uint8)
    ops.frames_to_uint8(video, out)
    return out


class StreamState:
    """Histories of one stream, keyed by module path: the last two input frames of each convolution, keys and values of
    the mixer; and the reference photo, for decoders that look at it.

    A fresh state is the start of a clip: histories repeat the first frame, upsamplers drop what lies before it.
    Histories are replaced, never written into, so a snapshot is a shallow copy.
    """

    def __init__(self) -> None:
        self.histories: dict[str, torch.Tensor] = {}
        self.started = False

    def snapshot(self) -> StreamState:
        copy = StreamState()
        copy.histories, copy.started = dict(self.histories), self.started
        return copy

    def to_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.histories)

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> StreamState:
        state = cls()
        state.histories, state.started = dict(tensors), bool(set(tensors) - {REFERENCE})
        return state


class CausalConv3d(nn.Module):
    """3x3x3 convolution over the present and two past frames."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.path = ""  # set by name_memories
        init = nn.Conv3d(channels, out_channels, 3)
        self.weight, self.bias = init.weight, init.bias

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        y, history = functional.causal_convolution(x, self.weight, self.bias, state.histories.get(self.path))
        # a view would keep the whole input of the convolution alive
        state.histories[self.path] = history if torch.is_grad_enabled() else history.clone()
        return y


def name_memories(module: nn.Module) -> None:
    """Tell each part that remembers its path, the key of its history."""
    for path, child in module.named_modules():
        if hasattr(child, "path"):
            child.path = path


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, channels: int, eps: float = NORM_EPS):
        super().__init__()
        self.eps = eps
        self.conv1 = CausalConv3d(channels, channels)
        self.conv2 = CausalConv3d(channels, channels)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        y = self.conv1(normed_silu(x, eps=self.eps), state)
        return x + self.conv2(normed_silu(y, eps=self.eps), state)


class Downsampler(nn.Module):
    """Space-to-depth of a convolution, plus the group mean of the input's own space-to-depth."""

    def __init__(self, channels: int, out_channels: int, stride: tuple[int, int, int]):
        super().__init__()
        self.stride, cell = stride, stride[0] * stride[1] * stride[2]
        assert out_channels % cell == 0 and channels * cell % out_channels == 0, (
            f"downsampler: {channels} -> {out_channels} channels do not divide by the cell of {cell}"
        )
        self.group = channels * cell // out_channels
        self.conv = CausalConv3d(channels, out_channels // cell)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        if not state.started:  # the first frame stands alone: complete its group with copies
            x = torch.cat([x[:, :, : self.stride[0] - 1], x], 2)
        residual = functional.fold_channels(x, self.stride).unflatten(1, (-1, self.group)).mean(2)
        return functional.fold_channels(self.conv(x, state), self.stride) + residual


class Upsampler(nn.Module):
    """Depth-to-space of a convolution, plus the input's own depth-to-space, tiled over the channels."""

    def __init__(self, channels: int, out_channels: int, stride: tuple[int, int, int]):
        super().__init__()
        self.stride, cell = stride, stride[0] * stride[1] * stride[2]
        assert channels % cell == 0 and out_channels % (channels // cell) == 0, (
            f"upsampler: {channels} -> {out_channels} channels do not divide by the cell of {cell}"
        )
        self.tiles = out_channels * cell // channels
        self.conv = CausalConv3d(channels, out_channels * cell)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        drop = 0 if state.started else self.stride[0] - 1
        residual = unfold_channels(x, self.stride, drop).unsqueeze(1)
        y = unfold_channels(self.conv(x, state), self.stride, drop)
        return (y.unflatten(1, (self.tiles, -1)) + residual).flatten(1, 2)


def patchify(x: torch.Tensor, p: int) -> torch.Tensor:
    """[B, C, T, H p, W p] -> [B, C p p, T, H, W]; LTX-Video's channel order is (c, column, row)."""
    return functional.fold_channels(x.transpose(3, 4), (1, p, p)).transpose(3, 4)


def unpatchify(x: torch.Tensor, p: int) -> torch.Tensor:
    return unfold_channels(x.transpose(3, 4), (1, p, p)).transpose(3, 4)


class ConvEncoder(nn.Module):
    """[B, 3, 1 + 8n, H, W] -> posterior mean and one shared log-variance [B, latent + 1, 1 + n, H / 32, W / 32]."""

    def __init__(self, config: ConvVAEConfig):
        super().__init__()
        channels, self.patch = config.encoder_channels, config.patch_size
        self.conv_in = CausalConv3d(3 * self.patch**2, channels[0])
        self.blocks = nn.ModuleList()
        for i, layers in enumerate(config.encoder_layers):
            self.blocks.extend(ResBlock(channels[i]) for _ in range(layers))
            if i < len(config.encoder_down):
                self.blocks.append(Downsampler(channels[i], channels[i + 1], STRIDES[config.encoder_down[i]]))
        self.conv_out = CausalConv3d(channels[-1], config.latent_channels + 1)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        x = self.conv_in(patchify(x, self.patch), state)
        for block in self.blocks:
            x = block(x, state)
        return self.conv_out(normed_silu(x, eps=NORM_EPS), state)


class ConvDecoder(nn.Module):
    """[B, latent, n, h, w] -> [B, 3, 8n (- 7 at the start), 32 h, 32 w]."""

    def __init__(self, config: ConvVAEConfig):
        super().__init__()
        channels, self.patch = config.decoder_channels, config.patch_size
        self.conv_in = CausalConv3d(config.latent_channels, channels[0])
        self.blocks = nn.ModuleList()
        for i, layers in enumerate(config.decoder_layers):
            if i > 0:
                self.blocks.append(Upsampler(channels[i - 1], channels[i], STRIDES[config.decoder_up[i - 1]]))
            self.blocks.extend(ResBlock(channels[i]) for _ in range(layers))
        self.conv_out = CausalConv3d(channels[-1], 3 * self.patch**2)

    def forward(self, z: torch.Tensor, state: StreamState) -> torch.Tensor:
        x = self.conv_in(z, state)
        for block in self.blocks:
            x = block(x, state)
        return unpatchify(self.conv_out(normed_silu(x, eps=NORM_EPS), state), self.patch)


class TemporalVAE(nn.Module):
    """Encoder, decoder and latent statistics of a checkpoint. Latents are normalised by the statistics."""

    latents_mean: torch.Tensor
    latents_std: torch.Tensor

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config.vae
        self.height, self.width, self.grid = config.height, config.width, config.grid
        if isinstance(config.vae, BasisVAEConfig):
            from rest_fast.models.vae_basis import BasisDecoder, BasisEncoder, SpaceTimeBasis

            basis = SpaceTimeBasis(config.vae, config.grid)
            self.encoder: nn.Module = BasisEncoder(basis)
            self.decoder: nn.Module = BasisDecoder(config.vae, basis, config.grid)
        else:
            self.encoder, self.decoder = ConvEncoder(config.vae), ConvDecoder(config.vae)
        column = (config.vae.latent_channels, 1, 1, 1)
        self.register_buffer("latents_mean", torch.zeros(column))
        self.register_buffer("latents_std", torch.ones(column))
        name_memories(self)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Posterior mean, normalised: video [B, 3, 1 + 8n, H, W] in -1..1 -> [B, C, 1 + n, H / 32, W / 32]."""
        self._check(video, "video", 3, (self.height, self.width))
        if video.shape[2] % TEMPORAL != 1:
            raise ValueError(f"encode: video: expected 1 + {TEMPORAL}n frames, got {video.shape[2]}")
        mean = self.encoder(video, StreamState())[:, : self.config.latent_channels]
        return (mean - self.latents_mean) / self.latents_std

    def decode(
        self, latents: torch.Tensor, *, mode: str = "causal", reference: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Whole clip: latents [B, C, 1 + n, h, w] -> video [B, 3, 1 + 8n, H, W], about -1..1."""
        return self.stream(mode=mode, reference=reference).decode(latents)

    def stream(self, *, mode: str = "causal", reference: torch.Tensor | None = None) -> DecodeStream:
        """A decoder with memory: the latents of one stream, in pieces of any size.

        ``reference`` [B, 3, 1, H, W] in -1..1 is the true first frame: the demo's decoder takes what stands still from
        it, LTX-Video's has no use for it. Without it the first latent has to do.
        """
        if mode != "causal":
            raise ValueError(f"stream: mode: expected 'causal' (what this checkpoint supports), got {mode!r}")
        if reference is not None:
            self._check(reference, "reference", 3, (self.height, self.width))
            if reference.shape[2] != 1:
                raise ValueError(f"stream: reference: expected 1 frame, got {reference.shape[2]}")
        return DecodeStream(self, reference if isinstance(self.config, BasisVAEConfig) else None)

    def decode_step(self, latents: torch.Tensor, state: StreamState) -> torch.Tensor:
        self._check(latents, "latents", self.config.latent_channels, self.grid)
        video = self.decoder(latents * self.latents_std + self.latents_mean, state)
        state.started = True
        return cast(torch.Tensor, video)

    def _check(self, x: torch.Tensor, name: str, channels: int, size: tuple[int, int]) -> None:
        if x.ndim != 5 or x.shape[1] != channels or tuple(x.shape[3:]) != size or x.shape[2] < 1:
            raise ValueError(f"vae: {name}: expected [B, {channels}, T, {size[0]}, {size[1]}], got {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"vae: {name}: expected a floating dtype, got {x.dtype}")


class DecodeStream:
    """State of one streaming decode. The first latent gives 1 frame, every further one 8."""

    def __init__(self, vae: TemporalVAE, reference: torch.Tensor | None = None):
        self.vae, self.reference = vae, reference
        self.reset()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The next latents [B, C, n, h, w] -> video [B, 3, frames, H, W]."""
        return self.vae.decode_step(latents, self.state)

    def reset(self) -> None:
        self.state = StreamState()
        if self.reference is not None:
            self.state.histories[REFERENCE] = self.reference

    def snapshot(self) -> StreamState:
        return self.state.snapshot()

    def restore(self, state: StreamState) -> None:
        self.state = state.snapshot()
