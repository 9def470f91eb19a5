"""Checkpoints: a folder with ``config.json`` and ``model.safetensors``. Nothing else is loaded; pickles never are."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from rest_fast.config import ConfigError, ConvVAEConfig, ModelConfig
from rest_fast.config.flashhead import FAMILY, PUBLISHED_FIELD, PUBLISHED_FOLDER, FlashHeadConfig
from rest_fast.config.validate import require
from rest_fast.errors import CheckpointError as CheckpointError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
AnyConfig = ModelConfig | FlashHeadConfig
_FLASHHEAD = f"rest-fast convert flashhead, of the folder that holds {PUBLISHED_FOLDER}"
PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}


def save(
    module: nn.Module,
    config: AnyConfig,
    folder: str | Path,
    dtype: torch.dtype = torch.float16,
    *,
    exact: tuple[str, ...] = (),
) -> None:
    """Write a checkpoint folder; floating tensors in ``dtype``, but for names that begin with one of ``exact``."""

    def stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and not name.startswith(exact) else tensor

    write({name: stored(name, tensor.detach()) for name, tensor in module.state_dict().items()}, config, folder)


def write(tensors: dict[str, torch.Tensor], config: AnyConfig | ConvVAEConfig, folder: str | Path) -> None:
    """Write a checkpoint folder, of a whole model or of a VAE alone, with tensors in their dtypes.

    The configuration comes last, so a folder that has one is complete.
    Raises: :class:`CheckpointError` where it cannot be written; what was begun is removed.
    """
    folder = Path(folder)
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    made, parts = not folder.exists(), {name: folder / f"{name}.partial" for name in (WEIGHTS, CONFIG)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, parts[WEIGHTS])  # a reader never sees half a file
        parts[CONFIG].write_text(config.to_json() + "\n")
        parts[WEIGHTS].chmod(parts[CONFIG].stat().st_mode & 0o777)  # safetensors makes files for their owner alone
        for name, partial in parts.items():
            partial.rename(folder / name)
    except (SafetensorError, OSError) as e:
        with contextlib.suppress(OSError):
            for partial in parts.values():
                partial.unlink(missing_ok=True)
            if made:
                folder.rmdir()
        size = sum(tensor.nbytes for tensor in state.values()) / 1e6
        raise CheckpointError(
            f"{folder}: expected a folder to write to, with room for {size:.0f} MB, got: {e}"
        ) from None


def read_config(folder: str | Path) -> ModelConfig:
    """The configuration of a REST model. Raises: :class:`CheckpointError`, for another family's, too."""
    config = read_any_config(folder)
    if isinstance(config, FlashHeadConfig):
        raise CheckpointError(f"{folder}: expected a model of REST, got one of {FAMILY}, for which this is not made")
    return config


