"""A checkpoint of others on disk: its tensors, read lazily, and its configuration.

Two layouts: a *single file* of LTX-Video (native names behind a prefix per part, the configuration as JSON in the
file's metadata), and a *folder* as diffusers and transformers write it (``config.json``, one safetensors file or shards
with an index).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from rest_fast.checkpoint import PICKLE_SUFFIXES, differences
from rest_fast.errors import ConvertError as ConvertError

PREFIXES = {"vae": "vae.", "transformer": "model.diffusion_model."}
_MARKS = {
    "vae": "encoder.conv_in.conv.weight",
    "transformer": "transformer_blocks.0.attn1.to_q.weight",
    "flashhead": "blocks.0.self_attn.q.weight",
    "wav2vec": "feature_extractor.conv_layers.0.conv.weight",
}
_OWNERS = {
    "vae": "LTX-Video's vae",
    "transformer": "LTX-Video's transformer",
    "flashhead": "SoulX-FlashHead's transformer",
    "wav2vec": "wav2vec 2.0",
}
_OWN_PREFIXES = {**PREFIXES, "flashhead": "model.", "wav2vec": "wav2vec2."}
_DIFFUSERS = {"vae": "encoder.mid_block.", "transformer": "proj_in."}  # names that begin so are diffusers' own
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Part = Literal["vae", "transformer", "flashhead", "wav2vec"]


@dataclass
class Source:
    """Tensors of one part of a checkpoint; names without the prefix."""

    path: Path  # what messages name
    diffusers: bool  # whether names are diffusers' or LTX-Video's own
    config: dict[str, Any] | None  # what the checkpoint says of this part
    shapes: dict[str, tuple[int, ...]]
    _files: dict[str, tuple[Path, str]]  # name -> its file, its name there
    _dtypes: dict[str, str]
    _open: dict[Path, Any] = field(default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in the file's dtype. ConvertError if the file is cut."""
        path, key = self._files[name]
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            return self._open[path].get_tensor(key)
        except (SafetensorError, OSError) as e:
            raise _unreadable(path, e) from None

    def check(self, expected: dict[str, tuple[int, ...]], ignored: set[str]) -> None:
        """Exactly the expected names, besides ignored ones, with the expected shapes and in floats; or ConvertError."""
        text = differences(set(expected), set(self.shapes) - (ignored - set(expected)))
        if text:
            raise ConvertError(f"{self.path}: expected {len(expected)} tensors by its configuration, got {text}")
        for name, shape in expected.items():
            if self.shapes[name] != shape:
                raise ConvertError(
                    f"{self.path}: {name}: expected shape {list(shape)} by its configuration, got "
                    f"{list(self.shapes[name])}"
                )
            if self._dtypes[name] not in _FLOATS:
                raise ConvertError(f"{self.path}: {name}: expected {'/'.join(DTYPES)}, got {self._dtypes[name]}")

    def dtype(self, name: str) -> torch.dtype:
        """Floating dtype of a checked tensor."""
        return _FLOATS[self._dtypes[name]]


def open_source(path: str | Path, part: Part) -> Source:
    """A part of a safetensors file or of a folder. ConvertError."""
    path = Path(path)
    if path.is_dir():
        return _folder(path, part)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ConvertError(f"{path}: expected a safetensors file, got a pickle-type file, which is never loaded")
    if not path.is_file():
        raise ConvertError(f"{path}: expected a safetensors file or a folder of diffusers, got nothing there")
    beside = path.parent / "config.json"
    if path.name.startswith("diffusion_pytorch_model") and beside.is_file():
        return _collect(path, part, [path], read_json(beside))
    return _collect(path, part, [path], None)


def _folder(path: Path, part: Part) -> Source:
    """A folder of diffusers: the model's own, or a pipeline's with the model in a folder of its name."""
    own = path if (path / "config.json").is_file() else path / part
    found = sorted(p.name for p in own.iterdir()) if own.is_dir() else []
    if "config.json" not in found:
        listing = sorted(p.name for p in path.iterdir())
        raise ConvertError(f"{path}: expected config.json, or a folder {part} with one, got {listing[:10]}")
    config = read_json(own / "config.json")
    indices = [n for n in found if n.endswith(".safetensors.index.json")]
    files = [n for n in found if n.endswith(".safetensors")]
    if len(indices) == 1:
        index = read_json(own / indices[0]).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise ConvertError(f"{own / indices[0]}: weight_map: expected names and files, got {index!r}")
        files = sorted(set(map(str, index.values())))
        missing = [n for n in files if n not in found]
        if missing:
            raise ConvertError(f"{own}: expected the shards of {indices[0]}, got no {missing[:10]}")
        return _collect(own, part, [own / n for n in files], config)
    if len(files) != 1 or indices:
        pickles = [n for n in found if Path(n).suffix in PICKLE_SUFFIXES]
        got = f"{pickles[:3]}, pickle-type files, which are never loaded" if pickles else f"{files + indices}"
        raise ConvertError(f"{own}: expected one safetensors file, or shards with one index, got {got}")
    return _collect(own, part, [own / files[0]], config)


