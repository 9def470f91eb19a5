"""Model: the parts of a checkpoint together, and what apps call: ``load``, ``prepare``, ``session``."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rest_fast import checkpoint, media
from rest_fast.avatar import Avatar
from rest_fast.config import PRESETS, ModelConfig, SamplingConfig
from rest_fast.faces import find_face
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.dit_block import KV
from rest_fast.models.speech import SpeechEncoder, SpeechFeatures, speech_features
from rest_fast.models.vae import TemporalVAE, to_tokens
from rest_fast.paste_back import shrink
from rest_fast.sampler import ChunkSampler
from rest_fast.session import Session

ASSETS = Path(__file__).parent / "assets"


class Model(nn.Module):
    """VAE, SpeechAE encoder and DiT of one configuration. Holds nothing of a stream: sessions share it."""

    def __init__(self, config: ModelConfig, *, whisper: Any = None):
        super().__init__()
        self.config = config
        self.vae = TemporalVAE(config)
        self.speech = SpeechEncoder(config.speech)
        self.dit = StreamingDiT(config)
        self._whisper = (whisper,)  # in a tuple: its weights are the user's, not of this checkpoint

    @property
    def device(self) -> torch.device:
        return self.dit.table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.dit.table.dtype

    @functools.cached_property
    def features(self) -> SpeechFeatures:
        return speech_features(self.config.speech, self._whisper[0])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identity of the weights as loaded; an avatar belongs to one."""
        return checkpoint.fingerprint(self, self.config)

    @functools.cached_property
    def null_sink(self) -> KV:
        """Sink of the unconditional branch: the zero latent. One per model."""
        zero = torch.zeros(1, self.config.tokens, self.config.vae.latent_channels, device=self.device, dtype=self.dtype)
        return self.sink(zero)

    def sink(self, reference: torch.Tensor) -> KV:
        """Keys and values [L, T, H, D] of a reference [1, T, C]."""
        speech = self.config.speech
        codes = torch.zeros(1, 1, speech.tokens, speech.width, device=self.device, dtype=self.dtype)
        k, v = self.dit.sink(reference.to(self.device, self.dtype), codes)
        return k[:, 0], v[:, 0]

    @functools.cached_property
    def text(self) -> list[KV | None]:
        """Keys and values of the fixed prompt, per block."""
        with torch.no_grad():
            return self.dit.text_kv()

    def sampler(self, sampling: SamplingConfig) -> ChunkSampler:
        return ChunkSampler(self.dit, sampling, self.text)

    def _apply(self, function, recurse=True):
        """Another device or dtype: what was derived from the weights is derived anew."""
        for name in ("text", "null_sink", "fingerprint"):
            self.__dict__.pop(name, None)
        return super()._apply(function, recurse)

    @torch.no_grad()
    def prepare(self, photo: Any, *, crop: tuple[float, float, float, float] | str | None = None) -> Avatar:
        """Make a photo ready, once per face: crop, encode, sink.

        Args:
            photo: path, file, bytes, PIL image or uint8 [H, W, 3].
            crop: square (left, top, right, bottom) in pixels of the upright photo; ``"center"`` for the largest centred
                square; None for the square around the largest face (:func:`rest_fast.faces.find_face`), or the centre
                where none is found or the extra ``face`` is not installed, which the logger ``rest_fast`` says.
        Raises: :class:`rest_fast.media.MediaError`.
        """
        if self.config.height != self.config.width:
            raise ValueError(f"prepare: expected a square model, got {self.config.height} x {self.config.width}")
        whole = media.load_image(photo)
        if crop is None:
            crop = find_face(whole)
        elif isinstance(crop, str) and crop == "center":
            crop = None
        picture, box = media.square_crop(whole, crop, self.config.height)
        reference = to_tokens(self.vae.encode(self.pixels(picture)))
        k, v = self.sink(reference)
        return Avatar(picture, box, reference[0].float(), k, v, self.fingerprint, *shrink(whole, box))

    def pixels(self, picture: np.ndarray) -> torch.Tensor:
        """A picture uint8 [H, W, 3] as the VAE takes it: [1, 3, 1, H, W] in -1..1."""
        pixels = torch.from_numpy(picture.copy()).to(self.device) / 127.5 - 1  # in fp32: bf16 has 8 bits
        return pixels.permute(2, 0, 1)[None, :, None].to(self.dtype)

    def session(
        self,
        avatar: Avatar,
        *,
        sample_rate: int = 16000,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        decode: str | None = None,
    ) -> Session:
        """Open a stream for one viewer; see :class:`rest_fast.session.Session`."""
        changes = {k: v for k, v in (("steps", steps), ("guidance", guidance)) if v is not None}
        config = self.config.replace(**{f"sampling__{k}": v for k, v in changes.items()})
        return Session(self, avatar, config.sampling, sample_rate=sample_rate, seed=seed, decode=decode)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        checkpoint.save(self, self.config, folder, dtype)


def load(
    source: str | Path = "demo",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    whisper: Any = None,
) -> Model:
    """Load a model.

    Args:
        source: folder of a checkpoint, ``"demo"``, or a hub id ``owner/name`` (needs ``huggingface_hub``).
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        dtype: of everything. When None, bfloat16 on CUDA; on the CPU float32, but for convolutions of the demo's VAE
            decoder, which are bfloat16 where the processor multiplies that natively: 70 dB apart, and faster.
        whisper: a loaded ``transformers.WhisperModel`` for a configuration with Whisper features.
    Raises: :class:`rest_fast.checkpoint.CheckpointError`.
    """
    folder, device = find_checkpoint(source), _device(device)
    model = Model(checkpoint.read_config(folder), whisper=whisper)
    checkpoint.read_weights(model, folder)
    if dtype is None and device.type == "cpu" and _native_bfloat16() and model.config.vae.kind == "basis":
        model.vae.convolve_in(torch.bfloat16)
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = model.to(device, dtype).eval().requires_grad_(False)
    model.vae.pack()
    return model


def _native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 (AVX-512 BF16, AMX) rather than have it emulated."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def _device(device: str | torch.device) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"load: device: expected auto, cpu or cuda, got {device!r}") from None
    if found.type == "cuda" and not has_cuda:
        raise ValueError(f"load: device: expected one that is there, got {device!r} (torch sees no CUDA device)")
    return found


def find_checkpoint(source: str | Path) -> Path:
    """The folder that :func:`load` would take."""
    name, path = str(source), Path(source)
    bare = isinstance(source, str) and "/" not in name and os.sep not in name  # "./demo" and a Path name a folder
    if bare and (ASSETS / name / checkpoint.CONFIG).is_file():
        return ASSETS / name
    if path.exists():
        return path
    if bare and name in PRESETS:
        raise checkpoint.CheckpointError(
            f"load: {name!r} is a preset without published weights; expected a folder with "
            "a checkpoint of it, or 'demo'"
        )
    if name.count("/") == 1 and not name.startswith((".", "/")):
        try:
            from huggingface_hub import snapshot_download
        except ImportError:
            raise checkpoint.CheckpointError(
                f"load: no folder {name!r}; as a hub id it needs huggingface_hub, which is not installed"
            ) from None
        return Path(snapshot_download(name, allow_patterns=[checkpoint.CONFIG, checkpoint.WEIGHTS]))
    raise checkpoint.CheckpointError(f"load: expected a folder, 'demo' or a hub id owner/name, got {name!r}")
