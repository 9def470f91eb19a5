"""Render a whole file: a photo and a speech file in, an mp4 out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from rest_fast import media
from rest_fast.avatar import Avatar
from rest_fast.errors import ArgumentError
from rest_fast.files import refuse_input
from rest_fast.media.provenance import COMPOSITE, SYNTHETIC, Label
from rest_fast.media.signing import publish

if TYPE_CHECKING:
    from rest_fast.model import Model


@dataclass(frozen=True)
class Rendered:
    """What was written."""

    path: Path
    frames: int
    seconds: float  #: duration of the sound


def render(
    model: Model,
    avatar: Avatar,
    speech: Any,
    out: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    progress: bool | Callable[[int, int], None] = False,
    paste_back: bool = False,
    label: str | None = None,
    mark: Callable[[np.ndarray], np.ndarray] | None = None,
    sign: Callable[[Path, Path], None] | None = None,
) -> Rendered:
    """Write ``out`` (mp4, H.264 + AAC): exactly ceil(25 d) frames for d seconds of sound, block by block.

    The file says in its metadata that the face is synthetic (:func:`rest_fast.media.provenance.read`). An interrupted
    call leaves what was rendered so far as a playable file.

    Args:
        speech: path, binary file or bytes of any sound that PyAV reads, or a :class:`rest_fast.media.Audio`.
        steps, guidance: instead of the preset's.
        progress: True for a bar on stderr, or a function called with frames done and frames in all after each block.
        paste_back: put the face back into the photo. The video then has the photo's size, scaled to at most 1920 px on
            the longer side and without an odd last row or column; otherwise it is the model's square.
        label: a line of text in the lower left corner of every frame.
        mark: called with the pictures uint8 [n, H, W, 3] of each block, before the label, and returns those that are
            written: for watermarks.
        sign: called with the finished video and a path for its signed copy, which then takes its place; most often a
            :class:`rest_fast.media.signing.Signer`.
    Raises: :class:`rest_fast.ArgumentError` for an array without a rate; :class:`rest_fast.MediaError` before work
        starts, also for sound of more than two hours (``rest_fast.media.MAX_SECONDS``);
        :class:`rest_fast.AvatarError` for ``paste_back`` with an avatar that has no photo.
    """
    for name, value, kind in (("model", model, "load"), ("avatar", avatar, "model.prepare")):
        if isinstance(value, str | bytes | os.PathLike):
            raise ArgumentError(f"render: {name}: expected what {kind}(...) gave, got {type(value).__name__}")
    if isinstance(speech, np.ndarray):
        raise ArgumentError(
            "render: speech: expected a path, a binary file, bytes, or an array with its rate as "
            "rest_fast.media.Audio(samples [n, channels], rate), got ndarray"
        )
    media.check_name(out)
    refuse_input(out, speech)
    paste = avatar.paste_back() if paste_back else None
    audio = speech if isinstance(speech, media.Audio) else media.load_audio(speech)
    frames = -(-len(audio.samples) * 25 // audio.rate)
    samples, rate = playable(audio)
    session = model.session(avatar, sample_rate=rate, seed=seed, steps=steps, guidance=guidance)
    height, width = (paste.photo if paste else avatar.picture).shape[:2]
    marks = [one for one in (paste, mark, label and Label(label, width, height)) if one]
    kind = COMPOSITE if paste else SYNTHETIC
    done = 0
    with session:
        session.push_audio(samples)  # it refuses bad samples, before the file is touched
        session.end_segment()
        with (
            media.VideoWriter(
                out, width, height, sample_rate=rate, channels=samples.shape[1], source_type=kind
            ) as writer,
            tqdm(total=frames, unit="frame", disable=callable(progress) or not progress) as bar,
        ):
            for block in session.blocks():
                count = min(len(block.video), frames - done)
                video = block.video[:count]
                for one in marks:
                    video = one(video)
                writer.write(video, block.audio[: block.true_samples])
                done += count
                bar.update(count)
                if callable(progress):
                    progress(done, frames)
    assert done == frames, f"render: expected {frames} frames, wrote {done}"
    if sign is not None:
        publish(sign, Path(out), Path(out))
    return Rendered(Path(out), frames, audio.duration)


def playable(audio: media.Audio) -> tuple[np.ndarray, int]:
    """Samples and rate as sessions and players take them: mono or stereo, 8 to 96 kHz."""
    samples, rate = audio.samples, audio.rate
    if samples.shape[1] > 2:
        samples = audio.mono[:, None]
    if not 8000 <= rate <= 96000:
        target = 48000 if rate > 96000 else 16000
        length = -(-len(samples) * target // rate)  # the resampler may give one sample more or less
        channels = [media.resample(np.ascontiguousarray(c), rate, target)[:length] for c in samples.T]
        samples, rate = np.stack([np.pad(c, (0, length - len(c))) for c in channels], 1), target
    return samples, rate
