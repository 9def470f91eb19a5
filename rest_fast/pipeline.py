"""A model in the shape of diffusers' pipelines, which need not be installed.

pipe = RestPipeline.from_pretrained("owner/name")
out = pipe("face.png", "speech.wav", generator=torch.Generator().manual_seed(7))
out.frames[0], out.audio[0], out.sampling_rate
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from rest_fast import hub, media
from rest_fast.avatar import Avatar
from rest_fast.errors import ArgumentError, CheckpointError
from rest_fast.media.sound_files import SOUND_RATES, check_length
from rest_fast.media.sources import number
from rest_fast.model import Model, find_checkpoint, load
from rest_fast.model_card import model_card
from rest_fast.rendering import playable
from rest_fast.streaming.block import Block
from rest_fast.units import FPS

# pipe, step, noise level, {"chunk": chunk}; what it returns is not looked at
StepCallback = Callable[["RestPipeline", int, float, dict[str, Any]], Any]


@dataclass(frozen=True, eq=False)
class RestOutput:
    """One video with its sound. The first dimension is a batch of one, as with diffusers' video pipelines.

    ``frames`` are ceil(25 d) for d seconds of sound, fewer if the call was stopped: for ``"np"`` float32
    ``[1, F, H, W, 3]``, for ``"pt"`` a float32 tensor ``[1, F, 3, H, W]``, both in 0..1; for ``"pil"`` a list of one
    list of pictures.
    """

    frames: np.ndarray | torch.Tensor | list[list[Image.Image]]
    audio: torch.Tensor  #: float32 [1, channels, n] in -1..1, as long as the frames
    sampling_rate: int  #: of the audio, Hz
    fps: int
    seed: int  #: the one that was drawn: render(..., seed=) makes the same frames


class _Talk(NamedTuple):
    avatar: Avatar
    samples: np.ndarray  # float32 [n, 1 or 2]
    rate: int
    frames: int
    seed: int


class RestPipeline:
    """Made by :meth:`from_pretrained`, or of a loaded ``model``. One call at a time: ``interrupt`` belongs to it."""

    def __init__(self, model: Model):
        self.model = model
        self._interrupt = False  # by this name diffusers' callbacks know it

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path = "demo",
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        whisper: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> RestPipeline:
        """Load a checkpoint: ``config.json`` and ``model.safetensors``, and nothing else.

        Args:
            path_or_repo: a folder, ``"demo"``, or a hub id ``owner/name``. Folders need neither a network nor
                ``huggingface_hub``.
            device, dtype, whisper: as in :func:`rest_fast.load`.
            revision, token, cache_dir, local_files_only: of a hub id; see :func:`rest_fast.hub.download`.
        Raises: :class:`rest_fast.CheckpointError`; for a repository :class:`rest_fast.HubError`, which is one, too.
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        folder = find_checkpoint(path_or_repo, **options)
        return cls(load(folder, device=device, dtype=dtype, whisper=whisper))

    def save_pretrained(
        self, save_directory: str | Path, *, dtype: torch.dtype | None = None, license: str | None = None
    ) -> None:
        """Write a checkpoint folder and, where there is no ``README.md`` yet, a model card.

        Args:
            dtype: of the floating tensors in the file; None: the model's own, so that nothing is lost.
            license: of the weights, for the card, such as ``apache-2.0``.
        Raises: :class:`rest_fast.CheckpointError` for a file in the folder's place.
        """
        self._save(Path(save_directory), dtype or self.model.dtype, "path/to/this/folder", license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        license: str | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes; the repository is made if there is none, and its card stays.

        Returns: the address of the commit. Raises: :class:`rest_fast.HubError`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), dtype or self.model.dtype, repo_id, license)
            return hub.upload(Path(folder), repo_id, private=private, token=token, revision=revision)

    def _save(self, folder: Path, dtype: torch.dtype, source: str, license: str | None) -> None:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"save_pretrained: {folder}: expected a folder or a new name, got a file")
        self.model.save(folder, dtype)
        if not (folder / hub.CARD).exists():
            (folder / hub.CARD).write_text(model_card(folder, source=source, license=license))

    def to(self, *args: Any, **kwargs: Any) -> RestPipeline:
        """Move the model to another device or dtype, as ``torch.nn.Module.to`` does."""
        self.model.to(*args, **kwargs)
        self.model.vae.pack()
        return self

    @property
    def interrupt(self) -> bool:
        """Whether the latest call was told to stop; set it to True to stop the one that runs, from a callback or from
        another thread. The chunk that is being made is left out."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    def __call__(
        self,
        image: Any,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> RestOutput:
        """The whole video in memory: as floats, a minute at 512 x 512 is 4.7 GB. :func:`rest_fast.render` writes a file
        instead, and :meth:`stream` gives blocks.

        Args:
            image: all that :meth:`rest_fast.Model.prepare` takes (a path, bytes, a PIL image, uint8 [H, W, 3]), or an
                avatar that it gave.
            audio: path, bytes or binary file of any sound, a :class:`rest_fast.media.Audio`, or samples as an array or
                tensor, int16 or float, [n] or [n, 1..8 channels].
            sampling_rate: of samples, Hz; None for all else.
            num_inference_steps, guidance_scale: instead of the checkpoint's.
            generator: the seed is drawn from it, which advances it by one int64; None: PyTorch's default generator.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``; see :class:`RestOutput`.
            callback_on_step_end: called after each sampling step as ``callback(pipe, step, level, {"chunk": chunk})``
                with the step's noise level 1..0, in the thread in which models compute. It stops the call by
                ``pipe.interrupt = True``; what it raises, the call raises.
        Raises: :class:`rest_fast.ArgumentError`, :class:`rest_fast.MediaError`, :class:`rest_fast.ConfigError`, all of
            them ``ValueError``.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ArgumentError(f"pipeline: output_type: expected 'pil', 'np' or 'pt', got {output_type!r}")
        talk = self._talk(image, audio, sampling_rate, generator)
        height, width = talk.avatar.picture.shape[:2]
        video = np.empty((0 if output_type == "pil" else talk.frames, height, width, 3), np.float32)
        pictures, done, heard = [], 0, 0
        for block in self._blocks(talk, num_inference_steps, guidance_scale, callback_on_step_end):
            shown = block.video[: talk.frames - done]  # the last block is filled up
            if output_type == "pil":
                pictures += [Image.fromarray(picture) for picture in shown]
            else:
                np.divide(shown, 255, out=video[done : done + len(shown)], dtype=np.float32)
            done, heard = done + len(shown), heard + block.true_samples
        frames: Any = [pictures] if output_type == "pil" else video[None, :done]
        if output_type == "pt":
            frames = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
        sound = torch.from_numpy(np.ascontiguousarray(talk.samples[:heard].T))[None]
        return RestOutput(frames, sound, talk.rate, FPS, talk.seed)

    def stream(
        self,
        image: Any,
        audio: Any,
        *,
        sampling_rate: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> Iterator[Block]:
        """The same video as blocks of 8 frames, uint8 [8, H, W, 3], with their sound, each as soon as it is asked for.

        The last block is filled up with silence: ``block.true_samples`` says how much of it was given. For sound that
        is not complete yet, open a session (:meth:`rest_fast.Model.session`). Arguments and errors as for a call.
        """
        talk = self._talk(image, audio, sampling_rate, generator)
        return self._blocks(talk, num_inference_steps, guidance_scale, callback_on_step_end)

    def _talk(self, image: Any, audio: Any, rate: int | None, generator: torch.Generator | None) -> _Talk:
        sound = _heard(audio, rate)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ArgumentError(
                f"pipeline: generator: expected a torch.Generator or None, got {type(generator).__name__}"
            )
        avatar = image if isinstance(image, Avatar) else self.model.prepare(image)
        avatar.require(self.model.fingerprint)
        samples, playable_rate = playable(sound)
        frames = -(-len(sound.samples) * FPS // sound.rate)
        device = "cpu" if generator is None else generator.device
        # last, so that a call that is refused leaves the generator as it was
        seed = int(torch.randint(2**63 - 1, (1,), generator=generator, device=device))
        return _Talk(avatar, samples, playable_rate, frames, seed)

    def _blocks(
        self, talk: _Talk, steps: int | None, guidance: float | None, callback: StepCallback | None
    ) -> Iterator[Block]:
        self._interrupt = False

        def on_step(chunk: int, step: int) -> None:
            assert callback is not None
            callback(self, step, levels[step], {"chunk": chunk})
            if self._interrupt:
                session.close()

        session = self.model.session(
            talk.avatar,
            sample_rate=talk.rate,
            seed=talk.seed,
            steps=steps,
            guidance=guidance,
            on_step=callback and on_step,
        )
        levels = session.stream.sampler.sigmas
        with session:
            session.push_audio(talk.samples)
            session.end_segment()
            for block in session.blocks():
                yield block
                if self._interrupt:
                    return


def _heard(audio: Any, rate: int | None) -> media.Audio:
    """The sound of a call, checked. Raises: :class:`rest_fast.MediaError`; :class:`rest_fast.ArgumentError`."""
    if isinstance(audio, np.ndarray | torch.Tensor):
        if rate is None:
            raise ArgumentError("pipeline: sampling_rate: expected Hz, since the audio is samples, got None")
        audio = media.Audio(media.stereo_pcm(audio), rate)
    elif rate is not None:
        raise ArgumentError(f"pipeline: sampling_rate: expected None, since the audio has a rate, got {rate!r}")
    elif not isinstance(audio, media.Audio):
        audio = media.load_audio(audio)
    number("sampling_rate", audio.rate, *SOUND_RATES)
    check_length("audio", audio.duration)
    if not len(audio.samples):
        raise media.MediaError("audio: expected some sound, got no samples")
    return audio
