"""Trains a VAE on pixels: a convolutional one at once, or the basis of drawn faces: basis, mixer, then post-net.

REST takes LTX-Video's VAE unchanged (paper section 3.1); this stage is for a new VAE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rest_fast.config import TEMPORAL
from rest_fast.model import Model
from rest_fast.models.vae.ltx import ConvEncoder
from rest_fast.models.vae.state import StreamState
from rest_fast.training import losses, vae_basis
from rest_fast.training.config import Stage, TrainingConfig
from rest_fast.training.distributed import World
from rest_fast.training.flow import LATENTS, autocast, pick, step_generator
from rest_fast.training.loop import Trainer
from rest_fast.training.shards import FRAMES, Shards

STATISTICS = 200  # clips from whose latents mean and deviation are computed


def train(model: Model, config: TrainingConfig, clips: Shards, folder: Path, world: World, fresh: bool = True) -> None:
    """Train the VAE of a model in place, from random weights if ``fresh``; states in ``folder``, resumed if there."""
    clips.require("video")
    if isinstance(model.vae.encoder, ConvEncoder):
        model.vae.to(world.device)
        stage = ConvVAE(model, config, fresh).requires_grad_(True)
        _run(stage, config.vae, config, VideoData(clips, config), folder, world)
        measure_latents(model, clips)
        return
    pieces = vae_basis.PieceData(clips, config)
    vae_basis.fit_or_load(model, clips, config, folder / "basis.safetensors", world)
    mixer = vae_basis.MixerStage(model, config)
    mixer.decoder.mixer.requires_grad_(True)
    _run(mixer, config.vae.mixer, config, pieces.of(config.vae.mixer), folder / "mixer", world)
    pixels = vae_basis.PixelStage(model, config)
    pixels.decoder.requires_grad_(True)
    _run(pixels, config.vae, config, pieces.of(config.vae), folder, world)


def _run(module: nn.Module, stage: Stage, config: TrainingConfig, data, folder: Path, world: World) -> None:
    trainer = Trainer(module, stage, config, folder, world)
    trainer.resume()
    trainer.run(data)
    module.requires_grad_(False)


@dataclass
class VideoBatch:
    """Frames fp32 [B, 3, 1 + 8 n, H, W] in -1..1, and for each clip the seed of what else the step draws."""

    frames: torch.Tensor
    seeds: list[int]

    def to(self, device: torch.device) -> VideoBatch:
        return VideoBatch(self.frames.to(device, non_blocking=True), self.seeds)


class VideoData:
    """Stretches of 1 + 8 n frames that begin anywhere in a clip."""

    def __init__(self, clips: Shards, config: TrainingConfig):
        self.clips, self.seed, self.batch = clips, config.seed, config.vae.batch
        self.frames = 1 + TEMPORAL * min(config.vae.pieces, LATENTS - 1)

    def __call__(self, step: int, rows: range) -> VideoBatch:
        g = step_generator(self.seed, step)
        index = pick(len(self.clips), self.batch, self.seed, step)
        first = torch.randint(FRAMES - self.frames + 1, (self.batch,), generator=g).tolist()
        pixels = [self.clips.pixels(index[row], slice(first[row], first[row] + self.frames)) for row in rows]
        return VideoBatch(torch.stack(pixels), [self.seed * 1_000_003 + step * self.batch + row for row in rows])


class ConvVAE(nn.Module):
    """Decodes sampled latents: pixel loss, and the divergence of the posterior from a unit normal."""

    def __init__(self, model: Model, config: TrainingConfig, fresh: bool = True):
        super().__init__()
        self.encoder, self.decoder, self.config = model.vae.encoder, model.vae.decoder, config
        self.past = 2 if model.vae.causal else 1  # frames of history; a symmetric decoder also sees one later frame
        last, self.channels = self.encoder.conv_out, model.config.vae.latent_channels
        if fresh:
            with torch.no_grad():
                last.weight[-1].zero_()
                last.bias[-1] = -5.0  # a deviation of 0.08: unit noise would hide the first means

    def forward(self, video: VideoBatch) -> dict[str, torch.Tensor]:
        x = video.frames
        with autocast(self.config, x.device):
            mean, log_variance = self.encoder(x, StreamState()).float().split([self.channels, 1], 1)
            sources = [torch.Generator().manual_seed(seed) for seed in video.seeds]
            noise = torch.stack([torch.randn(mean.shape[1:], generator=source) for source in sources]).to(mean)
            again = self.decoder(mean + (0.5 * log_variance).exp() * noise, StreamState(self.past)).float()
        terms = {"pixels": losses.pixel_loss(again, x), "kl": losses.divergence(mean, log_variance)}
        return {"loss": terms["pixels"] + self.config.vae.kl * terms["kl"], **terms}


@torch.no_grad()
def measure_latents(model: Model, clips: Shards) -> None:
    """Measure mean and deviation of every channel of the latents, by which the VAE then normalises them."""
    vae = model.vae
    vae.latents_mean.zero_()
    vae.latents_std.fill_(1)
    device = vae.latents_mean.device
    count = min(len(clips), STATISTICS)
    latents = torch.stack([vae.encode(clips.pixels(i)[None].to(device))[0] for i in range(count)])
    channels = latents.transpose(0, 1).flatten(1)
    vae.latents_mean.copy_(channels.mean(1).view_as(vae.latents_mean))
    vae.latents_std.copy_(channels.std(1).clamp(min=1e-4).view_as(vae.latents_std))
