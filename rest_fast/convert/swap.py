"""Gives an existing model another decoder for the same latents: the VAE of a folder replaces its own."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rest_fast import checkpoint
from rest_fast.config import ModelConfig
from rest_fast.convert.ltx_vae import read_converted
from rest_fast.convert.source import ConvertError, new_folder
from rest_fast.model import find_checkpoint

LATENTS = ("encoder.", "latents_mean", "latents_std")  # names of what makes latents
ROUNDING = 2.0**-7  # of a weight that was stored in bfloat16


def swap_vae(model: str | Path, vae: str | Path, out: str | Path) -> ModelConfig:
    """Write the checkpoint ``model`` with the VAE of the folder ``vae`` into a new folder ``out``.

    The transformer was trained on the latents of the VAE that it had: encoder and statistics must be the same, as those
    of ``rest-fast train causal-decoder`` are. Tensors keep their dtypes.

    Raises: :class:`ConvertError`, :class:`rest_fast.checkpoint.CheckpointError`, before anything is written.
    """
    out, folder = new_folder(out), find_checkpoint(model)
    config = checkpoint.read_config(folder)
    given, tensors = read_converted(vae)
    try:
        state = load_file(folder / checkpoint.WEIGHTS)
    except (SafetensorError, OSError) as e:
        raise ConvertError(
            f"{folder}: expected a complete {checkpoint.WEIGHTS}, got one that cannot be read ({e})"
        ) from None
    own = {name.removeprefix("vae."): tensor for name, tensor in state.items() if name.startswith("vae.")}
    for name in sorted({*own, *tensors}):
        if name.startswith(LATENTS) and not _same(own.get(name), tensors.get(name)):
            expected = f"expected a VAE of the same latents as {folder}"
            raise ConvertError(f"{vae}: {expected}, got one with another {name}")
    others = {name: tensor for name, tensor in state.items() if not name.startswith("vae.")}
    swapped = config.replace(vae=given)
    checkpoint.write(others | {f"vae.{name}": tensor for name, tensor in tensors.items()}, swapped, out)
    return swapped


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None or a.shape != b.shape:
        return False
    return torch.allclose(a.float(), b.float(), rtol=ROUNDING, atol=1e-6)
