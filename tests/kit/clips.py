"""Tiny folders of prepared clips: little to learn, but something. A loudness opens a mouth in a few directions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from rest_fast.config import BasisVAEConfig, ModelConfig, preset
from rest_fast.model import Model
from rest_fast.models.speech import speech_features
from rest_fast.models.vae import to_tokens
from rest_fast.training.shards import FRAMES, Manifest, encoder_fingerprint, write_shard
from rest_fast.training.synthetic.clips import LEAD, TAIL
from rest_fast.units import FRAME


def small(**vae: int) -> ModelConfig:
    """The demo's configuration at 64 x 64 (a grid of 2 x 2), narrow."""
    sizes = {"latent_channels": 12, "spatial_rank": 8, "mixer_layers": 1, "mixer_heads": 1, "mixer_width": 16}
    return preset("drawn").replace(
        height=64,
        width=64,
        vae=BasisVAEConfig(**sizes | {"post_channels": 8, "post_blocks": 1} | vae),
        speech__width=16,
        dit__layers=1,
        dit__heads=1,
        dit__head_dim=16,
        sampling__steps=2,
    )


def loudness(count: int, g: torch.Generator) -> torch.Tensor:
    """[count, 97] in 0..1, two slow waves of each clip."""
    time = torch.arange(FRAMES) / 25
    rate, phase = 1 + 2 * torch.rand(2, count, 1, generator=g), 6 * torch.rand(2, count, 1, generator=g)
    return 0.5 + 0.25 * (rate * 6 * time + phase).sin().sum(0)


def draw_clips(config: ModelConfig, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """All fields of prepared clips but latents, which are noise [count, 13 T, C] about the loudness of their frames."""
    g = torch.Generator().manual_seed(seed)
    loud = loudness(count, g)
    sound = torch.randn(count, LEAD + FRAMES * FRAME + TAIL, generator=g)
    gain = torch.cat([torch.zeros(count, LEAD), loud.repeat_interleave(FRAME, 1), torch.zeros(count, TAIL)], 1)
    samples = 0.2 * sound * gain
    features = speech_features(config.speech)
    first, end = LEAD + FRAME - features.back, LEAD + FRAMES * FRAME + features.ahead
    size = (config.height, config.width, 3)
    face = torch.nn.functional.interpolate(torch.randn(count, 3, 3, 3, generator=g), size[:2], mode="bilinear")
    face = face.permute(0, 2, 3, 1)[:, None]
    mouth = torch.zeros(size)
    mouth[size[0] * 5 // 8 : size[0] * 7 // 8, size[1] * 3 // 8 : size[1] * 5 // 8] = 1
    video = (128 + 40 * face - 90 * mouth * loud[..., None, None, None]).clamp(0, 255)
    latents = torch.randn(count, (FRAMES + 7) // 8 * config.tokens, config.vae.latent_channels, generator=g)
    return {
        "features": features(samples[:, first:end]).half(),
        "video": video.round().to(torch.uint8),
        "samples": samples,
        "labels": torch.stack([loud, 1 - loud], -1),
        "latents": (0.5 * latents + loud[:, ::8].repeat_interleave(config.tokens, 1)[..., None]).half(),
    }


def write_clips(
    folder: Path,
    config: ModelConfig,
    count: int = 4,
    *,
    fields: Sequence[str] = ("features", "video", "samples", "labels"),
    vae: Model | None = None,
    seed: int = 0,
) -> Path:
    """A prepared folder of ``count`` clips in two shards. ``latents`` among the fields are those of ``vae``; without
    one they are noise, and belong to no encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_clips(config, count, seed)
    if vae is not None and "latents" in fields:
        frames = drawn["video"].permute(0, 4, 1, 2, 3) / 127.5 - 1
        with torch.no_grad():
            drawn["latents"] = torch.cat([to_tokens(vae.vae.encode(clip[None])) for clip in frames]).half()
    speech = json.loads(json.dumps(dataclasses.asdict(config.speech)))
    manifest = Manifest(config.height, config.width, speech, None if vae is None else encoder_fingerprint(vae.vae))
    half = max(1, count // 2)
    for number, part in enumerate((slice(0, half), slice(half, count))):
        tensors = {name: drawn[name][part] for name in fields}
        if len(next(iter(tensors.values()))):
            manifest.shards.append(write_shard(folder, f"clips_{number}.safetensors", tensors) | {"split": "train"})
    manifest.save(folder)
    return folder
