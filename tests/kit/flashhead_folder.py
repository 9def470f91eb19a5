"""SoulX-FlashHead Lite's published layout with made weights. It needs neither the package nor the published code, so
that both read the same files; see ``tools/flashhead_upstream.py``.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

Shape = tuple[int, ...]
VAE_WIDTHS = (128, 256, 512, 512)


@dataclass(frozen=True)
class Sizes:
    """Of a folder; the defaults are narrow, with a wav2vec of two layers."""

    dim: int = 24
    heads: int = 2
    layers: int = 2
    ffn: int = 40
    latent: int = 8
    freq: int = 16
    hidden: int = 10
    tokens: int = 3
    narrower: int = 16  # than the published VAE
    speech_dim: int = 12
    speech_heads: int = 2
    speech_layers: int = 2
    speech_ffn: int = 20
    speech_conv: int = 8
    kernel: int = 4
    groups: int = 2


FULL = Sizes(
    *(1536, 12, 2, 256, 128, 256, 512, 32, 1, 768, 12, 12, 3072, 512, 128, 16)
)  # as published, but for two blocks in the place of 30 and a narrow MLP


def uniform(seed: int, name: str, shape: Shape) -> torch.Tensor:
    """fp32 in -1..1, by NumPy's frozen generator, so that they are the same everywhere."""
    made = np.random.RandomState((seed + zlib.crc32(name.encode())) % 2**32).random_sample(shape) * 2 - 1
    return torch.from_numpy(made.astype(np.float32))


def numbers(seed: int, name: str, shape: Shape) -> torch.Tensor:
    """Weights of a size that keeps activations near 1."""
    made = uniform(seed, name, shape)
    inputs = math.prod(shape[1:])
    if name.endswith(("latents_std", "weight_g")) or ("norm" in name and name.endswith("weight")):
        made = 1 + 0.2 * made
    elif name.endswith("modulation"):
        made = 0.5 * made
    elif len(shape) > 1:
        made = made * math.sqrt(3 / inputs)
    else:
        made = 0.3 * made
    return made


def model_shapes(s: Sizes) -> Iterator[tuple[str, Shape]]:
    """``Model_Lite``, with the parts that are in the file and never used."""

    def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)

    each = s.speech_layers * s.speech_dim
    yield "patch_embedding.weight", (s.dim, 2 * s.latent, 1, 1, 1)
    yield "patch_embedding.bias", (s.dim,)
    yield from linear("text_embedding.0", 32, s.dim)
    yield from linear("text_embedding.2", s.dim, s.dim)
    yield from linear("time_embedding.0", s.freq, s.dim)
    yield from linear("time_embedding.2", s.dim, s.dim)
    yield from linear("time_projection.1", s.dim, 6 * s.dim)
    for i in range(s.layers):
        block = f"blocks.{i}"
        yield f"{block}.modulation", (1, 6, s.dim)
        for part in ("self_attn", "cross_attn"):
            for letter in "qkvo":
                yield from linear(f"{block}.{part}.{letter}", s.dim, s.dim)
            for letter in "qk":
                yield f"{block}.{part}.norm_{letter}.weight", (s.dim,)
        yield f"{block}.norm3.weight", (s.dim,)
        yield f"{block}.norm3.bias", (s.dim,)
        yield from linear(f"{block}.ffn.0", s.dim, s.ffn)
        yield from linear(f"{block}.ffn.2", s.ffn, s.dim)
    yield "head.modulation", (1, 2, s.dim)
    yield from linear("head.head", s.dim, s.latent)
    for i, inputs, outputs in ((0, 768, 0), (1, 768, 768), (3, 768, s.dim), (4, s.dim, 0)):  # norms without outputs
        yield f"audio_emb.proj.{i}.weight", (outputs, inputs) if outputs else (inputs,)
        yield f"audio_emb.proj.{i}.bias", (outputs or inputs,)
    yield from linear("audio_proj.proj1", 5 * each, s.hidden)
    yield from linear("audio_proj.proj1_vf", 12 * each, s.hidden)
    yield from linear("audio_proj.proj2", s.hidden, s.hidden)
    yield from linear("audio_proj.proj3", s.hidden, s.tokens * s.dim)
    yield "audio_proj.norm.weight", (s.dim,)
    yield "audio_proj.norm.bias", (s.dim,)


