"""Model: the parts of a checkpoint together, and what apps call: ``load``, ``prepare``, ``session``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from rest_fast import checkpoint, cores, hub, media, noise, processor
from rest_fast.avatar import Avatar
from rest_fast.config import PRESETS
from rest_fast.config.flashhead import FlashHeadConfig
from rest_fast.errors import ArgumentError
from rest_fast.media.faces import find_face
from rest_fast.media.paste_back import shrink
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.network import Network
from rest_fast.models.rest import REST
from rest_fast.models.vae import to_tokens
from rest_fast.ops.latent_noise import drawn
from rest_fast.streaming.engine import Engine
from rest_fast.streaming.session import Session, opened
from rest_fast.worker import worker

# The reference [1, T, C], keys and values of its sink [L, T, H, D], and the decoder's features.
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]
ASSETS = Path(__file__).parent / "assets"


class Talking(Network):
    """What apps call, of a model of any family: prepare a face, open a session, save the weights."""

    def prepare(self, photo: Any, *, crop: tuple[float, float, float, float] | str | None = None) -> Avatar:
        """Prepare a photo, once per face: crop it, encode it and compute its sink.

        Args:
            photo: path, file, bytes, PIL image or uint8 [H, W, 3].
            crop: square (left, top, right, bottom) in pixels of the upright photo; ``"center"`` for the largest centred
                square; None for the square around the largest face. If none is found, or the extra ``face`` is not
                installed, it is the centre, with a :class:`rest_fast.RestFastWarning`.
        Raises: :class:`rest_fast.MediaError`.
        """
        if self.config.height != self.config.width:
            raise ArgumentError(f"prepare: expected a square model, got {self.config.height} x {self.config.width}")
        whole = media.load_image(photo)
        if crop is None:
            crop = find_face(whole, self.config.vae.framing)
        elif isinstance(crop, str) and crop == "center":
            crop = None
        picture, box = media.square_crop(whole, crop, self.config.height)
        reference, k, v, features = self.compute_once(self._encode, picture)
        return Avatar(picture, box, reference[0].float(), k, v, self.fingerprint, features, *shrink(whole, box))

    def _encode(self, picture: np.ndarray) -> Encoded:
        """What an avatar keeps of a picture."""
        raise NotImplementedError

    def session(
        self,
        avatar: Avatar,
        *,
        sample_rate: int = 16000,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        decode: str | None = None,
        graphs: str = "auto",
        on_step: Callable[[int, int], None] | None = None,
    ) -> Session:
        """Open a stream for one viewer; for several, use :meth:`engine`.

        Blocks are computed when they are asked for; see :class:`rest_fast.Session`.

        Args:
            sample_rate: rate of the pushed sound, an integer in 8000..96000 Hz.
            seed: of the noise; 0..2^64 - 1.
            steps, guidance: of sampling, instead of the preset's.
            decode: how the VAE sees time, ``causal`` or ``lookahead(L)``; None for what fits the checkpoint.
            graphs: whether denoising and decoding are CUDA graphs: ``on``, ``off``, or ``auto``, on where there is
                CUDA.
            on_step: called after each sampling step with the numbers of chunk and step, from 0, in the thread in which
                models compute. It may close the session; what it raises, :meth:`Session.blocks` raises.
        Raises: :class:`rest_fast.AvatarError`; :class:`rest_fast.ArgumentError`; where a capture fails
            :class:`rest_fast.CaptureError`, with the reason.
        """
        options = {"sample_rate": sample_rate, "seed": seed, "decode": decode, "graphs": graphs, "on_step": on_step}
        return self.compute(Engine.for_one, self, avatar, self._sampling(steps, guidance), **options)

    async def asession(
        self,
        avatar: Avatar,
        *,
        sample_rate: int = 16000,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        decode: str | None = None,
        graphs: str = "auto",
    ) -> Session:
        """:meth:`session` for an event loop, which goes on while the session is opened: that takes tenths of a second.

        Where the wait is cancelled, the session is closed as soon as it is open.
        """
        options = {"sample_rate": sample_rate, "seed": seed, "decode": decode, "graphs": graphs}
        return await opened(self.submit(Engine.for_one, self, avatar, self._sampling(steps, guidance), **options))

    def engine(
        self,
        *,
        lanes: int = 2,
        sessions: int = 8,
        steps: int | None = None,
        guidance: float | None = None,
        graphs: str = "auto",
        admission: bool = True,
        backlog: float | None = 300.0,
        fewer_steps: int | None = None,
    ) -> Engine:
        """Open an engine for several viewers; see :class:`rest_fast.Engine`."""
        options = {"lanes": lanes, "sessions": sessions, "graphs": graphs, "admission": admission}
        options |= {"backlog": backlog, "fewer_steps": fewer_steps}
        return self.compute(Engine, self, self._sampling(steps, guidance), **options)

    def _sampling(self, steps: int | None, guidance: float | None) -> Any:
        changes = {k: v for k, v in (("steps", steps), ("guidance", guidance)) if v is not None}
        return self.config.replace(**{f"sampling__{k}": v for k, v in changes.items()}).sampling

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a checkpoint folder: ``config.json``, and ``model.safetensors`` with floats of ``dtype``; wav2vec's
        tensors keep theirs.

        Raises: :class:`rest_fast.CheckpointError` where it cannot be written.
        """
        checkpoint.save(self, self.config, folder, dtype, exact=self.exact)


