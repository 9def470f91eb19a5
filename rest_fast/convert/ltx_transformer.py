"""Converts LTX-Video's 2B transformer into a checkpoint of this package, from which training continues.

What LTX-Video lacks begins as in REST's training: SpeechAE and the attention to audio with random weights, the output
of that attention with zeros. So until it is trained, the model computes what LTX-Video does, whatever it hears.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rest_fast import checkpoint
from rest_fast.config import ModelConfig, preset
from rest_fast.convert.ltx_vae import read_converted, read_ltx_vae
from rest_fast.convert.source import ConvertError, Source, new_folder, open_source, parse_dtype

log = logging.getLogger("rest_fast.convert")

# Of the configuration, besides sizes: what our transformer is. A tuple holds the names that mean the same.
_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("Transformer3DModel", "LTXVideoTransformer3DModel"),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "attention_out_bias": (True,),
    "attention_type": ("default",),
    "norm_elementwise_affine": (False,),
    "patch_size": (1,),
    "patch_size_t": (1,),
    "positional_embedding_type": ("rope",),
    "qk_norm": ("rms_norm", "rms_norm_across_heads"),
    "standardization_norm": ("rms_norm",),
    "timestep_scale_multiplier": (1000,),
}
# Ours -> LTX-Video's own names, but for the blocks.
_TOP = {
    "proj_in": "patchify_proj",
    "proj_out": "proj_out",
    "time.embed.0": "adaln_single.emb.timestep_embedder.linear_1",
    "time.embed.2": "adaln_single.emb.timestep_embedder.linear_2",
    "time.six": "adaln_single.linear",
    "caption.0": "caption_projection.linear_1",
    "caption.2": "caption_projection.linear_2",
}
_BLOCK = {
    "mlp.0": ("ff.net.0.proj",),
    "mlp.2": ("ff.net.2",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.out": ("attn1.to_out.0",),
    "text.q": ("attn2.to_q",),
    "text.kv": ("attn2.to_k", "attn2.to_v"),
    "text.out": ("attn2.to_out.0",),
}
_DIFFUSERS = {"patchify_proj": "proj_in", "adaln_single": "time_embed", "q_norm": "norm_q", "k_norm": "norm_k"}


def convert_ltx_transformer(
    file: str | Path,
    out: str | Path,
    *,
    vae: str | Path | None = None,
    config: ModelConfig | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> ModelConfig:
    """Write a checkpoint that ``rest_fast.load`` and ``rest-fast train --init`` take, into a new folder.

    Args:
        file: single-file checkpoint of LTX-Video, or a folder of diffusers.
        out: folder to write to, new or empty.
        vae: folder of :func:`~rest_fast.convert.convert_ltx_vae`; None takes the VAE that ``file`` holds, too.
        config: of the new model, ``rest-512`` when None; the file's transformer has to be the one that it describes.
        dtype: ``float32``, ``bfloat16`` or ``float16`` of the checkpoint; None is that of the file's transformer.
        seed: of the random weights.
    Raises: :class:`ConvertError`, before anything is written.
    """
    wanted, out, config = parse_dtype(dtype), new_folder(out), config or preset("rest-512")
    source = open_source(file, "transformer")
    _compare(source, config)
    try:
        vae_config, vae_tensors = read_converted(vae) if vae else read_ltx_vae(open_source(file, "vae"))
    except ConvertError as e:
        hint = "" if vae else "; --vae names the folder of a VAE that rest-fast convert ltx-vae has written"
        raise ConvertError(f"{e}{hint}") from None
    config = config.replace(vae=vae_config)
    _check_latents(source, config)
    from rest_fast.model import Model

    with torch.device("meta"):
        model = Model(config)
    dit = {name.removeprefix("dit."): t.shape for name, t in model.state_dict().items() if name.startswith("dit.")}
    state = {f"dit.{k}": v for k, v in _transformer(source, config, dit).items()}
    number = wanted or source.dtype("proj_out.weight")
    state |= {f"vae.{k}": v for k, v in vae_tensors.items()} | _beginnings(config, seed, number)
    model.load_state_dict(state, strict=True, assign=True)
    checkpoint.save(model, config, out, number)
    if config.dit.text_tokens:
        log.info("the prompt of %s is zeros: rest-fast convert prompt puts one in", out)
    return config


def _compare(source: Source, config: ModelConfig) -> None:
    """ConvertError, which names all differences, unless the file's transformer is that of the configuration."""
    dit, shapes = config.dit, source.shapes
    if dit.positionwise_io or not dit.text_tokens:
        raise ConvertError(f"config: expected a model with text attention and plain inputs, got {config.name}")
    width, hidden = (shapes.get(f"{name}.weight", (0,)) for name in ("proj_out", "transformer_blocks.0.ff.net.0.proj"))
    caption = shapes.get("caption_projection.linear_1.weight", (0, 0))
    blocks = {m[1] for m in (re.match(r"transformer_blocks\.(\d+)\.", name) for name in shapes) if m}
    pairs: dict[str, tuple[Any, Any]] = {  # what: (expected, found)
        "num_layers": (dit.layers, len(blocks)),
        "width": (dit.width, width[-1]),
        "width of the MLP": (dit.mlp_ratio * dit.width, hidden[0]),
        "caption_channels": (dit.text_channels, caption[-1]),
    }
    sizes: dict[str, Any] = {
        "num_layers": dit.layers,
        "num_attention_heads": dit.heads,
        "attention_head_dim": dit.head_dim,
        "cross_attention_dim": dit.width,
        "caption_channels": dit.text_channels,
        "norm_eps": dit.norm_eps,
        "positional_embedding_theta": dit.rope_theta,
        "positional_embedding_max_pos": list(dit.rope_max),
    }
    given = source.config or {}
    pairs |= {name: (value, given[name]) for name, value in sizes.items() if given.get(name) is not None}
    wrong = [(name, want, found) for name, (want, found) in pairs.items() if want != found]
    wrong += [
        (name, " or ".join(map(str, choices)), given[name])
        for name, choices in _FIXED.items()
        if given.get(name) is not None and given[name] not in choices
    ]
    if wrong:
        expected, got = ", ".join(f"{n} {w}" for n, w, _ in wrong), ", ".join(f"{n} {f}" for n, _, f in wrong)
        raise ConvertError(f"{source.path}: expected the transformer of {config.name}, {expected}; got {got}")
    if given.get("causal_temporal_positioning"):
        log.warning(
            "%s was trained with latent i at 8i - 7 frames; here it stands at 8i, as in 0.9.0 and 0.9.1", source.path
        )


