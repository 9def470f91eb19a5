"""wav2vec 2.0 in transformers' layout, for the models that hear with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rest_fast.checkpoint import Unfilled
from rest_fast.config.flashhead import Wav2VecConfig
from rest_fast.config.validate import ConfigError, build
from rest_fast.convert.source import ConvertError, open_source, read_json, require_values

UNUSED = ("masked_spec_embed", "lm_head.")  # of training, and of reading text from sound
# Of the configuration, besides sizes: what the base model is. The other kind has other norms at other places.
_FIXED: dict[str, Any] = {
    "model_type": "wav2vec2",
    "feat_extract_norm": "group",
    "conv_bias": False,
    "do_stable_layer_norm": False,
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
}
_PREPROCESSOR = {"do_normalize": True, "sampling_rate": 16000}  # what is done to sound before
_SIZES = {
    "conv_channels": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "norm_eps": "layer_norm_eps",
}
_POSITION = "encoder.pos_conv_embed.conv"
# Length and direction of the position's weight: PyTorch's old weight norm and its parametrization.
_WEIGHT_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
_TOP = {
    "conv_norm": "feature_extractor.conv_layers.0.layer_norm",
    "project_norm": "feature_projection.layer_norm",
    "project": "feature_projection.projection",
    "norm": "encoder.layer_norm",
}
_LAYER = {
    "qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "out": ("attention.out_proj",),
    "attn_norm": ("layer_norm",),
    "norm": ("final_layer_norm",),
    "mlp.0": ("feed_forward.intermediate_dense",),
    "mlp.2": ("feed_forward.output_dense",),
}


def read_wav2vec(folder: str | Path) -> tuple[Wav2VecConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors under the names of :mod:`rest_fast.models.flashhead.wav2vec`. ConvertError."""
    if not Path(folder).is_dir():
        raise ConvertError(f"{folder}: expected the folder of wav2vec 2.0, got no folder")
    source, before = open_source(folder, "wav2vec"), Path(folder) / "preprocessor_config.json"
    if before.is_file():
        require_values(before, "wav2vec 2.0 base", _PREPROCESSOR, _PREPROCESSOR | read_json(before))
    config = _config(source.config or {}, f"{source.path}, config.json")
    length, direction = next(
        (pair for pair in _WEIGHT_NORMS if f"{_POSITION}.{pair[0]}" in source.shapes), _WEIGHT_NORMS[0]
    )
    table = dict(_names(config))
    source.check(
        _expected(table, config, length, direction), {name for name in source.shapes if name.startswith(UNUSED)}
    )
    tensors = {ours: torch.cat([source.tensor(name) for name in theirs]) for ours, theirs in table.items()}
    g, v = (source.tensor(f"{_POSITION}.{name}").float() for name in (length, direction))
    # One length for each position in the kernel, over all channels.
    return config, tensors | {"position.weight": g * v / v.norm(dim=(0, 1), keepdim=True)}


def _config(said: dict[str, Any], where: str) -> Wav2VecConfig:
    require_values(where, "wav2vec 2.0 base", _FIXED, _FIXED | said)  # what is not said is the base model's
    values: dict[str, Any] = {ours: said[theirs] for ours, theirs in _SIZES.items() if theirs in said}
    try:
        config: Wav2VecConfig = build(Wav2VecConfig, values, "speech")
        return config
    except ConfigError as e:
        raise ConvertError(f"{where}: {e}") from None


def _names(config: Wav2VecConfig) -> Iterator[tuple[str, list[str]]]:
    """Our names and theirs, but for the position's weight; several of theirs are one of ours, along axis 0."""
    for i in range(len(config.conv_channels)):
        yield f"convs.{i}.weight", [f"feature_extractor.conv_layers.{i}.conv.weight"]
    yield "position.bias", [f"{_POSITION}.bias"]
    for kind in ("weight", "bias"):
        for ours, theirs in _TOP.items():
            yield f"{ours}.{kind}", [f"{theirs}.{kind}"]
        for i in range(config.layers):
            for ours, names in _LAYER.items():
                yield f"layers.{i}.{ours}.{kind}", [f"encoder.layers.{i}.{name}.{kind}" for name in names]


def _expected(
    table: dict[str, list[str]], config: Wav2VecConfig, length: str, direction: str
) -> dict[str, tuple[int, ...]]:
    from rest_fast.models.flashhead.wav2vec import Wav2Vec

    with Unfilled():
        shapes = {name: tuple(tensor.shape) for name, tensor in Wav2Vec(config).state_dict().items()}
    position = shapes.pop("position.weight")
    assert set(shapes) == set(table), f"wav2vec: names without a rule: {set(shapes) ^ set(table)}"
    expected = {
        name: (shapes[ours][0] // len(theirs), *shapes[ours][1:]) for ours, theirs in table.items() for name in theirs
    }
    return expected | {f"{_POSITION}.{length}": (1, 1, position[2]), f"{_POSITION}.{direction}": position}
