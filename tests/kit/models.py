"""Small models with weights that do something, and a second DiT written from the formulas alone."""

from __future__ import annotations

import cmath
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.config import BasisVAEConfig, ModelConfig, SamplingConfig, preset
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.basis import BasisEncoder
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.sampler import ChunkSampler, noise_levels
from rest_fast.streaming.step import Step

F64 = torch.float64


def toy(**changes: Any) -> ModelConfig:
    """The preset ``toy`` (64 x 64, 2 blocks, text and audio) with changed fields."""
    return preset("toy").replace(**changes)


def basis_toy() -> ModelConfig:
    """The demo's kind of VAE at 32 x 32: a grid of 2 x 2 with blocks of 16 pixels."""
    vae = BasisVAEConfig(
        latent_channels=6,
        patch_size=16,
        spatial_rank=5,
        mixer_layers=2,
        mixer_heads=2,
        mixer_width=12,
        post_channels=6,
        post_blocks=1,
    )
    return toy(vae=vae, height=32, width=32)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and persistent buffer at random, of a size that keeps activations near 1. In place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(module.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator, dtype=F64)
        if "norm" in name or "std" in name:
            noise = 1 + 0.2 * noise  # factors
        elif tensor.ndim >= 2 and "table" not in name and "prompt" not in name:
            noise = noise / math.sqrt(tensor[0].numel())
        elif name.endswith(("bias", "table")):
            noise = 0.3 * noise
        with torch.no_grad():
            tensor.copy_(noise)
    return module


@functools.cache
def toy_vae(kind: str) -> TemporalVAE:
    """A float64 VAE of kind ``conv`` or ``basis`` without any zeros left from its initialisation; shared, frozen."""
    module = TemporalVAE(toy() if kind == "conv" else basis_toy())
    randomise(module.double(), 3)
    if isinstance(module.encoder, BasisEncoder):
        basis = module.encoder.basis
        with torch.no_grad():
            for vectors in (basis.spatial, basis.temporal):
                vectors.copy_(torch.linalg.qr(vectors)[0])
            basis.scale.uniform_(0.5, 2, generator=torch.Generator().manual_seed(3))
    return module.requires_grad_(False)