def read_any_config(folder: str | Path) -> AnyConfig:
    """The configuration of a model of any family. Raises: :class:`CheckpointError`."""
    path = Path(folder) / CONFIG
    if Path(folder).suffix in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{folder}: expected a folder with {CONFIG} and {WEIGHTS}, got a pickle-type file, which is never loaded"
        )
    if not path.is_file():
        found = f"found no {CONFIG}" if Path(folder).is_dir() else "got a file" if Path(folder).exists() else "got none"
        published = Path(folder, PUBLISHED_FOLDER).is_dir()
        hint = f"; first {_FLASHHEAD}" if published else _pickles(folder)
        raise CheckpointError(f"{folder}: expected a folder with {CONFIG} and {WEIGHTS}, {found}{hint}")
    try:
        text = path.read_text()
        _refuse_others(folder, text)
        family = _family(text)
        require(family in (None, FAMILY), "family", f"{FAMILY}, or none for REST", family)
        return ModelConfig.from_json(text) if family is None else FlashHeadConfig.from_json(text)
    except (ConfigError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{path}: {e}") from None


def _family(text: str) -> object:
    """What a configuration says of its family; None where it says nothing, as REST's do, or is no JSON object."""
    with contextlib.suppress(json.JSONDecodeError):
        raw = json.loads(text)
        return raw.get("family") if isinstance(raw, dict) else None
    return None


def _pickles(folder: str | Path) -> str:
    """Words about the pickles in a folder that lacks something; empty if there are none."""
    there = Path(folder).iterdir() if Path(folder).is_dir() else ()
    names = sorted(path.name for path in there if path.suffix in PICKLE_SUFFIXES)
    return f"; pickles are never loaded ({', '.join(names)})" if names else ""


def _refuse_others(folder: str | Path, text: str) -> None:
    """CheckpointError for configurations that are easily mistaken for a model's."""
    with contextlib.suppress(json.JSONDecodeError):
        raw = json.loads(text)
        if isinstance(raw, dict) and "kind" in raw:
            raise CheckpointError(f"{folder}: expected a whole model, got a VAE alone (for TemporalVAE and --vae)")
        if isinstance(raw, dict) and PUBLISHED_FIELD in raw:
            got = f"SoulX-FlashHead's transformer: first {_FLASHHEAD}"
            raise CheckpointError(f"{folder}: expected a checkpoint of this package, got {got}")
        if isinstance(raw, dict) and isinstance(raw.get("model_type"), str):
            got = f"transformers' {raw['model_type']}"
            raise CheckpointError(f"{folder}: expected a checkpoint of this package, got {got}")
        if isinstance(raw, dict) and "_class_name" in raw:
            raise CheckpointError(
                f"{folder}: expected a checkpoint of this package, got diffusers' {raw['_class_name']}: first "
                "rest-fast convert ltx-vae or ltx-transformer"
            )


def read_vae_config(folder: str | Path) -> ModelConfig | ConvVAEConfig:
    """The configuration of a VAE alone, which has a field ``kind``, or of a whole model."""
    path = Path(folder) / CONFIG
    try:
        raw = json.loads(path.read_text()) if path.is_file() else None
        if isinstance(raw, dict) and "kind" in raw:
            return ConvVAEConfig.from_json(json.dumps(raw))
    except (ConfigError, ValueError) as e:
        raise CheckpointError(f"{path}: {e}") from None
    return read_config(folder)


class Unfilled(TorchFunctionMode):
    """A context in which new modules have weights without values, since :func:`read_weights` replaces all of them.

    That saves time (the demo's bases begin with QR decompositions, which take seconds on a busy machine) and does not
    advance the caller's random numbers. The meta device would do it, too, but its first use imports half of
    torch.compile.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.randn:
            return torch.empty(*args, **kwargs)
        if function is torch.linalg.qr:
            return args[0][..., : min(args[0].shape[-2:])], None
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def read_weights(module: nn.Module, folder: str | Path, prefix: str = "") -> None:
    """Load ``model.safetensors`` into a module, every tensor with the expected name and shape; cast to its dtype.

    Afterwards ``module.source`` is the folder.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        found = sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: expected {WEIGHTS}, found {found}{_pickles(folder)}")
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
        module.source = Path(folder)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"{path}: expected a complete safetensors file, got one that cannot be read ({e})"
        ) from None


def _compare(path: Path, want: set[str], have: set[str]) -> None:
    text = differences(want, have)
    if text:
        raise CheckpointError(f"{path}: expected the {len(want)} tensors of {CONFIG}, got {text}")


def differences(want: set[str], have: set[str], shown: int = 10) -> str:
    """Missing and unexpected names in words, up to ``shown`` of each, with the nearest names; empty if there are none.

    A name on one side that is close to one on the other is a likely misspelling, or another version's.
    """
    missing, extra = sorted(want - have), sorted(have - want)
    if not missing and not extra:
        return ""

    def listed(names: list[str], others: list[str]) -> str:
        words = []
        for name in names[:shown]:
            near = difflib.get_close_matches(name, others[:2000], 1, 0.8)
            words.append(f"'{name}'" + (f" (nearest: '{near[0]}')" if near else ""))
        more = f", and {len(names) - shown} more" if len(names) > shown else ""
        return f"[{', '.join(words)}{more}]"

    return f"{len(missing)} missing {listed(missing, extra)} and {len(extra)} unexpected {listed(extra, missing)}"


def fingerprint(module: nn.Module, config: AnyConfig) -> str:
    """sha256 of the configuration and of all tensors as they are in memory, on which a prepared avatar depends."""
    digest = hashlib.sha256(json.dumps(config.to_json()).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
