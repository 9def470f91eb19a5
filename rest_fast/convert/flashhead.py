"""SoulX-FlashHead Lite, as its authors publish it, into a checkpoint that ``rest_fast.load`` takes.

The folder holds ``Model_Lite`` (transformer) and ``VAE_LTX`` (LTX-Video's VAE 0.9.0), each with ``config.json`` and
safetensors. wav2vec 2.0 base, from which it hears, is a folder of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from rest_fast.checkpoint import Unfilled, write
from rest_fast.config import ConvVAEConfig
from rest_fast.config.flashhead import (
    PUBLISHED_FIELD,
    PUBLISHED_FOLDER,
    FlashHeadConfig,
    FlashHeadDiTConfig,
    Wav2VecConfig,
)
from rest_fast.config.validate import ConfigError
from rest_fast.convert.ltx_vae import read_ltx_vae
from rest_fast.convert.source import ConvertError, Source, cast, new_folder, open_source, parse_dtype, require_values
from rest_fast.convert.wav2vec import read_wav2vec

MODEL, VAE = PUBLISHED_FOLDER, "VAE_LTX"
UNUSED = ("text_embedding.", "audio_emb.")  # in the file, and never used by the published code
# Of the configuration, besides sizes: what the family is. Pro has another VAE, and patches of 2 x 2. The published code
# does not look at the name of the class, so neither do we.
_FIXED: dict[str, Any] = {"has_image_input": False, "patch_size": [1, 1, 1], PUBLISHED_FIELD: [8, 32, 32]}
_CELL = _FIXED[PUBLISHED_FIELD][1]  # pixels of a latent's side
_SIZES = ("dim", "in_dim", "out_dim", "ffn_dim", "freq_dim", "num_heads", "num_layers")
_TOP = {
    "proj_in": "patch_embedding",
    "proj_out": "head.head",
    "time.embed.0": "time_embedding.0",
    "time.embed.2": "time_embedding.2",
    "time.six": "time_projection.1",
    "audio.first": "audio_proj.proj1",
    "audio.later": "audio_proj.proj1_vf",
    "audio.mix": "audio_proj.proj2",
    "audio.out": "audio_proj.proj3",
    "audio.norm": "audio_proj.norm",
}
_BLOCK = {
    "attn.qkv": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "attn.out": ("self_attn.o",),
    "audio.q": ("cross_attn.q",),
    "audio.kv": ("cross_attn.k", "cross_attn.v"),
    "audio.out": ("cross_attn.o",),
    "norm": ("norm3",),
    "mlp.0": ("ffn.0",),
    "mlp.2": ("ffn.2",),
}


def convert_flashhead(
    folder: str | Path, out: str | Path, *, wav2vec: str | Path, size: int = 512, dtype: str | None = None
) -> FlashHeadConfig:
    """Write ``config.json`` and ``model.safetensors`` into a new folder. Nothing is downloaded.

    Args:
        folder: the published folder ``SoulX-FlashHead-1_3B``.
        out: folder to write to, new or empty.
        wav2vec: folder of ``facebook/wav2vec2-base-960h``; its tensors become float32, in which they are used.
        size: side of the square pictures, divisible by 32. The model was trained at 512.
        dtype: ``float32``, ``bfloat16`` or ``float16`` of the other tensors; None keeps that of each.
    Raises: :class:`ConvertError`, before anything is written.
    """
    wanted, out = parse_dtype(dtype), new_folder(out)
    if type(size) is not int or size < _CELL or size % _CELL:
        raise ConvertError(f"size: expected a positive multiple of {_CELL}, got {size!r}")
    parts = _parts(Path(folder))
    source = open_source(parts[MODEL], "flashhead")
    vae, vae_tensors = read_ltx_vae(open_source(parts[VAE], "vae"))
    speech, heard = read_wav2vec(wav2vec)
    config = _config(source, vae, speech, size)
    table = dict(names(config))
    source.check(_expected(table, config), {name for name in source.shapes if name.startswith(UNUSED)})
    tensors = {f"vae.{name}": tensor for name, tensor in vae_tensors.items()}
    tensors |= {f"dit.{ours}": joined(source.tensor, ours, theirs) for ours, theirs in table.items()}
    speech_tensors = {f"speech.{name}": tensor for name, tensor in heard.items()}
    write(cast(tensors, wanted, folder) | cast(speech_tensors, torch.float32, wav2vec), config, out)
    return config


def _parts(folder: Path) -> dict[str, Path]:
    """The folders of the published layout. ConvertError, which says what is there instead."""
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        raise ConvertError(f"{folder}: expected the folder of SoulX-FlashHead, with {MODEL} and {VAE} in it, got {got}")
    missing = [name for name in (MODEL, VAE) if not (folder / name).is_dir()]
    if missing:
        found = sorted(path.name for path in folder.iterdir())[:10]
        raise ConvertError(
            f"{folder}: expected {MODEL} and {VAE} of SoulX-FlashHead Lite in it, got no {' and no '.join(missing)} "
            f"among {found}"
        )
    return {name: folder / name for name in (MODEL, VAE)}


def _config(source: Source, vae: ConvVAEConfig, speech: Wav2VecConfig, size: int) -> FlashHeadConfig:
    """From the file's own configuration and, for what it leaves out, the shapes of its tensors. ConvertError."""
    said, where = source.config or {}, f"{source.path}, config.json"
    require_values(where, "SoulX-FlashHead Lite", _FIXED, said)
    bad = [name for name in _SIZES if type(said.get(name)) is not int or said[name] < 1]
    if bad:
        raise ConvertError(f"{where}: {bad[0]}: expected an integer of at least 1, got {said.get(bad[0])!r}")
    width, channels, heads = said["dim"], said["out_dim"], said["num_heads"]
    if width % heads or said["in_dim"] != 2 * channels or channels != vae.latent_channels:
        raise ConvertError(
            f"{where}: expected dim as a multiple of num_heads, and in_dim {2 * vae.latent_channels} and out_dim "
            f"{vae.latent_channels} by the VAE; got dim {width}, num_heads {heads}, in_dim {said['in_dim']}, out_dim "
            f"{channels}"
        )
    if vae.timestep_conditioning or vae.causal_decoder:
        raise ConvertError(f"{source.path.parent / VAE}: expected LTX-Video's VAE 0.9.0, got one of another release")
    shapes = source.shapes  # a tensor that is not there is missed later, by its name
    rows, hidden = shapes.get("audio_proj.proj3.bias", (0,))[0], shapes.get("audio_proj.proj2.bias", (0,))[0]
    try:
        dit = FlashHeadDiTConfig(
            layers=said["num_layers"],
            heads=heads,
            head_dim=width // heads,
            mlp_width=said["ffn_dim"],
            time_channels=said["freq_dim"],
            norm_eps=said.get("eps", 1e-6),
            qk_eps=said.get("eps", 1e-6),
            audio_hidden=max(hidden, 1),
            audio_tokens=max(rows // width, 1),
        )
        return FlashHeadConfig("flashhead-lite", size, size, vae, speech, dit)
    except ConfigError as e:
        raise ConvertError(f"{where}: {e}") from None


def names(config: FlashHeadConfig) -> Iterator[tuple[str, list[str]]]:
    """Our names and theirs. If there are several of theirs, ours is their concatenation along axis 0."""
    yield "table", ["head.modulation"]
    for ours, theirs in _TOP.items():
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", [f"{theirs}.{kind}"]
    for i in range(config.dit.layers):
        yield f"blocks.{i}.table", [f"blocks.{i}.modulation"]
        for ours, names in _BLOCK.items():
            for kind in ("weight", "bias"):
                yield f"blocks.{i}.{ours}.{kind}", [f"blocks.{i}.{name}.{kind}" for name in names]
        for ours, name in (("attn", "self_attn"), ("audio", "cross_attn")):
            for letter in "qk":
                yield f"blocks.{i}.{ours}.{letter}_norm", [f"blocks.{i}.{name}.norm_{letter}.weight"]


def _expected(table: dict[str, list[str]], config: FlashHeadConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of their tensors by the configuration."""
    from rest_fast.models.flashhead.dit import FlashHeadDiT

    with Unfilled():
        shapes = {name: tuple(tensor.shape) for name, tensor in FlashHeadDiT(config).state_dict().items()}
    assert set(shapes) == set(table), f"flashhead: names without a rule: {set(shapes) ^ set(table)}"
    expected: dict[str, tuple[int, ...]] = {}
    for ours, theirs in table.items():
        rows, *rest = shapes[ours]
        shape = (rows // len(theirs), *rest)
        if ours == "proj_in.weight":
            shape = (*shape, 1, 1, 1)  # a convolution of one cell
        elif ours.endswith("table"):
            shape = (1, *shape)
        expected |= dict.fromkeys(theirs, shape)
    return expected


def joined(read: Callable[[str], torch.Tensor], ours: str, theirs: list[str]) -> torch.Tensor:
    """A tensor of ours, from those of theirs that :func:`names` gives, which ``read`` reads by name."""
    tensor = torch.cat([read(name) for name in theirs])
    if ours == "proj_in.weight":
        return tensor.flatten(1)
    return tensor[0] if ours.endswith("table") else tensor
