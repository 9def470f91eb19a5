"""Checkpoints: a folder with ``config.json`` and ``model.safetensors``. Nothing else loads, pickles least of all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from rest_fast.config import ConfigError, ModelConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


class CheckpointError(ValueError):
    """A checkpoint that does not load: names the file, the expectation and what was found."""


def save(module: nn.Module, config: ModelConfig, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a checkpoint folder; floating tensors in ``dtype``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        k: v.detach().to(dtype if v.is_floating_point() else v.dtype).contiguous().cpu()
        for k, v in module.state_dict().items()
    }
    partial = folder / f"{WEIGHTS}.partial"
    save_file(state, partial)  # a reader never sees half a file
    partial.rename(folder / WEIGHTS)
    (folder / CONFIG).write_text(config.to_json() + "\n")


def read_config(folder: str | Path) -> ModelConfig:
    path = Path(folder) / CONFIG
    if Path(folder).suffix in _PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{folder}: expected a folder with {CONFIG} and {WEIGHTS}, got a pickle-type file, which is never loaded"
        )
    if not path.is_file():
        raise CheckpointError(f"{folder}: expected a folder with {CONFIG} and {WEIGHTS}, found no {CONFIG}")
    try:
        return ModelConfig.from_json(path.read_text())
    except (ConfigError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{path}: {e}") from None


def read_weights(module: nn.Module, folder: str | Path, prefix: str = "") -> None:
    """Load ``model.safetensors`` into a module, every tensor with the expected name and shape; cast to its dtype."""
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        found = sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: expected {WEIGHTS}, found {found}")
    want = module.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            have = {k.removeprefix(prefix) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
            _compare(path, set(want), have)
            for name, tensor in want.items():
                found = file.get_tensor(prefix + name)
                if found.shape != tensor.shape:
                    raise CheckpointError(
                        f"{path}: {name}: expected shape {list(tensor.shape)} by {CONFIG}, got {list(found.shape)}"
                    )
                tensor.copy_(found)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: expected a whole safetensors file, got one that does not read ({e})") from None


def _compare(path: Path, want: set[str], have: set[str]) -> None:
    missing, extra = sorted(want - have), sorted(have - want)
    if missing or extra:
        raise CheckpointError(
            f"{path}: expected the {len(want)} tensors of {CONFIG}, got {len(missing)} missing "
            f"{missing[:3]} and {len(extra)} unexpected {extra[:3]}"
        )


def fingerprint(module: nn.Module, config: ModelConfig) -> str:
    """sha256 of the configuration and all tensors as they are in memory: what a prepared avatar depends on."""
    digest = hashlib.sha256(json.dumps(config.to_json()).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
