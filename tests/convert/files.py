"""LTX-Video checkpoints of narrow width and full depth, written in both layouts; names by tables of their own."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.kit.models import randomise

LATENT = 8
CONV = ["LTXVideoDownBlock3D"] * 4
# Arguments of AutoencoderKLLTXVideo, as huggingface.co/Lightricks has them, widths divided by 16.
DIFFUSERS: dict[str, dict[str, Any]] = {
    "0.9.0": {
        "block_out_channels": (8, 16, 32, 32),
        "decoder_block_out_channels": (8, 16, 32, 32),
        "layers_per_block": (4, 3, 3, 3, 4),
        "decoder_layers_per_block": (4, 3, 3, 3, 4),
    },
    "0.9.1": {
        "block_out_channels": (8, 16, 32, 32),
        "decoder_block_out_channels": (16, 32, 64),
        "layers_per_block": (4, 3, 3, 3, 4),
        "decoder_layers_per_block": (5, 6, 7, 8),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (True, True, True, False),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
    },
    "0.9.5": {
        "block_out_channels": (8, 16, 32, 64, 128),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "decoder_block_out_channels": (16, 32, 64),
        "layers_per_block": (4, 6, 6, 2, 2),
        "decoder_layers_per_block": (5, 5, 5, 5),
        "spatio_temporal_scaling": (True, True, True, True),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (False, False, False, False),
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
}
# diffusers' prefixes in order of execution with the count of their residual blocks (0: not a run of them).
_STRIDED = (
    *(("down_blocks.0", 4), ("down_blocks.0.downsamplers.0", 0), ("down_blocks.0.conv_out", 0)),
    *(("down_blocks.1", 3), ("down_blocks.1.downsamplers.0", 0), ("down_blocks.1.conv_out", 0)),
    *(("down_blocks.2", 3), ("down_blocks.2.downsamplers.0", 0), ("down_blocks.3", 3), ("mid_block", 4)),
)


def _ups(*layers: int):
    first, *rest = layers
    pairs = (((f"up_blocks.{i}.upsamplers.0", 0), (f"up_blocks.{i}", n)) for i, n in enumerate(rest))
    return (("mid_block", first), *(x for pair in pairs for x in pair))


ORDER = {
    ("0.9.0", "encoder"): _STRIDED,
    ("0.9.0", "decoder"): (
        *(("mid_block", 4), ("up_blocks.0", 3), ("up_blocks.1.upsamplers.0", 0), ("up_blocks.1", 3)),
        *(("up_blocks.2.conv_in", 0), ("up_blocks.2.upsamplers.0", 0), ("up_blocks.2", 3)),
        *(("up_blocks.3.conv_in", 0), ("up_blocks.3.upsamplers.0", 0), ("up_blocks.3", 4)),
    ),
    ("0.9.1", "encoder"): _STRIDED,
    ("0.9.1", "decoder"): _ups(8, 7, 6, 5),
    ("0.9.5", "encoder"): (
        *(("down_blocks.0", 4), ("down_blocks.0.downsamplers.0", 0), ("down_blocks.1", 6)),
        *(("down_blocks.1.downsamplers.0", 0), ("down_blocks.2", 6), ("down_blocks.2.downsamplers.0", 0)),
        *(("down_blocks.3", 2), ("down_blocks.3.downsamplers.0", 0), ("mid_block", 2)),
    ),
    ("0.9.5", "decoder"): _ups(5, 5, 5, 5),
}
RELEASES = list(DIFFUSERS)

_BLOCKS: dict[str, str] = {  # blocks, encoder_blocks and decoder_blocks of the releases' metadata, as JSON
    "numbers": '[["res_x", 4], ["compress_all", 1], ["res_x_y", 1], ["res_x", 3], ["compress_all", 1], ["res_x_y", 1], '
    '["res_x", 3], ["compress_all", 1], ["res_x", 3], ["res_x", 4]]',
    "strided": '[["res_x", {"num_layers": 4}], ["compress_all", {}], ["res_x_y", 1], ["res_x", {"num_layers": 3}], '
    '["compress_all", {}], ["res_x_y", 1], ["res_x", {"num_layers": 3}], ["compress_all", {}], '
    '["res_x", {"num_layers": 3}], ["res_x", {"num_layers": 4}]]',
    "up 0.9.1": '[["res_x", {"num_layers": 5, "inject_noise": true}], '
    '["compress_all", {"residual": true, "multiplier": 2}], ["res_x", {"num_layers": 6, "inject_noise": true}], '
    '["compress_all", {"residual": true, "multiplier": 2}], ["res_x", {"num_layers": 7, "inject_noise": true}], '
    '["compress_all", {"residual": true, "multiplier": 2}], ["res_x", {"num_layers": 8, "inject_noise": false}]]',
    "down 0.9.5": '[["res_x", {"num_layers": 4}], ["compress_space_res", {"multiplier": 2}], '
    '["res_x", {"num_layers": 6}], ["compress_time_res", {"multiplier": 2}], ["res_x", {"num_layers": 6}], '
    '["compress_all_res", {"multiplier": 2}], ["res_x", {"num_layers": 2}], ["compress_all_res", {"multiplier": 2}], '
    '["res_x", {"num_layers": 2}]]',
    "up 0.9.5": '[["res_x", {"num_layers": 5, "inject_noise": false}], '
    '["compress_all", {"residual": true, "multiplier": 2}], ["res_x", {"num_layers": 5, "inject_noise": false}], '
    '["compress_all", {"residual": true, "multiplier": 2}], ["res_x", {"num_layers": 5, "inject_noise": false}], '
    '["compress_all", {"residual": true, "multiplier": 2}], ["res_x", {"num_layers": 5, "inject_noise": false}]]',
}


def metadata(release: str) -> dict[str, Any]:
    """The object ``vae`` of a single file's metadata."""
    blocks = {
        "0.9.0": {"blocks": "numbers"},
        "0.9.1": {"encoder_blocks": "strided", "decoder_blocks": "up 0.9.1"},
        "0.9.5": {"encoder_blocks": "down 0.9.5", "decoder_blocks": "up 0.9.5"},
    }[release]
    return {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": LATENT,
        **{key: json.loads(_BLOCKS[name]) for key, name in blocks.items()},
        "encoder_base_channels": 8,
        "decoder_base_channels": 8,
        "scaling_factor": 1.0,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
        **({"timestep_conditioning": True} if release != "0.9.0" else {}),
    }