def speech_shapes(s: Sizes, old: bool = True) -> Iterator[tuple[str, Shape]]:
    """wav2vec2-base-960h; ``old``: PyTorch's older spelling of weight norm, as published."""
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        yield f"feature_extractor.conv_layers.{i}.conv.weight", (s.speech_conv, s.speech_conv if i else 1, kernel)
    norms = [("feature_extractor.conv_layers.0.layer_norm", s.speech_conv)]
    norms += [("feature_projection.layer_norm", s.speech_conv), ("encoder.layer_norm", s.speech_dim)]
    linears = [("feature_projection.projection", s.speech_conv, s.speech_dim)]
    for i in range(s.speech_layers):
        layer = f"encoder.layers.{i}"
        linears += [
            (f"{layer}.attention.{letter}_proj", s.speech_dim, s.speech_dim) for letter in ("q", "k", "v", "out")
        ]
        linears += [(f"{layer}.feed_forward.intermediate_dense", s.speech_dim, s.speech_ffn)]
        linears += [(f"{layer}.feed_forward.output_dense", s.speech_ffn, s.speech_dim)]
        norms += [(f"{layer}.{name}", s.speech_dim) for name in ("layer_norm", "final_layer_norm")]
    for name, inputs, outputs in linears:
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)
    for name, width in norms:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)
    position = "encoder.pos_conv_embed.conv."
    spelling = ("weight_g", "weight_v") if old else tuple(f"parametrizations.weight.original{i}" for i in (0, 1))
    yield f"{position}bias", (s.speech_dim,)
    yield f"{position}{spelling[0]}", (1, 1, s.kernel)
    yield f"{position}{spelling[1]}", (s.speech_dim, s.speech_dim // s.groups, s.kernel)
    yield "masked_spec_embed", (s.speech_dim,)


def model_config(s: Sizes) -> dict[str, Any]:
    return {
        "_class_name": "WanModelAudioProject",
        "_diffusers_version": "0.34.0",
        "dim": s.dim,
        "eps": 1e-06,
        "ffn_dim": s.ffn,
        "freq_dim": s.freq,
        "has_image_input": False,
        "in_dim": 2 * s.latent,
        "num_heads": s.heads,
        "num_layers": s.layers,
        "out_dim": s.latent,
        "patch_size": [1, 1, 1],
        "text_dim": 32,
        "vae_stride": [8, 32, 32],
    }


def speech_config(s: Sizes) -> dict[str, Any]:
    return {
        "model_type": "wav2vec2",
        "architectures": ["Wav2Vec2ForCTC"],
        "conv_bias": False,
        "conv_dim": [s.speech_conv] * 7,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "do_stable_layer_norm": False,
        "feat_extract_activation": "gelu",
        "feat_extract_norm": "group",
        "hidden_act": "gelu",
        "hidden_size": s.speech_dim,
        "intermediate_size": s.speech_ffn,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": s.speech_heads,
        "num_conv_pos_embedding_groups": s.groups,
        "num_conv_pos_embeddings": s.kernel,
        "num_hidden_layers": s.speech_layers,
    }


def vae_config(s: Sizes) -> dict[str, Any]:
    """LTX-Video 0.9.0's in diffusers, as the published code asks for it, key by key."""
    widths = [width // s.narrower for width in VAE_WIDTHS]
    decoder = {} if s.narrower == 1 else {"decoder_block_out_channels": widths}  # this release had one list for both
    return decoder | {
        "_class_name": "AutoencoderKLLTXVideo",
        "_diffusers_version": "0.32.0.dev0",
        "block_out_channels": widths,
        "decoder_causal": False,
        "encoder_causal": True,
        "in_channels": 3,
        "latent_channels": s.latent,
        "layers_per_block": [4, 3, 3, 3, 4],
        "out_channels": 3,
        "patch_size": 4,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-06,
        "scaling_factor": 1.0,
        "spatio_temporal_scaling": [True, True, True, False],
    }


def vae_shapes(s: Sizes) -> Iterator[tuple[str, Shape]]:
    """Encoder and decoder of LTX-Video 0.9.0 under diffusers' names."""
    a, b, c, d = (width // s.narrower for width in VAE_WIDTHS)

    def conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.conv.weight", (outputs, inputs, kernel, kernel, kernel)
        yield f"{name}.conv.bias", (outputs,)

    def run(name: str, width: int, count: int) -> Iterator[tuple[str, Shape]]:
        for i in range(count):
            for k in (1, 2):
                yield from conv(f"{name}.resnets.{i}.conv{k}", width, width)

    def widening(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
        yield from conv(f"{name}.conv1", inputs, outputs)
        yield from conv(f"{name}.conv2", outputs, outputs)
        yield from conv(f"{name}.conv_shortcut", inputs, outputs, 1)
        yield f"{name}.norm3.weight", (inputs,)
        yield f"{name}.norm3.bias", (inputs,)

    yield from conv("encoder.conv_in", 48, a)
    for i, (width, after, count) in enumerate(((a, b, 4), (b, c, 3), (c, d, 3))):
        yield from run(f"encoder.down_blocks.{i}", width, count)
        yield from conv(f"encoder.down_blocks.{i}.downsamplers.0", width, width)
        if width != after:
            yield from widening(f"encoder.down_blocks.{i}.conv_out", width, after)
    yield from run("encoder.down_blocks.3", d, 3)
    yield from run("encoder.mid_block", d, 4)
    yield from conv("encoder.conv_out", d, s.latent + 1)
    yield from conv("decoder.conv_in", s.latent, d)
    yield from run("decoder.mid_block", d, 4)
    yield from run("decoder.up_blocks.0", d, 3)
    for i, (before, width, count) in enumerate(((d, c, 3), (c, b, 3), (b, a, 4)), 1):
        if before != width:
            yield from widening(f"decoder.up_blocks.{i}.conv_in", before, width)
        yield from conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", width, 8 * width)
        yield from run(f"decoder.up_blocks.{i}", width, count)
    yield from conv("decoder.conv_out", a, 48)
    yield "latents_mean", (s.latent,)
    yield "latents_std", (s.latent,)


def write(folder: Path, sizes: Sizes = Sizes(), seed: int = 0, *, old: bool = True) -> tuple[Path, Path]:
    """The published folder and that of wav2vec; ``old``: see :func:`speech_shapes`."""
    published, wav2vec = folder / "SoulX-FlashHead-1_3B", folder / "wav2vec2-base-960h"
    diffusion = "diffusion_pytorch_model.safetensors"
    for path, config, shapes, name in (
        (published / "Model_Lite", model_config(sizes), model_shapes(sizes), diffusion),
        (published / "VAE_LTX", vae_config(sizes), vae_shapes(sizes), diffusion),
        (wav2vec, speech_config(sizes), speech_shapes(sizes, old), "model.safetensors"),
    ):
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        state = {key: numbers(seed, key, shape) for key, shape in shapes}
        if path == wav2vec:  # as a file of transformers, with the part that reads text
            state = {f"wav2vec2.{key}": tensor for key, tensor in state.items()}
            state["lm_head.bias"] = torch.zeros(32)
        save_file(state, path / name, {"format": "pt"})
    settings = {"do_normalize": True, "feature_size": 1, "padding_value": 0.0, "sampling_rate": 16000}
    (wav2vec / "preprocessor_config.json").write_text(json.dumps(settings))
    return published, wav2vec


# -- what the published code and ours are given, and what is stored of what they give

SEED, SAMPLES = 11, 256


def picture(side: int) -> np.ndarray:
    """uint8 [side, side, 3]: soft colours."""
    x = np.linspace(0, 3, side)
    waves = [np.sin(x[:, None] * (1 + k) + x[None] * (2 - k)) for k in range(3)]
    return ((np.stack(waves, -1) * 0.4 + 0.5) * 255).round().astype(np.uint8)


def sound(chunks: int) -> np.ndarray:
    """fp32 at 16 kHz, of whole chunks."""
    count = chunks * 24 * 640
    wave = np.random.RandomState(SEED).random_sample(count) - 0.5
    return (0.4 * wave * (1 + np.sin(np.arange(count) / 900))).astype(np.float32)


def evaluation_inputs() -> dict[str, torch.Tensor]:
    """Of one evaluation at 128 x 128: latents, reference [1, 128, 5, 4, 4], features [1, 37, 12, 768]."""
    shapes = {"input.z": (1, 128, 5, 4, 4), "input.reference": (1, 128, 5, 4, 4), "input.features": (1, 37, 12, 768)}
    return {name: uniform(SEED, name, shape) for name, shape in shapes.items()}


def sampled(tensor: torch.Tensor) -> list[float]:
    """Some numbers of a tensor, at places that depend on its size alone."""
    flat = tensor.detach().float().flatten()
    found = flat[np.random.RandomState(0).randint(0, len(flat), SAMPLES)].tolist()
    return [float(f"{number:.7g}") for number in found]
