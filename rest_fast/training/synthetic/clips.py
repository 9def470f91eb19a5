"""Clips of talking heads with synthetic speech: a person, a voice, a sentence and everything that moved.

A clip is a pure function of (split, index). Splits share no identity, no voice and no word.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast import media
from rest_fast.errors import ArgumentError
from rest_fast.training.shards import FRAMES, LEAD, TAIL
from rest_fast.training.synthetic import flite
from rest_fast.training.synthetic.motion import head_motion
from rest_fast.training.synthetic.portraits import GEOMETRY, MOTION, Identity, draw, mouth_geometry
from rest_fast.training.synthetic.speech import Voices, utterance
from rest_fast.training.synthetic.visemes import MOUTH, mouth_track
from rest_fast.training.synthetic.words import SPLITS
from rest_fast.units import FPS, FRAME, RATE, from_levels

LIPS = [MOTION.index(name) for name in MOUTH]
CLIPS, ARRAYS = "clips.json", ("video", "samples", "motion", "geometry")


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip of n frames: ``video`` uint8 [n, size, size, 3]; ``samples`` float32 [LEAD + 640 n + TAIL] at 16 kHz, of
    which frame k covers [LEAD + 640 k, + 640); ``motion`` float32 [n, 13] (:data:`MOTION`; heads have a 14th column,
    the smile); ``geometry`` float32
    [n, 4] (:data:`GEOMETRY`, in pixels of a 128 px picture)."""

    video: NDArray[np.uint8]
    samples: NDArray[np.float32]
    motion: NDArray[np.float32]
    geometry: NDArray[np.float32]
    text: str
    voice: str


def generator(split: str, index: int) -> np.random.Generator:
    """The source of everything random in one clip."""
    if split not in SPLITS or index < 0:
        raise ArgumentError(f"clip: expected a split of {SPLITS} and an index >= 0, got {split!r} and {index}")
    return np.random.default_rng((SPLITS.index(split), index))


def identity(split: str, index: int) -> Identity:
    """The person of a clip."""
    return Identity.random(generator(split, index))


def make_clip(split: str, index: int, frames: int = FRAMES, size: int = 128, voices: Voices = "espeak") -> Clip:
    """Draw and speak one clip, the same bits in every process."""
    rng = generator(split, index)
    person = Identity.random(rng)
    said = utterance(rng, split, (LEAD + frames * FRAME + TAIL) / RATE, voices)
    mouth = mouth_track(said.phonemes, said.samples, frames, offset=LEAD)
    motion = head_motion(rng, mouth, said.samples[LEAD : LEAD + frames * FRAME])
    geometry = mouth_geometry(person, motion)
    return Clip(draw(person, motion, size), said.samples, motion, geometry, said.text, said.voice)


@dataclass(frozen=True)
class Style:
    """How clips are made: ``make(split, index, size=, voices=)``, and what the columns of ``motion`` are."""

    name: str
    make: Callable[..., Clip]
    motion: tuple[str, ...]


DRAWN = Style("drawn", make_clip, MOTION)


def make_clips(
    split: str, indices: range, *, size: int = 128, workers: int = 0, style: Style = DRAWN, voices: Voices = "espeak"
) -> Iterator[Clip]:
    """Clips of the given indices in order, by ``workers`` processes (0: one for each core)."""
    make = partial(style.make, split, size=size, voices=voices)
    workers = min(workers or os.cpu_count() or 1, len(indices))
    if workers <= 1:
        yield from map(make, indices)
        return
    # Drawing is bound by Python: no threads. Ctrl-C is the parent's to hear.
    quiet = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with multiprocessing.get_context("spawn").Pool(workers, **quiet) as pool:  # type: ignore[arg-type]
        yield from pool.imap(make, indices, chunksize=4)