def video(module: TemporalVAE, frames: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Noise in -1..1, [B, 3, frames, H, W]."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, *(module.size or (64, 64)), generator=g, dtype=F64) * 2 - 1


def latents(module: TemporalVAE, count: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Noise, [B, C, count, h, w]."""
    g = torch.Generator().manual_seed(seed)
    grid = (n // module.config.spatial for n in module.size or (64, 64))
    return torch.randn(batch, module.config.latent_channels, count, *grid, generator=g, dtype=F64)


def toy_dit(config: ModelConfig, seed: int = 0) -> StreamingDiT:
    """A float64 DiT without any zeros or ones left from its initialisation."""
    dit = StreamingDiT(config).double()
    randomise(dit, seed)
    return dit.requires_grad_(False).eval()


def clip(dit: StreamingDiT, config: ModelConfig, frames: int, batch: int = 1, seed: int = 1):
    """Latents [B, F T, C], timesteps [B, F] with the reference at 0, codes [B, F, A, Wa] with the reference's null."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, frames * dit.tokens, config.vae.latent_channels, generator=g, dtype=F64)
    t = torch.rand(batch, frames, generator=g, dtype=F64)
    codes = torch.randn(batch, frames, config.speech.tokens, config.speech.width, generator=g, dtype=F64)
    t[:, 0], codes[:, 0] = 0, 0
    return z, t, codes


def open_cache(
    dit: StreamingDiT, config: ModelConfig, references: list[torch.Tensor], *, rows: int | None = None
) -> IDContextCache:
    """A float64 cache; row i holds the sink of references[i] [T, C]."""
    cache = IDContextCache(config, rows or len(references), dtype=F64)
    for row, reference in enumerate(references):
        cache.open(row, *sink(dit, config, reference))
    return cache


def sink(dit: StreamingDiT, config: ModelConfig, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    null = torch.zeros(1, 1, config.speech.tokens, config.speech.width, dtype=F64)
    k, v = dit.sink(reference[None], null)
    return k[:, 0], v[:, 0]


@dataclass
class Stream:
    """What one viewer brings: reference [T, C], noise [chunks, 1, N, C] of the toy, codes [chunks, 1, F, A, Wa]."""

    reference: torch.Tensor
    noise: torch.Tensor
    codes: torch.Tensor

    @classmethod
    def draw(cls, config: ModelConfig, chunks: int, seed: int) -> Stream:
        g = torch.Generator().manual_seed(seed)
        channels, speech = config.vae.latent_channels, config.speech
        return cls(
            torch.randn(4, channels, generator=g, dtype=F64),
            torch.randn(chunks, 1, 3 * 4, channels, generator=g, dtype=F64),
            torch.randn(chunks, 1, 3, speech.tokens, speech.width, generator=g, dtype=F64),
        )


class PoolSampler:
    """:class:`ChunkSampler` for whatever cache a call names, with a step of its own for each."""

    def __init__(self, dit: StreamingDiT, sampling: SamplingConfig):
        self.dit, self.sampling = dit, sampling
        self.samplers: dict[int, ChunkSampler] = {}

    def on(self, cache: IDContextCache) -> ChunkSampler:
        if id(cache) not in self.samplers:  # a sampler keeps its cache, so that no other gets the same id
            step = Step(self.dit, cache, noise_levels(self.sampling), slots=cache.rows, lanes=max(2, cache.rows))
            self.samplers[id(cache)] = ChunkSampler(step, self.sampling)
        return self.samplers[id(cache)]

    def sample(self, cache: IDContextCache, *args) -> torch.Tensor:
        return self.on(cache).sample(*args)

    def rebuild(self, cache: IDContextCache, *args) -> None:
        self.on(cache).rebuild(*args)


@dataclass
class Spy:
    """Records z, repeated for the guidance branches that share it, and velocity [B, N, C] of every evaluation."""

    dit: StreamingDiT
    calls: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        step = self.dit.step

        def spied(z, *rest):
            v = step(z, *rest)
            self.calls.append((z.repeat(len(v) // len(z), 1, 1), v.clone()))
            return v

        self.dit.step = spied


# -- diffusers


DIFFUSERS = [  # of the DiT: ours -> theirs, as patterns on the names of parameters
    (r"^time\.embed\.0", "time_embed.emb.timestep_embedder.linear_1"),
    (r"^time\.embed\.2", "time_embed.emb.timestep_embedder.linear_2"),
    (r"^time\.six", "time_embed.linear"),
    (r"^table", "scale_shift_table"),
    (r"^caption\.0", "caption_projection.linear_1"),
    (r"^caption\.2", "caption_projection.linear_2"),
    (r"^blocks\.(\d+)\.table", r"transformer_blocks.\1.scale_shift_table"),
    (r"^blocks\.(\d+)\.mlp\.0", r"transformer_blocks.\1.ff.net.0.proj"),
    (r"^blocks\.(\d+)\.mlp\.2", r"transformer_blocks.\1.ff.net.2"),
    (r"^blocks\.(\d+)\.attn\.", r"transformer_blocks.\1.attn1."),
    (r"^blocks\.(\d+)\.text\.", r"transformer_blocks.\1.attn2."),
    (r"\.(q|k)_norm$", r".norm_\1.weight"),
    (r"\.out\.(weight|bias)$", r".to_out.0.\1"),
    (r"\.q\.(weight|bias)$", r".to_q.\1"),
]


def diffusers_state(dit: StreamingDiT) -> dict[str, torch.Tensor]:
    """Our weights under the names of ``LTXVideoTransformer3DModel``; fused projections are split."""
    state = {}
    for name, tensor in dit.named_parameters():
        for pattern, replacement in DIFFUSERS:
            name = re.sub(pattern, replacement, name)
        fused = re.search(r"\.(qkv|kv)\.(weight|bias)$", name)
        if fused:
            for letter, part in zip(fused[1], tensor.detach().chunk(len(fused[1])), strict=True):
                state[f"{name[: fused.start()]}.to_{letter}.{fused[2]}"] = part
        else:
            state[name] = tensor.detach()
    return state


def exact_norms(module: torch.nn.Module) -> None:
    """diffusers takes the mean square in float32 even of float64: in float64 here, so that 1e-11 can be asked."""
    from diffusers.models.normalization import RMSNorm

    for norm in module.modules():
        if isinstance(norm, RMSNorm):
            norm.forward = lambda x, eps=norm.eps: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


# -- the second DiT: loops and complex numbers, nothing from rest_fast but the weights

View = Callable[[int], tuple[float, dict[int, float]]]  # query frame -> (its position, visible frame -> position)


def window_view(chunk: int, context: int, frames: int, absolute: bool = False) -> View:
    """Which frames a frame sees under the ID-Context cache, and where everything stands (model.md, "ID-Context")."""

    def view(frame: int) -> tuple[float, dict[int, float]]:
        if frame == 0:
            return 0, {0: 0}
        i = (frame - 1) // chunk
        base = 1 + chunk * (i if absolute else min(i, context))
        first = 1 + chunk * max(0, i - context)
        seen = {f: base + f - (1 + chunk * i) for f in range(first, min(1 + chunk * (i + 1), frames))}
        return seen[frame], {0: 0, **seen}

    return view


def plain_velocity(
    dit: StreamingDiT, config: ModelConfig, z: torch.Tensor, t: torch.Tensor, codes: torch.Tensor, view: View
) -> torch.Tensor:
    """Velocity [B, F T, C] in float64 with an explicit mask per query frame; positions in float64 throughout."""
    w = {name: tensor.double() for name, tensor in dit.state_dict().items()}
    d, (rows, columns) = config.dit, config.grid
    tokens, frames = rows * columns, t.shape[1]
    step = 8 / 25, config.vae.spatial, config.vae.spatial

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def phases(position: float) -> torch.Tensor:
        """complex [T, W / 2]: the rotation of each pair of each token of a frame at a time position."""
        n = d.width // 6
        freqs = [d.rope_theta ** (j / (n - 1)) * math.pi / 2 for j in range(n)]
        out = []
        for cell in range(tokens):
            where = (position, cell // columns, cell % columns)
            part = [2 * where[a] * step[a] / d.rope_max[a] - 1 for a in range(3)]
            turning = [cmath.exp(1j * part[a] * freq) for freq in freqs for a in range(3)]
            out.append([1.0 + 0j] * (d.width // 2 - 3 * n) + turning)
        return torch.tensor(out, dtype=torch.complex128)

    def turn(x: torch.Tensor, position: float) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * phases(position)).flatten(-2)

    def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """q [B, Nq, W], k and v [B, Nk, W], mask [Nk] of what is seen."""
        q, k, v = (x.unflatten(-1, (d.heads, d.head_dim)).transpose(1, 2) for x in (q, k, v))
        score = (q @ k.mT) / math.sqrt(d.head_dim)
        score = score.masked_fill(~mask, -math.inf)
        return (score.softmax(-1) @ v).transpose(1, 2).flatten(-2)

    # float32 by definition, here and in LTX-Video: an angle of 1000 has only 4 digits behind the point
    freq = torch.exp(-math.log(10000) * torch.arange(128).float() / 128)
    angle = 1000 * t.float()[..., None] * freq
    wave = torch.cat([angle.cos(), angle.sin()], -1).double()
    embedded = linear(F.silu(linear(wave, "time.embed.0")), "time.embed.2")  # [B, F, W]
    six = linear(F.silu(embedded), "time.six").unflatten(-1, (6, -1))

    def spread(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(tokens, 1)  # per frame -> per token

    text = linear(gelu(linear(w["prompt"], "caption.0")), "caption.2")
    x = linear(z.double(), "proj_in")
    for layer in range(d.layers):
        p = f"blocks.{layer}"
        shift1, scale1, gate1, shift2, scale2, gate2 = (spread(m) for m in (w[f"{p}.table"] + six).unbind(2))
        q, k, v = linear(rms(x, d.norm_eps) * (1 + scale1) + shift1, f"{p}.attn.qkv").split(d.width, -1)
        q, k = rms(q, d.qk_eps) * w[f"{p}.attn.q_norm"], rms(k, d.qk_eps) * w[f"{p}.attn.k_norm"]
        out = []
        for f in range(frames):
            own, seen = view(f)
            keys = [turn(k[:, g * tokens : (g + 1) * tokens], seen.get(g, 0)) for g in range(frames)]
            mask = torch.tensor([g in seen for g in range(frames)]).repeat_interleave(tokens)
            query = turn(q[:, f * tokens : (f + 1) * tokens], own)
            out.append(softmax_attention(query, torch.cat(keys, 1), v, mask))
        x = x + gate1 * linear(torch.cat(out, 1), f"{p}.attn.out")

        def cross(x: torch.Tensor, context: torch.Tensor, p: str) -> torch.Tensor:
            q = rms(linear(x, f"{p}.q"), d.qk_eps) * w[f"{p}.q_norm"]
            k, v = linear(context, f"{p}.kv").split(d.width, -1)
            k = rms(k, d.qk_eps) * w[f"{p}.k_norm"]
            everything = torch.ones(context.shape[1], dtype=torch.bool)
            return linear(softmax_attention(q, k.expand(x.shape[0], -1, -1), v, everything), f"{p}.out")

        x = x + cross(x, text, f"{p}.text")
        per_frame = x.split(tokens, 1)
        x = x + torch.cat([cross(y, codes[:, f].double(), f"{p}.audio") for f, y in enumerate(per_frame)], 1)
        hidden = gelu(linear(rms(x, d.norm_eps) * (1 + scale2) + shift2, f"{p}.mlp.0"))
        x = x + gate2 * linear(hidden, f"{p}.mlp.2")
    shift, scale = (spread(m) for m in (w["table"] + embedded[:, :, None]).unbind(2))
    x = x - x.mean(-1, keepdim=True)
    return linear(rms(x, d.norm_eps) * (1 + scale) + shift, "proj_out")
