"""Prepared clips: a folder of safetensors shards and a manifest that says what each of them holds.

Every clip has 97 frames: the reference and four chunks. Fields, with n clips in a shard and F = 13 latent frames:

    features  fp16  [n, 96, positions, channels]  speech features of frames 1..96, as a session computes them
    latents   fp16  [n, F T, C]                   of the VAE whose fingerprint the manifest names
    video     uint8 [n, 97, H, W, 3]              where the VAE itself is to be trained or measured
    samples   fp32  [n, LEAD + 97 x 640 + TAIL]   16 kHz sound, frame k at [LEAD + 640 k, + 640)
    labels    fp32  [n, 97, 6]                    how the lips move (synthetic clips only)
    geometry  fp32  [n, 97, 4]                    the true mouth in pixels (synthetic clips only)

Shards are read in place: a batch costs its own bytes and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rest_fast.config import ConvVAEConfig, ModelConfig, SpeechConfig, VAEConfig
from rest_fast.errors import DataError as DataError
from rest_fast.model import Model
from rest_fast.models.vae import TemporalVAE
from rest_fast.units import from_levels

FORMAT = 1
MANIFEST = "manifest.json"
FRAMES = 97  # 1 + 12 x 8: a reference and four chunks
LEAD = TAIL = 4_000  # samples of sound before frame 0 and after the last: history and look-ahead of the features
DTYPES = {"F16": "float16", "F32": "float32", "U8": "uint8"}  # as safetensors and torch call them
FIELDS = ("features", "latents", "video", "samples", "labels", "geometry")


@dataclasses.dataclass
class Manifest:
    """What ``manifest.json`` says. ``shards`` are the entries that :func:`write_shard` returns, each with the name of
    its ``split`` and, clip by clip, its ``sources``."""

    height: int
    width: int
    speech: dict[str, Any]  # the SpeechConfig of the features
    vae: str | None = None  # fingerprint of the encoder that made the latents
    of: str | None = None  # digest of the clips that these latents are of, where they lie in a folder of their own
    frames: int = FRAMES
    format: int = FORMAT
    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder}: expected prepared clips with {MANIFEST} (rest-fast prepare-data), found none")
        try:
            manifest = cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as e:
            raise DataError(
                f"{path}: expected a manifest of prepared clips, got one that cannot be read ({e})"
            ) from None
        if manifest.format != FORMAT or manifest.frames != FRAMES:
            got = f"format {manifest.format} and {manifest.frames} frames"
            raise DataError(f"{path}: expected format {FORMAT} and clips of {FRAMES} frames, got {got}")
        return manifest

    def save(self, folder: Path) -> None:
        partial = folder / f"{MANIFEST}.partial"
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        partial.replace(folder / MANIFEST)


def write_shard(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write one shard, whole or not at all; its entry in the manifest."""
    assert tensors and set(tensors) <= set(FIELDS), f"shard: expected fields of {FIELDS}, got {sorted(tensors)}"
    counts = {len(t) for t in tensors.values()}
    assert len(counts) == 1, f"shard: expected as many clips in every field, got {counts}"
    path, partial = folder / name, folder / f"{name}.partial"
    save_file({k: t.contiguous() for k, t in tensors.items()}, partial)
    partial.replace(path)
    fields = {k: [str(t.dtype).removeprefix("torch."), list(t.shape)] for k, t in tensors.items()}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read())
    about = {"file": name, "clips": counts.pop(), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    return about | {"fields": fields}


def encoder_of(config: VAEConfig) -> Any:
    """What of a VAE's configuration makes latents: another decoder for them is no other VAE."""
    if not isinstance(config, ConvVAEConfig):
        return config
    names = ("latent", "patch", "encoder")
    return {name: value for name, value in dataclasses.asdict(config).items() if name.startswith(names)}


def encoder_fingerprint(vae: TemporalVAE) -> str:
    """Identity of what makes latents, at the precision that checkpoints have: encoder and statistics."""
    digest = hashlib.sha256(repr(encoder_of(vae.config)).encode())
    statistics = {"mean": vae.latents_mean, "std": vae.latents_std}
    for name, tensor in sorted({**vae.encoder.state_dict(), **statistics}.items()):
        digest.update(name.encode() + tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


class Shards:
    """The clips of a prepared folder, or those of one split, in the manifest's order."""

    def __init__(self, folder: str | Path, split: str | None = None):
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        entries = [e for e in self.manifest.shards if split is None or e.get("split") == split]
        if not entries:
            splits = sorted({str(e.get("split")) for e in self.manifest.shards})
            raise DataError(f"{self.folder}: expected clips of the split {split}, found those of {splits}")
        self._files = [self._open(entry) for entry in entries]
        self._entries = entries
        self._where = [(s, i) for s, entry in enumerate(entries) for i in range(entry["clips"])]
        self.fields = set.intersection(*(set(e["fields"]) for e in entries))

    def __len__(self) -> int:
        return len(self._where)

    @property
    def digest(self) -> str:
        """Identity of these clips in this order: their entries in the manifest."""
        return hashlib.sha256(json.dumps(self._entries, sort_keys=True).encode()).hexdigest()

    def source(self, clip: int) -> Any:
        """Where a clip comes from, as preparation wrote it down."""
        shard, i = self._where[clip]
        return self._entries[shard].get("sources", [None] * (i + 1))[i]

    def read(self, field: str, clips: Sequence[int]) -> torch.Tensor:
        """One field of some clips: [len(clips), ...]."""
        self.require(field)
        return torch.stack([self._files[s].get_slice(field)[i] for s, i in (self._where[c] for c in clips)])

    def pixels(self, clip: int, frames: slice = slice(None)) -> torch.Tensor:
        """Frames of one clip, fp32 [3, n, H, W] in -1..1."""
        self.require("video")
        shard, i = self._where[clip]
        video: torch.Tensor = self._files[shard].get_slice("video")[i, frames]
        return from_levels(video.permute(3, 0, 1, 2))

    def require(self, *fields: str) -> None:
        for field in fields:
            if field not in self.fields:
                raise DataError(f"{self.folder}: expected clips with {field}, found {sorted(self.fields)}")

    def require_model(self, config: ModelConfig) -> None:
        """Pictures and features of this model's form."""
        got, want = (self.manifest.height, self.manifest.width), (config.height, config.width)
        if got != want:
            cure = f"prepare them with --config {config.name}"
            raise DataError(f"{self.folder}: expected clips of {want[0]} x {want[1]}, got {got[0]} x {got[1]}; {cure}")
        self.require_speech(config.speech)

    def require_speech(self, config: SpeechConfig) -> None:
        """Features of another configuration would train, and mean nothing."""
        want = json.loads(json.dumps(dataclasses.asdict(config)))
        got = self.manifest.speech
        different = sorted(k for k in {*want, *got} if want.get(k) != got.get(k))
        if different:
            pairs = ", ".join(f"{k} {want.get(k)} (got {got.get(k)})" for k in different)
            raise DataError(f"{self.folder / MANIFEST}: features of another configuration: expected speech.{pairs}")

    def require_encoder(self, model: Model) -> None:
        if self.manifest.vae != encoder_fingerprint(model.vae):
            raise DataError(
                f"{self.folder / MANIFEST}: expected latents of this model's VAE, got those of another one; "
                "prepare them again with it"
            )

    def _open(self, entry: dict[str, Any]) -> Any:
        """One shard, if it is what its entry says."""
        path = self.folder / entry["file"]
        if not path.is_file():
            expected = f"expected a shard of {entry['clips']} clips by {MANIFEST}"
            raise DataError(f"{path}: {expected}, found no such file; prepare-data again makes it")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DataError(
                f"{path}: expected {entry['bytes']} bytes by {MANIFEST}, got {size}; prepare-data again makes it"
            )
        try:
            file = safe_open(path, framework="pt")
            slices = {k: file.get_slice(k) for k in file.keys()}  # noqa: SIM118
            found = {k: [DTYPES.get(s.get_dtype(), s.get_dtype()), list(s.get_shape())] for k, s in slices.items()}
        except (SafetensorError, OSError) as e:
            raise DataError(
                f"{path}: expected a complete safetensors file, got one that cannot be read ({e})"
            ) from None
        if found != entry["fields"]:
            raise DataError(f"{path}: expected the fields {entry['fields']} by {MANIFEST}, got {found}")
        return file