@functools.cache
def diffusers_vae(release: str, causal: bool = False):
    """diffusers' model with random weights, statistics too; shared, frozen."""
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_ltx")
    model = module.AutoencoderKLLTXVideo(latent_channels=LATENT, decoder_causal=causal, **DIFFUSERS[release])
    scale = model.state_dict().get("decoder.timestep_scale_multiplier")
    randomise(model, 1)
    if scale is not None:
        model.decoder.timestep_scale_multiplier.data.fill_(1000)
    model.latents_std.abs_().add_(0.1)
    return model.requires_grad_(False).eval()


def native_state(release: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names -> LTX-Video's own: blocks are numbered in order of execution."""
    blocks = [
        (f"{side}.{prefix}.", f"{side}.{'down' if side == 'encoder' else 'up'}_blocks.{i}.")
        for side in ("encoder", "decoder")
        for i, (prefix, _) in enumerate(ORDER[release, side])
    ]
    blocks.sort(key=lambda pair: -len(pair[0]))
    renamed = {}
    for name, tensor in state.items():
        for theirs, native in (("decoder.time_embedder.", "decoder.last_time_embedder."),):
            name = name.replace(theirs, native)
        name = re.sub(r"^decoder\.scale_shift_table$", "decoder.last_scale_shift_table", name)
        for theirs, native in blocks:
            if name.startswith(theirs):
                name = native + name.removeprefix(theirs)
                break
        name = name.replace(".resnets.", ".res_blocks.").replace(".conv_shortcut.conv.", ".conv_shortcut.")
        name = name.replace(".norm3.", ".norm3.norm.")
        name = re.sub("^latents_(mean|std)$", r"per_channel_statistics.\1-of-means", name)
        renamed[name] = tensor.clone()
    return renamed


def single_file(path: Path, release: str, model: Any, *, prefix: str = "vae.", **changes: Any) -> Path:
    """A single-file checkpoint; ``config=None`` leaves the metadata out, other changes go into it."""
    state = {prefix + k: v for k, v in native_state(release, model.state_dict()).items()}
    state[f"{prefix}per_channel_statistics.mean-of-stds"] = torch.ones(LATENT)  # real files have more than is used
    config = changes.pop("config", {**metadata(release), **changes})
    save_file(state, path, {"config": json.dumps({"vae": config, "transformer": {}})} if config else None)
    return path


def folder(path: Path, model: Any, **kwargs: Any) -> Path:
    """A folder of diffusers."""
    model.save_pretrained(path, **kwargs)
    return path