def write_clips(
    out: Path,
    count: int,
    *,
    split: str = "train",
    first: int = 0,
    size: int = 128,
    workers: int = 0,
    videos: int = 0,
    style: Style = DRAWN,
    voices: Voices = "espeak",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write clips ``first .. first + count - 1`` of a split as arrays for :class:`Clips`, and the first few as mp4.

    ``clips.json`` is written last: a folder without it is an interrupted one. ValueError: count, split, size, or voices
    that are not there; FileExistsError: the folder holds clips already.
    """
    generator(split, first)
    if count < 1 or size < 32 or size % 32:
        raise ArgumentError(f"synth: expected clips >= 1 and a size that is a multiple of 32, got {count} and {size}")
    if voices == "flite":
        flite.speakers(split)
    if voices != "espeak":
        flite.program()
    out.mkdir(parents=True, exist_ok=True)
    if (out / CLIPS).exists():
        raise FileExistsError(f"{out}: holds clips already; choose another folder or remove it")
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        "video": (np.uint8, (count, FRAMES, size, size, 3)),
        "samples": (np.float32, (count, LEAD + FRAMES * FRAME + TAIL)),
        "motion": (np.float32, (count, FRAMES, len(style.motion))),
        "geometry": (np.float32, (count, FRAMES, len(GEOMETRY))),
    }
    arrays = {n: np.lib.format.open_memmap(out / f"{n}.npy", "w+", d, s) for n, (d, s) in shapes.items()}
    entries = []
    made = make_clips(split, range(first, first + count), size=size, workers=workers, style=style, voices=voices)
    for i, clip in enumerate(made):
        for name, array in arrays.items():
            array[i] = getattr(clip, name)
        entries.append({"index": first + i, "text": clip.text, "voice": clip.voice})
        if i < videos:
            write_video(clip, out / f"{split}_{first + i:06d}.mp4")
        if progress is not None:
            progress(i + 1, count)
    for array in arrays.values():
        array.flush()
    about = {"split": split, "first": first, "size": size, "frames": FRAMES, "geometry": GEOMETRY}
    about |= {"style": style.name, "motion": style.motion, "voices": voices}
    partial = out / f"{CLIPS}.partial"
    partial.write_text(json.dumps(about | {"clips": entries}, indent=1))
    partial.replace(out / CLIPS)


def write_video(clip: Clip, path: Path) -> None:
    """The clip as an mp4 with its sound."""
    size = clip.video.shape[1]
    with media.VideoWriter(path, size, size, FPS, RATE) as writer:
        writer.write(clip.video, clip.samples[LEAD : LEAD + len(clip.video) * FRAME])


class Clips:
    """The clips of a folder, mapped from disk: ``video`` uint8 [N, 97, H, W, 3], ``samples`` float32 [N, samples],
    ``motion`` float32 [N, 97, 13 or 14], ``geometry`` float32 [N, 97, 4]; ``about`` is what ``clips.json`` says."""

    def __init__(self, folder: Path):
        if not (folder / CLIPS).is_file():
            raise ArgumentError(f"{folder}: expected a folder of clips with {CLIPS} (rest-fast synth), found none")
        self.about: dict[str, Any] = json.loads((folder / CLIPS).read_text())
        self.video, self.samples, self.motion, self.geometry = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS
        )

    def __len__(self) -> int:
        return len(self.video)

    def pixels(self, clip: int, frames: slice = slice(None)) -> torch.Tensor:
        """float32 [3, n, H, W] in -1..1."""
        return from_levels(torch.from_numpy(self.video[clip, frames].copy()).permute(3, 0, 1, 2))

    def gap(self, clip: int) -> NDArray[np.float32]:
        """Opening of the mouth between the inner lips in every frame, [97]."""
        return np.asarray(self.geometry[clip, :, GEOMETRY.index("gap")])

    def lips(self, clip: int) -> NDArray[np.float32]:
        """How the mouth moves in every frame, [97, 6]; the rest of the motion is not to be heard."""
        return np.array(self.motion[clip][:, LIPS])

    def sound(self, clip: int) -> NDArray[np.float32]:
        """What a viewer would send to animate frame 0: the sound of frames 1..96."""
        return np.asarray(self.samples[clip, LEAD + FRAME : LEAD + FRAMES * FRAME])
