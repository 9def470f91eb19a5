"""Small models of the family of SoulX-FlashHead, and a second transformer written from the formulas alone."""

from __future__ import annotations

import cmath
import dataclasses
import functools
import math
from typing import Any

import torch
import torch.nn.functional as F

from rest_fast.config import preset
from rest_fast.config.flashhead import FlashHeadConfig, FlashHeadDiTConfig, Wav2VecConfig
from rest_fast.model import FlashHeadModel
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.flashhead.dit import FlashHeadDiT
from tests.kit.models import randomise

F64 = torch.float64


def toy(**changes: Any) -> FlashHeadConfig:
    """64 x 64, two narrow blocks, a narrow wav2vec of two layers, windows of the published length."""
    config = FlashHeadConfig(
        "flashhead-toy",
        64,
        64,
        dataclasses.replace(preset("toy").vae, causal_decoder=False),
        Wav2VecConfig(
            (8,) * 7, layers=2, heads=2, width=12, mlp_width=20, position_kernel=4, position_groups=2, seconds=2
        ),
        FlashHeadDiTConfig(
            layers=2, heads=2, head_dim=12, mlp_width=40, time_channels=16, audio_hidden=10, audio_tokens=3
        ),
    )
    return dataclasses.replace(config, **changes)


@functools.cache
def toy_model(dtype: torch.dtype = torch.float32) -> FlashHead:
    """A frozen toy without any zeros left from its initialisation; shared."""
    model = FlashHead(toy(), threads=1).to(dtype)
    randomise(model, 5)
    return model.requires_grad_(False).eval()


def small(side: int = 32) -> FlashHeadModel:
    """A frozen model of one thread, from sound to pictures."""
    model = FlashHeadModel(toy(height=side, width=side), threads=1)
    randomise(model, 5)
    return model.requires_grad_(False).eval()


def window(model: FlashHead, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents and reference [1, F T, C], features of 33 video frames and 4 before them [1, 37, L, C]."""
    config, g = model.config, torch.Generator().manual_seed(seed)
    tokens = config.stream.window * config.tokens
    z, reference = torch.randn(2, 1, tokens, config.vae.latent_channels, generator=g, dtype=model.dtype)
    shape = (1, config.stream.frames + 4, config.speech.layers, config.speech.width)
    return z, reference, torch.randn(shape, generator=g, dtype=model.dtype)


# -- the second transformer: loops and complex numbers, nothing from rest_fast but the weights


def plain_audio(dit: FlashHeadDiT, features: torch.Tensor) -> torch.Tensor:
    """Audio tokens [F, A, W] from the features [n, L, C] of video frames, frame by frame."""
    w, projection = dit.state_dict(), dit.audio
    last = len(features) - 1

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return w[f"audio.{name}.weight"] @ x + w[f"audio.{name}.bias"]

    def near(frame: int, offsets: range) -> list[torch.Tensor]:
        return [features[min(frame + k, last)] for k in offsets]

    start = len(features) - projection.frames
    half = projection.window // 2
    hidden = [linear(torch.stack(near(start, range(-half, half + 1))).flatten(), "first")]
    for group in range(start + 1, len(features), 8):
        heard = near(group, range(-half, 1))
        heard += [features[frame] for frame in range(group + 1, group + 7)]
        heard += near(group + 7, range(half + 1))
        hidden.append(linear(torch.stack(heard).flatten(), "later"))
    out = []
    for x in hidden:
        x = linear(linear(x.clamp(min=0), "mix").clamp(min=0), "out").view(projection.tokens, -1)
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        out.append(x * w["audio.norm.weight"] + w["audio.norm.bias"])
    return torch.stack(out)


def plain_velocity(
    dit: FlashHeadDiT, config: FlashHeadConfig, z: torch.Tensor, reference: torch.Tensor, t: float, audio: torch.Tensor
) -> torch.Tensor:
    """Velocity [N, C] of latents [N, C] at timestep t, with audio tokens [F, A, W]."""
    w, d, (rows, columns) = dit.state_dict(), config.dit, config.grid
    cells = [(f, y, x) for f in range(config.stream.window) for y in range(rows) for x in range(columns)]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def layer_norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + d.norm_eps).sqrt()

    def rms(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + d.qk_eps).sqrt() * w[name]

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.unflatten(-1, (d.heads, d.head_dim)).transpose(0, 1) for x in (q, k, v))
        return ((q @ k.mT / math.sqrt(d.head_dim)).softmax(-1) @ v).transpose(0, 1).flatten(1)

    def phases(cell: tuple[int, int, int]) -> list[complex]:
        third = d.head_dim // 3  # channels of rows, and of columns; the rest is time's
        found = []
        for place, channels in zip(cell, (d.head_dim - 2 * third, third, third), strict=True):
            found += [cmath.exp(1j * place / d.rope_theta ** (i / channels)) for i in range(0, channels, 2)]
        return found * d.heads

    turning = torch.tensor([phases(cell) for cell in cells], dtype=torch.complex128)

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turning).flatten(-2)

    half = d.time_channels // 2
    angles = [t / 10000 ** (i / half) for i in range(half)]
    wave = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=F64)
    embedded = linear(F.silu(linear(wave, "time.embed.0")), "time.embed.2")
    six = linear(F.silu(embedded), "time.six").view(6, -1)
    x = linear(torch.cat([z, reference], -1), "proj_in")
    for layer in range(d.layers):
        p = f"blocks.{layer}"
        shift1, scale1, gate1, shift2, scale2, gate2 = w[f"{p}.table"] + six
        q, k, v = linear(layer_norm(x) * (1 + scale1) + shift1, f"{p}.attn.qkv").split(d.width, -1)
        q, k = turned(rms(q, f"{p}.attn.q_norm")), turned(rms(k, f"{p}.attn.k_norm"))
        x = x + gate1 * linear(attention(q, k, v), f"{p}.attn.out")
        y = layer_norm(x) * w[f"{p}.norm.weight"] + w[f"{p}.norm.bias"]
        parts = []
        for frame, own in enumerate(y.split(rows * columns)):
            q = rms(linear(own, f"{p}.audio.q"), f"{p}.audio.q_norm")
            k, v = linear(audio[frame], f"{p}.audio.kv").split(d.width, -1)
            parts.append(linear(attention(q, rms(k, f"{p}.audio.k_norm"), v), f"{p}.audio.out"))
        x = x + torch.cat(parts)
        hidden = gelu(linear(layer_norm(x) * (1 + scale2) + shift2, f"{p}.mlp.0"))
        x = x + gate2 * linear(hidden, f"{p}.mlp.2")
    shift, scale = w["table"] + embedded
    return linear(layer_norm(x) * (1 + scale) + shift, "proj_out")
