"""A chunk of SoulX-FlashHead by stage: this package, and the published code's arithmetic as plain eager PyTorch.

    python -m benchmarks.flashhead --out benchmarks/results/flashhead_cpu.json

Random weights, the same for both, in one process, stages taking turns. The published code itself is not here: *plain*
is what its ``forward`` computes, call by call, with nothing kept from one evaluation to the next: timestep, audio
tokens and their keys and values anew in each, rotations as complex numbers in float64, one kernel a formula; its
decoder is ours with every op's reference in PyTorch. Latents are compared with ours before anything is timed. The model
has all layers and a quarter of each width; ``device/flashhead.py`` has the published size, for a GPU.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import kit
from rest_fast import ops
from rest_fast.config import ConvVAEConfig
from rest_fast.config.flashhead import FlashHeadConfig, FlashHeadDiTConfig, Wav2VecConfig
from rest_fast.latency import where
from rest_fast.model import FlashHeadModel
from rest_fast.models.flashhead.colour import match_colours
from rest_fast.models.flashhead.dit import FlashHeadBlock, FlashHeadDiT
from rest_fast.models.vae import to_latents
from rest_fast.streaming.flashhead import FlashHeadSampler, Job, Networks
from rest_fast.streaming.graphs import Graphs
from rest_fast.streaming.windows import Window

LEAST = 3  # rounds
OFF = 2e-2  # of the largest number: what the two chunks may differ by in bfloat16; in float32 a thousandth of it


def config_of(narrower: int, side: int, layers: int = 30) -> FlashHeadConfig:
    """The published model with each width divided, heads left at their size."""

    def widths(*full: int) -> tuple[int, ...]:
        return tuple(width // narrower for width in full)

    vae = ConvVAEConfig(
        latent_channels=128,
        encoder_channels=widths(128, 256, 512, 512),
        encoder_layers=(4, 3, 3, 7),
        encoder_down=("all",) * 3,
        encoder_resample="stride",
        decoder_channels=widths(512, 512, 256, 128),
        decoder_layers=(7, 3, 3, 4),
        decoder_widen=True,
        decoder_residual=False,
        causal_decoder=False,
    )
    width, heads = 768 // narrower, 12 // narrower
    speech = Wav2VecConfig(widths(*(512,) * 7), width=width, heads=heads, mlp_width=4 * width, position_groups=heads)
    dit = FlashHeadDiTConfig(layers=layers, heads=heads, mlp_width=8960 // narrower, audio_hidden=512 // narrower)
    return FlashHeadConfig("flashhead", side, side, vae, speech, dit)


def random_model(config: FlashHeadConfig) -> FlashHeadModel:
    device = kit.device()
    with torch.device(device):
        model = FlashHeadModel(config)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        deviation = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(0, deviation, generator=generator)
    model = model.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval().requires_grad_(False)
    model.vae.pack()
    return model


# -- what the published code computes


def published_velocity(
    dit: FlashHeadDiT, z: torch.Tensor, reference: torch.Tensor, timestep: torch.Tensor, features: torch.Tensor
) -> torch.Tensor:
    heard = dit.audio(features)
    six, embedded = dit.time(timestep)
    turning = torch.view_as_complex(dit.rope[:, : dit.config.head_dim // 2].contiguous())[:, None]
    x = dit.proj_in(torch.cat([z, reference], -1))
    for block in dit.blocks:
        x = _published_block(block, x, six, turning, heard, dit.config.head_dim)
    shift, scale = dit.table + embedded
    found: torch.Tensor = dit.proj_out(F.layer_norm(x, x.shape[-1:], eps=dit.config.norm_eps) * (1 + scale) + shift)
    return found


def _published_block(
    block: FlashHeadBlock, x: torch.Tensor, six: torch.Tensor, turning: torch.Tensor, heard: torch.Tensor, dim: int
) -> torch.Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.table + six

    def heads(y: torch.Tensor) -> torch.Tensor:
        return y.unflatten(-1, (-1, dim))

    def rms(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(y.float(), y.shape[-1:], eps=block.qk_eps).to(y.dtype) * weight

    def turned(y: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(heads(y).double().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turning).flatten(-2).to(y.dtype)

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.transpose(-3, -2) for y in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)

    def normed(y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(y, y.shape[-1:], eps=block.eps)

    q, k, v = block.attn.qkv(normed(x) * (1 + scale1) + shift1).chunk(3, -1)
    seen = attention(turned(rms(q, block.attn.q_norm)), turned(rms(k, block.attn.k_norm)), heads(v))
    x = x + gate1 * block.attn.out(seen)
    audio = block.audio
    q, (k, v) = rms(audio.q(block.norm(x)), audio.q_norm), audio.kv(heard).chunk(2, -1)
    frames = heads(q).unflatten(1, (heard.shape[1], -1))
    x = x + audio.out(attention(frames, heads(rms(k, audio.k_norm)), heads(v)).flatten(1, 2))
    return x + gate2 * block.mlp(normed(x) * (1 + scale2) + shift2)


# -- a chunk


class Chunk:
    """One chunk in the middle of a stream: what goes into each stage, and the stages."""

    def __init__(self, model: FlashHeadModel, graphs: Graphs | None = None):
        self.model, config, stream = model, model.config, model.config.stream
        generator = torch.Generator(model.device).manual_seed(1)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=model.device)

        tokens, channels, size = config.tokens, config.vae.latent_channels, (config.height, config.width)
        window = stream.window * tokens
        self.sampler = FlashHeadSampler.of(model, config.sampling, graphs=graphs)
        self.networks = Networks(model, graphs)
        self.sound = 0.1 * drawn(1, model.speech.samples)
        self.photo = drawn(1, 3, 1, *size).clamp(-1, 1).to(model.dtype)
        self.shown = drawn(1, 3, stream.motion_frames, *size).clamp(-1, 1).to(model.dtype)
        self.posterior, self.latents = drawn(1, stream.motion * tokens, channels), drawn(1, window, channels)
        self.noise = tuple(drawn(1, window, channels) for _ in range(config.sampling.steps))
        self.reference, self.motion = drawn(1, window, channels), drawn(1, stream.motion * tokens, channels)
        self.features, heard = model.speech(self.sound), self.networks.hear(self.sound)[0].clone()
        self.job: Any = Job(0, Window(self.reference, self.motion, heard, self.noise), None)  # type: ignore[arg-type]
        self.frames = model.vae.decode(to_latents(self.latents.to(model.dtype), config.grid)).to(model.wide)
        self.ahead = model.vae.stream(mode="lookahead(0)", reference=self.photo)
        self.piece = to_latents(self.latents[:, : stream.chunk * tokens].to(model.dtype), config.grid)
        self.ahead.piece(torch.cat([self.piece[:, :, :1], self.piece], 2), pictures=True)

    def evaluations(self) -> torch.Tensor:
        return self.sampler.run([self.job])

    def published_evaluations(self) -> torch.Tensor:
        z, held, dtype = self.noise[0].clone(), self.motion.shape[1], self.model.dtype
        for i, level in enumerate(self.sampler.levels):
            z[:, :held] = self.motion
            timestep = torch.tensor(level.timestep, dtype=torch.float64, device=z.device)
            v = published_velocity(self.model.dit, z.to(dtype), self.reference.to(dtype), timestep, self.features)
            fresh = self.noise[(i + 1) % len(self.noise)]
            z = (1 - level.after) * (z - level.now * v) + level.after * fresh
        z[:, :held] = self.motion
        return z

    def decode(self) -> torch.Tensor:
        return self.model.vae.decode(to_latents(self.latents.to(self.model.dtype), self.model.config.grid))

    def published_decode(self) -> torch.Tensor:
        with ops.use_backend("reference"):
            return self.decode()

    def colour(self) -> torch.Tensor:
        return match_colours(self.frames, self.photo.to(self.model.wide))

    def stages(self) -> dict[str, dict[str, Callable[[], Any]]]:
        """Of each stage: ours, and *plain* where that differs."""
        encode = functools.partial(self.networks.encode, self.shown, self.posterior)
        return {
            "wav2vec and audio tokens": {
                "ours": lambda: self.networks.hear(self.sound),
                "plain": lambda: self.model.speech(self.sound),  # the tokens come with each evaluation
            },
            "four evaluations": {"ours": self.evaluations, "plain": self.published_evaluations},
            "decode, 33 frames": {"ours": self.decode, "plain": self.published_decode},
            "colour match": {"ours": self.colour},
            "encode back, 9 frames": {"ours": encode},
            "decode, 24 frames of a stream": {"ours": lambda: self.ahead.piece(self.piece, pictures=True)},
        }


def judged(chunk: Chunk) -> float:
    """The largest difference between our latents and *plain*'s, as a share of the largest number."""
    ours, plain = chunk.evaluations(), chunk.published_evaluations()
    off = float((ours - plain).abs().max() / plain.abs().max())
    limit = OFF if chunk.model.dtype == torch.bfloat16 else OFF / 1000
    assert off <= limit, f"expected the same latents but for {limit:g} of the largest, got {off:.3g}"
    return off


@torch.no_grad()
def measured(config: FlashHeadConfig, budget: float, graphs: Graphs | None = None) -> dict[str, Any]:
    """Medians of each stage, and what was measured."""
    chunk = Chunk(random_model(config), graphs)
    off, found = judged(chunk), {}
    for name, variants in chunk.stages().items():
        calls = {key: (lambda i, run=run: run()) for key, run in variants.items()}
        times = kit.interleaved(calls, budget=budget, least=LEAST)
        found[name] = {key: kit.summary(t)["median_us"] / 1e3 for key, t in times.items()}
    return {
        "stages": found,
        "off": off,
        "about": {
            **{"side": config.height, "width": config.dit.width, "layers": config.dit.layers},
            **{"parameters": sum(p.numel() for p in chunk.model.parameters()), "dtype": str(chunk.model.dtype)},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--narrower", type=int, default=4, help="by what each width is divided")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of a stage")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = measured(config_of(args.narrower, args.side), args.budget)
    found["environment"] = where.environment(where.commit_info())
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["stages"], indent=1))


if __name__ == "__main__":
    main()
