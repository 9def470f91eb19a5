"""Encoder, decoder and latent statistics of a checkpoint, of any family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rest_fast import noise
from rest_fast.config import ConvVAEConfig, ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.vae import basis, ltx, motion
from rest_fast.models.vae.family import Decoder
from rest_fast.models.vae.layers import name_memories
from rest_fast.ops.latent_noise import drawn

# By the ``kind`` of a configuration: makes encoder and decoder, given a model's latent grid or None.
FAMILIES: dict[str, Callable[[Any, tuple[int, int] | None], tuple[nn.Module, Decoder]]] = {
    "conv": ltx.build,
    "basis": basis.build,
    "motion": motion.build,
}


class Codec(nn.Module):
    """An encoder, a decoder and the statistics by which latents are normalised.

    With the configuration of a model, pictures have the model's size; with that of a VAE alone they may have any whole
    number of cells.
    """

    latents_mean: torch.Tensor
    latents_std: torch.Tensor

    def __init__(self, config: ModelConfig | ConvVAEConfig):
        super().__init__()
        self.config = config.vae if isinstance(config, ModelConfig) else config
        self.size = (config.height, config.width) if isinstance(config, ModelConfig) else None
        grid = config.grid if isinstance(config, ModelConfig) else None
        self.encoder, self.decoder = FAMILIES[self.config.kind](self.config, grid)
        column = (self.config.latent_channels, 1, 1, 1)
        self.register_buffer("latents_mean", torch.zeros(column))
        self.register_buffer("latents_std", torch.ones(column))
        name_memories(self)

    def denormalised(self, latents: torch.Tensor, index: int, seed: int) -> torch.Tensor:
        """The decoder's input: mix in noise if the checkpoint asks for it, then undo the normalisation.

        The order is LTX-Video's. The noise of a latent depends on the seed and on its place in the stream alone, so
        neither the cutting into pieces nor other lanes change it.
        """
        share = self.decoder.noise_share
        if share:
            (_, c, n, h, w), purpose = latents.shape, noise.DECODER
            made = drawn(seed, range(index, index + n), c * h * w, purpose, latents.device)
            latents = (1 - share) * latents + share * made.view(n, c, h, w).movedim(0, 1).to(latents)
        return latents * self.latents_std + self.latents_mean

    def check_video(self, video: torch.Tensor, name: str) -> None:
        """ArgumentError for anything but pictures in -1..1 [B, 3, T, H, W] of this VAE's size, dtype and device."""
        self._check(video, name, 3, self.size)
        cell, (h, w) = self.config.spatial, video.shape[3:]
        if h % cell or w % cell:
            raise ArgumentError(f"vae: {name}: expected rows and columns divisible by {cell}, got {h} x {w}")

    def check_latents(self, latents: torch.Tensor) -> None:
        """ArgumentError for anything but latents [B, C, n, h, w] of this VAE's size, dtype and device."""
        self._check(latents, "latents", self.config.latent_channels)

    def _check(self, x: torch.Tensor, name: str, channels: int, size: tuple[int, int] | None = None) -> None:
        if size is None and self.size is not None:
            size = (self.size[0] // self.config.spatial, self.size[1] // self.config.spatial)
        if not isinstance(x, torch.Tensor):
            raise ArgumentError(f"vae: {name}: expected a tensor, got {type(x).__name__}")
        fits = x.ndim == 5 and x.shape[1] == channels and min(x.shape) > 0
        if not fits or (size is not None and tuple(x.shape[3:]) != size):
            rows, columns = size or ("H", "W")
            raise ArgumentError(f"vae: {name}: expected [B, {channels}, T, {rows}, {columns}], got {list(x.shape)}")
        own = self.latents_mean
        if (x.dtype, x.device) != (own.dtype, own.device):
            raise ArgumentError(f"vae: {name}: expected {own.dtype} on {own.device}, got {x.dtype} on {x.device}")