def _check_latents(source: Source, config: ModelConfig) -> None:
    channels = source.shapes["proj_out.weight"][0]
    if channels != config.vae.latent_channels:
        raise ConvertError(
            f"{source.path}: expected {channels} latent channels of the VAE, as the transformer has, got "
            f"{config.vae.latent_channels}"
        )


def _transformer(source: Source, config: ModelConfig, shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The DiT's tensors that are in the file, under our names; ``shapes`` are ours."""
    table = dict(_names(config, source.diffusers))
    expected: dict[str, tuple[int, ...]] = {}
    for ours, theirs in table.items():
        rows, *rest = shapes[ours]
        expected |= {name: (rows // len(theirs), *rest) for name in theirs}
    source.check(expected, set())
    return {ours: torch.cat([source.tensor(name) for name in theirs]) for ours, theirs in table.items()}


def _names(config: ModelConfig, diffusers: bool) -> Iterator[tuple[str, list[str]]]:
    """Our names and theirs. If there are several of theirs, ours is their concatenation along axis 0."""

    def theirs(*names: str) -> list[str]:
        if diffusers:
            names = tuple(re.sub("|".join(_DIFFUSERS), lambda m: _DIFFUSERS[m[0]], n) for n in names)
        return list(names)

    yield "table", theirs("scale_shift_table")
    for ours, name in _TOP.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", theirs(f"{name}.{kind}")
    for i in range(config.dit.layers):
        block = f"transformer_blocks.{i}"
        yield f"blocks.{i}.table", theirs(f"{block}.scale_shift_table")
        for ours, names in _BLOCK.items():
            for kind in ("weight", "bias"):
                yield f"blocks.{i}.{ours}.{kind}", theirs(*(f"{block}.{name}.{kind}" for name in names))
        for ours, name in (("attn", "attn1"), ("text", "attn2")):
            for norm in ("q_norm", "k_norm"):
                yield f"blocks.{i}.{ours}.{norm}", theirs(f"{block}.{name}.{norm}.weight")


def _beginnings(config: ModelConfig, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """New weights for what the file lacks: SpeechAE's encoder and attention to audio; the prompt stays empty."""
    from rest_fast.models.cross_attention import CrossAttention
    from rest_fast.models.speech import SpeechEncoder

    dit = config.dit
    state = {"dit.prompt": torch.zeros(1, dit.text_tokens, dit.text_channels)}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        state |= {f"speech.{k}": v for k, v in SpeechEncoder(config.speech).state_dict().items()}
        for i in range(dit.layers if dit.audio else 0):
            audio = CrossAttention(dit, config.speech.width)
            nn.init.zeros_(audio.out.weight)
            nn.init.zeros_(audio.out.bias)
            state |= {f"dit.blocks.{i}.audio.{k}": v.to(dtype) for k, v in audio.state_dict().items()}
    return state
