"""A chunk of SoulX-FlashHead by stage: this package, and the published code's arithmetic as plain eager PyTorch.

    python -m benchmarks.flashhead --compile --out benchmarks/results/flashhead_cpu.json

Random weights, the same for both, in one process, stages taking turns. The published code itself is not here: *plain*
is what its ``forward`` computes, call by call, with nothing kept from one evaluation to the next: timestep, audio
tokens and their keys and values anew in each, rotations as complex numbers in float64, one kernel a formula; its
decoder is diffusers', of which it has a copy. ``--compile``: the same through ``torch.compile``, as on its servers, but
for the transformer a block at a time: thirty of them in one graph were not compiled in 12 minutes of two cores. Latents
and frames are compared with ours before anything is timed. The model has all layers and a quarter of each width;
``device/flashhead.py`` has the published size, for a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import kit, vae_peers
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
    dit: FlashHeadDiT,
    z: torch.Tensor,
    reference: torch.Tensor,
    timestep: torch.Tensor,
    features: torch.Tensor,
    block: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """``block``: :func:`published_block`, compiled."""
    heard = dit.audio(features)
    six, embedded = dit.time(timestep)
    turning = torch.view_as_complex(dit.rope[:, : dit.config.head_dim // 2].contiguous())[:, None]
    x = dit.proj_in(torch.cat([z, reference], -1))
    for layer in dit.blocks:
        x = (block or published_block)(layer, x, six, turning, heard, dit.config.head_dim)
    shift, scale = dit.table + embedded
    found: torch.Tensor = dit.proj_out(F.layer_norm(x, x.shape[-1:], eps=dit.config.norm_eps) * (1 + scale) + shift)
    return found


def published_block(
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
    k, v = (heads(y).flatten(0, 1) for y in (rms(k, audio.k_norm), v))
    q = heads(q).unflatten(1, (heard.shape[1], -1)).flatten(0, 1)  # a frame of a lane is one of the batch
    x = x + audio.out(attention(q, k, v).view(x.shape))
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

    def published_evaluations(self, velocity: Callable[..., torch.Tensor] = published_velocity) -> torch.Tensor:
        z, held, dtype = self.noise[0].clone(), self.motion.shape[1], self.model.dtype
        for i, level in enumerate(self.sampler.levels):
            z[:, :held] = self.motion
            timestep = torch.tensor(level.timestep, dtype=torch.float64, device=z.device)
            v = velocity(self.model.dit, z.to(dtype), self.reference.to(dtype), timestep, self.features)
            fresh = self.noise[(i + 1) % len(self.noise)]
            z = (1 - level.after) * (z - level.now * v) + level.after * fresh
        z[:, :held] = self.motion
        return z

    def decode(self) -> torch.Tensor:
        return self.model.vae.decode(to_latents(self.latents.to(self.model.dtype), self.model.config.grid))

    def published_decode(self, decoder: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        z = to_latents(self.latents.to(self.model.dtype), self.model.config.grid)
        return decoder(self.model.vae.denormalised(z, 0, 0))

    def colour(self) -> torch.Tensor:
        return match_colours(self.frames, self.photo.to(self.model.wide))

    def published(self, compiled: bool) -> dict[str, Callable[[], torch.Tensor]]:
        """The published code's two longest stages; without diffusers the first alone."""
        around = functools.partial(torch.compile, dynamic=False) if compiled else lambda call: call
        velocity = functools.partial(published_velocity, block=around(published_block))
        found = {"four evaluations": functools.partial(self.published_evaluations, velocity)}
        with contextlib.suppress(ImportError, RuntimeError):  # not installed, or its libraries do not fit it
            decoder = vae_peers.Diffusers(self.model.vae)
            found["decode, 33 frames"] = functools.partial(self.published_decode, around(decoder))
        return found

    def stages(self, compiled: bool = False) -> dict[str, dict[str, Callable[[], Any]]]:
        """Of each stage: ours, and *plain* and *compiled* where they differ."""
        found: dict[str, dict[str, Callable[[], Any]]] = {
            "wav2vec and audio tokens": {
                "ours": lambda: self.networks.hear(self.sound),
                "plain": lambda: self.model.speech(self.sound),  # the tokens come with each evaluation
            },
            "four evaluations": {"ours": self.evaluations},
            "decode, 33 frames": {"ours": self.decode},
            "colour match": {"ours": self.colour},
            "encode back, 9 frames": {"ours": functools.partial(self.networks.encode, self.shown, self.posterior)},
            "decode, 24 frames of a stream": {"ours": lambda: self.ahead.piece(self.piece, pictures=True)},
        }
        for way in ("plain", "compiled")[: 1 + compiled]:
            for name, call in self.published(way == "compiled").items():
                found[name][way] = call
        return found


def judged(stages: dict[str, dict[str, Callable[[], Any]]], dtype: torch.dtype) -> dict[str, float]:
    """The largest difference between our latents and frames and others', as a share of the largest number."""
    limit, found = OFF if dtype == torch.bfloat16 else OFF / 1000, {}
    for name in ("four evaluations", "decode, 33 frames"):
        ours = stages[name]["ours"]().clone()
        for way in stages[name].keys() - {"ours"}:
            other = stages[name][way]()
            off = float((ours - other).abs().max() / other.abs().max())
            assert off <= limit, f"{name}, {way}: expected ours but for {limit:g} of the largest, got {off:.3g}"
            found[f"{name}, {way}"] = off
    return found


@torch.no_grad()
def measured(
    config: FlashHeadConfig, budget: float, graphs: Graphs | None = None, *, compiled: bool = False
) -> dict[str, Any]:
    """Medians of each stage, and what was measured."""
    chunk = Chunk(random_model(config), graphs)
    stages, found = chunk.stages(compiled), {}
    off = judged(stages, chunk.model.dtype)
    for name, variants in stages.items():
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
    parser.add_argument("--compile", action="store_true", help="the published arithmetic through torch.compile, too")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = measured(config_of(args.narrower, args.side), args.budget, compiled=args.compile)
    found["environment"] = where.environment(where.commit_info())
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["stages"], indent=1))


if __name__ == "__main__":
    main()