class Model(Talking, REST):
    """The networks of a REST checkpoint, with what apps call."""

    @torch.no_grad()
    def _encode(self, picture: np.ndarray) -> Encoded:
        pixels = self.pixels(picture)
        latents = self.vae.encode(pixels)
        reference = to_tokens(latents)
        return reference, *self.sink(reference), self.vae.photo_features(latents, pixels)


class FlashHeadModel(Talking, FlashHead):
    """Those of a checkpoint of SoulX-FlashHead Lite, with the same calls; see docs/flashhead.md."""

    @torch.no_grad()
    def _encode(self, picture: np.ndarray) -> Encoded:
        """The photo as a film of a whole window. The noise is the same for every face, as its avatar has no seed."""
        config, tokens = self.config, self.config.tokens
        window = range(config.stream.window)
        made = drawn(0, window, tokens * config.vae.latent_channels, noise.PHOTO, self.device)
        reference = self.reference(self.pixels(picture), made.view(1, len(window) * tokens, -1).to(self.wide))
        none = torch.zeros(0, tokens, 0, 0, dtype=self.dtype)  # no layer has a sink
        return reference, none, none, {}


def load(
    source: str | Path = "demo",
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    decoder_dtype: torch.dtype | None = None,
    threads: int | None = None,
    whisper: Any = None,
) -> Model:
    """Load a model. Sessions on the same device wait meanwhile, so load before you stream.

    Args:
        source: folder of a checkpoint, ``"demo"``, or a hub id ``owner/name`` (needs ``huggingface_hub``).
        device: ``"auto"`` is CUDA where there is one, else the CPU.
        dtype: of everything. None means bfloat16 on CUDA and float32 on the CPU, and a choice of ``decoder_dtype``.
        decoder_dtype: of the convolutions in a decoder of kind motion or basis, in a model that is float32 otherwise.
            bfloat16 is faster on some processors; if both dtypes are None, it is chosen on those
            (``rest-fast doctor`` says which this one is). A session's snapshot continues in the dtype it was made with.
        threads: CPU threads for each job of this model: all sessions of a process compute in one worker, which has so
            many OpenMP threads. None means as many as the process may use by its affinity, a container's CPU quota and
            ``torch.get_num_threads()``. A model of the preset ``drawn``, whose float32 frames do not depend on the
            number, takes only as many of these as other processes leave free.
        whisper: a loaded ``transformers.WhisperModel`` for a configuration with Whisper features.
    Returns: a model of REST, or a :class:`FlashHeadModel` with the same calls.
    Raises: :class:`rest_fast.CheckpointError`.
    """
    folder, device = find_checkpoint(source), _device(device)
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise ArgumentError(f"load: threads: expected an integer in 1..1024 or None, got {threads!r}")
    config = checkpoint.read_any_config(folder)
    if dtype is None and decoder_dtype is None and config.vae.mixed and device.type == "cpu":
        decoder_dtype = processor.decoder_dtype()
    elif decoder_dtype not in ((None, torch.float32, torch.bfloat16) if config.vae.mixed else (None,)):
        expected = "float32, bfloat16 or None" if config.vae.mixed else f"None for a {config.vae.kind} VAE"
        raise ArgumentError(f"load: decoder_dtype: expected {expected}, got {decoder_dtype}")
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    count = threads or min(torch.get_num_threads(), cores.allowed())
    return worker(device).run(count, False, _load, folder, config, device, dtype, decoder_dtype, threads, whisper)


def _load(
    folder: Path,
    config: checkpoint.AnyConfig,
    device: torch.device,
    dtype: torch.dtype,
    decoder_dtype: torch.dtype | None,
    threads: int | None,
    whisper: Any,
) -> Model:
    before = torch.get_default_dtype()
    try:  # parameters are float32 whatever the caller's default dtype, which is restored below
        torch.set_default_dtype(torch.float32)
        with checkpoint.Unfilled():
            model: Any  # both kinds have the same calls
            if isinstance(config, FlashHeadConfig):
                model = FlashHeadModel(config, threads=threads)
            else:
                model = Model(config, whisper=whisper, threads=threads)
    finally:
        torch.set_default_dtype(before)
    checkpoint.read_weights(model, folder)
    if decoder_dtype is not None:
        model.vae.convolve_in(decoder_dtype)
    model = model.to(device, dtype).eval().requires_grad_(False)
    model.vae.pack()
    return cast(Model, model)


def _device(device: str | torch.device) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ArgumentError(f"load: device: expected auto, cpu or cuda, got {device!r}") from None
    if found.type == "cuda" and not has_cuda:
        raise ArgumentError(f"load: device: no CUDA device found; expected cpu or auto, got {device!r}")
    return torch.device("cpu") if found.type == "cpu" else found  # "cpu:0" is the same one


def find_checkpoint(source: str | Path, **options: Any) -> Path:
    """The folder that :func:`load` would take. ``options``: of :func:`rest_fast.hub.download`, for a hub id."""
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
        return hub.download(name, **options)
    raise checkpoint.CheckpointError(f"load: expected a folder, 'demo' or a hub id owner/name, got {name!r}")