def _collect(path: Path, part: Part, files: list[Path], config: dict[str, Any] | None) -> Source:
    shapes: dict[str, tuple[int, ...]] = {}
    where: dict[str, tuple[Path, str]] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                keys = list(handle.keys())
                if config is None:
                    config = _metadata(file, handle.metadata(), part)
                prefix = _OWN_PREFIXES[part]
                if not any(k.startswith(prefix) for k in keys):
                    prefix = ""
                    keys = [k for k in keys if not k.startswith(tuple(PREFIXES.values()))]  # those of another part
                for key in keys:
                    if key.startswith(prefix):
                        name, piece = key.removeprefix(prefix), handle.get_slice(key)
                        shapes[name], dtypes[name] = tuple(piece.get_shape()), piece.get_dtype()
                        where[name] = file, key
        except (SafetensorError, OSError) as e:
            raise _unreadable(file, e) from None
    if _MARKS[part] not in shapes:
        some = sorted(shapes)[:3]
        raise ConvertError(f"{path}: expected {_OWNERS[part]} (a tensor {_MARKS[part]}), got {some}")
    diffusers = part in _DIFFUSERS and any(name.startswith(_DIFFUSERS[part]) for name in shapes)
    if diffusers and config is None:
        raise ConvertError(f"{path}: expected a config.json beside tensors with diffusers' names, got none")
    return Source(path, diffusers, config, shapes, where, dtypes)


def _metadata(file: Path, metadata: dict[str, str] | None, part: Part) -> dict[str, Any] | None:
    """What a single file says of a part; None if it says nothing."""
    text = (metadata or {}).get("config")
    if text is None:
        return None
    config = _json(Path(f"{file}, metadata config"), text.encode())
    if "_class_name" in config and part not in config:  # a file of one part may hold its configuration alone
        return config
    found = config.get(part)
    if found is not None and not isinstance(found, dict):
        raise ConvertError(f"{file}, metadata config: {part}: expected an object, got {found!r}")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. ConvertError."""
    return _json(path, path.read_bytes())


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ConvertError(f"{path}: expected JSON, got something else ({e})") from None
    if not isinstance(value, dict):
        raise ConvertError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _unreadable(path: Path, e: Exception) -> ConvertError:
    return ConvertError(f"{path}: expected a complete safetensors file, got one that cannot be read ({e})")


def require_values(where: str | Path, model: str, fixed: dict[str, Any], said: dict[str, Any]) -> None:
    """ConvertError, which names all differences, unless a configuration says these values."""
    wrong = {name: want for name, want in fixed.items() if said.get(name) != want}
    if wrong:
        expected, got = (", ".join(f"{name} {of.get(name)}" for name in wrong) for of in (wrong, said))
        raise ConvertError(f"{where}: expected {model}, {expected}; got {got}")


def new_folder(out: str | Path) -> Path:
    """OUT as a path, which must be new or an empty folder: a checkpoint that is converted is never written over."""
    out = Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise ConvertError(f"{out}: expected a new or an empty folder to write to, got one that is not empty")
    if out.exists() and not out.is_dir():
        raise ConvertError(f"{out}: expected a folder to write to, got a file")
    return out


def cast(tensors: dict[str, torch.Tensor], dtype: torch.dtype | None, path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors in a dtype; None keeps that of each. ConvertError for what is not finite in it; ``path``: whence they
    came."""
    found = {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    for name, tensor in found.items():
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise ConvertError(f"{path}: {name}: expected finite numbers, got {bad} that are not (in {tensor.dtype})")
    return found


def parse_dtype(name: str | None) -> torch.dtype | None:
    """A dtype by its name; None stays None."""
    if name is not None and name not in DTYPES:
        raise ConvertError(f"dtype: expected one of {sorted(DTYPES)}, got {name!r}")
    return DTYPES[name] if name else None
