"""Videos of a photograph, whoever makes them: a model and a voice, a decoder and known motion, or no model at all.

A :class:`Driver` is what the study measures: something that makes frames of a photo, with what is known of the motion
that they should show.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rest_fast import media
from rest_fast.errors import RestFastWarning
from rest_fast.evaluation.photos import measures
from rest_fast.evaluation.sources import EvaluationError
from rest_fast.media.faces import WIDER, find_face
from rest_fast.model import Model
from rest_fast.training.synthetic.speech import Phoneme, speak
from rest_fast.training.synthetic.visemes import viseme_of
from rest_fast.units import FPS, FRAME, RATE

Array = NDArray[Any]
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".avif"}
SIDE = 256  # px at which sharpness is compared, whatever the model's size
# Lips close 27 times. The voice is one of the split `test`: no drawn clip of training has it.
SENTENCE = "Mom may bump a big map. Bob made a simple plan by my maple pump, but Pam begs for a better one."
SPEAKER = "en-us+f4"
STILL_FRAMES = 3 * FPS  # of the moved photo
SWING = 1.5  # seconds of one sway of the moved photo


@dataclass(frozen=True, eq=False)
class Sound:
    """A voice: float32 samples [n] at 16 kHz; its phonemes where their times are known."""

    name: str
    samples: Array
    phonemes: tuple[Phoneme, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Sound:
        """MediaError: no sound that can be read. EvaluationError: less than two seconds of it."""
        audio = media.load_audio(path)
        if audio.duration < 2:
            raise EvaluationError(f"sound {path.name}: expected at least 2 s, got {audio.duration:.2f} s")
        return cls(path.stem, media.resample(audio.mono, audio.rate, RATE))

    @classmethod
    def sentence(cls) -> Sound:
        """:data:`SENTENCE`, spoken with known phoneme times. ImportError: names the extra ``synth``."""
        said = speak(SENTENCE, SPEAKER)
        return cls("sentence", said.samples * np.float32(0.6), said.phonemes)  # -21 dBFS, in the range of training

    @property
    def frames(self) -> int:
        """Of video."""
        return -(-len(self.samples) // FRAME)

    def closures(self) -> list[int]:
        """The middle frames of all p, b and m."""
        lips = (p for p in self.phonemes if viseme_of(p.name) == ("PBM",))
        return [int((p.start + p.end) / 2 * FPS) for p in lips]


@dataclass(eq=False)
class Portrait:
    """A photograph as a model has it."""

    name: str
    whole: Array  # uint8 [h, w, 3], upright
    box: tuple[int, int, int, int]  # left, top, right, bottom of the crop in it
    picture: Array  # uint8 [S, S, 3], the crop at the model's size
    notes: list[str] = field(default_factory=list)  # what is unusual about it

    @classmethod
    def load(cls, path: Path, size: int, wider: float = WIDER) -> Portrait:
        """Cropped as :meth:`rest_fast.model.Model.prepare` does, with another ``wider`` nearer to the face or less.

        MediaError: no picture that can be read.
        """
        whole = media.load_image(path)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", RestFastWarning)
            found = find_face(whole, wider)
        picture, box = media.square_crop(whole, found, size)
        notes = [str(w.message) for w in said if issubclass(w.category, RestFastWarning)]
        side = box[2] - box[0]
        if side < size:
            notes.append(f"the crop has {side} px a side, fewer than the model's {size}")
        return cls(path.stem, whole, box, picture, notes)

    def sharp(self) -> Array:
        """The crop at :data:`SIDE` pixels, cut from the whole photograph: uint8."""
        return media.square_crop(self.whole, self.box, SIDE)[0]


Film = Callable[[Portrait], Iterable[Array]]  # a photo to pieces of video uint8 [k, S, S, 3]


@dataclass(frozen=True, eq=False)
class Driver:
    """Makes ``frames`` frames of any photo (what comes behind them is dropped), each with its 1/25 s of ``sound``."""

    name: str
    frames: int
    film: Film
    sound: Sound | None = None
    gap: Array | None = None  # the true opening in each frame, [frames]: lips over outer corners of the eyes
    control: bool = False  # made without a model: what the instruments say of a photo that they should find nothing in

    def __post_init__(self) -> None:
        truths = None if self.gap is None else len(self.gap)
        assert truths in (None, self.frames), f"{self.name}: gap: expected {self.frames} openings, got {truths}"

    def pieces(self, portrait: Portrait) -> Iterator[Array]:
        """Exactly ``frames`` frames of the picture's size, in pieces."""
        done = 0
        for piece in self.film(portrait):
            assert piece.shape[1:] == portrait.picture.shape and piece.dtype == np.uint8, (
                f"{self.name}: expected uint8 [k, {', '.join(map(str, portrait.picture.shape))}], "
                f"got {piece.dtype} {list(piece.shape)}"
            )
            piece = piece[: self.frames - done]
            done += len(piece)
            if len(piece):
                yield piece
        assert done == self.frames, f"{self.name}: expected {self.frames} frames, got {done}"


def voices(model: Model, sounds: Sequence[Sound], *, seed: int = 0, guidance: float | None = None) -> list[Driver]:
    """The model, driven by each of the sounds."""

    def with_sound(sound: Sound) -> Film:
        def film(portrait: Portrait) -> Iterator[Array]:
            avatar = model.prepare(portrait.whole, crop=portrait.box)
            with model.session(avatar, seed=seed, guidance=guidance) as session:
                # Second by second: what was made leaves before more is.
                for start in range(0, len(sound.samples), RATE):
                    session.push_audio(sound.samples[start : start + RATE])
                    if start + RATE >= len(sound.samples):
                        session.end_segment()
                    for block in session.blocks():
                        yield block.video

        return film

    return [Driver(sound.name, sound.frames, with_sound(sound), sound) for sound in sounds]


def moved_photo() -> Driver:
    """The photo, swaying by 6 px of 256 and 1.7 degrees, without any model: the floor of every measure."""

    def film(portrait: Portrait) -> Iterator[Array]:
        for i in range(STILL_FRAMES):
            swing = np.sin(2 * np.pi * i / (SWING * FPS))
            path = measures.rolled(len(portrait.picture), measures.SHIFT * swing, measures.ROLL * swing)
            yield np.rint(measures.moved(portrait.picture, path)).clip(0, 255).astype(np.uint8)[None]

    return Driver("moved photo", STILL_FRAMES, film, control=True)


def record(driver: Driver, portrait: Portrait, frames: Path, video: Path | None) -> None:
    """The photo and its frames into ``frames`` (.npy, uint8 [1 + n, S, S, 3]) and, with the sound, into an mp4.

    Piece by piece: memory does not grow with the length.
    """
    size = portrait.picture.shape
    kept = np.lib.format.open_memmap(frames, "w+", np.uint8, (1 + driver.frames, *size))
    kept[0] = portrait.picture
    done = 0
    sound = None if driver.sound is None else np.pad(driver.sound.samples, (0, FRAME))  # a last frame that is not full
    writer = video and media.VideoWriter(video, size[1], size[0], sample_rate=None if sound is None else RATE)
    try:
        for piece in driver.pieces(portrait):
            kept[1 + done : 1 + done + len(piece)] = piece
            if writer:
                here = None if sound is None else sound[done * FRAME : (done + len(piece)) * FRAME]
                writer.write(piece, here)
            done += len(piece)
    finally:
        if writer:
            writer.close()
    kept.flush()


def pictures(given: Sequence[Path]) -> list[Path]:
    """Files as they are, and the pictures of folders, by name. EvaluationError: none, or two of one name."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
            if not inside:
                raise EvaluationError(f"photos: {path}: expected a folder with pictures in it, got one without")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise EvaluationError(f"photos: expected a folder or a picture, got {path}, which is not there")
    if not found:
        raise EvaluationError("photos: expected a folder or pictures, got nothing")
    names: dict[str, Path] = {}
    for path in found:
        other = names.setdefault(path.stem, path)
        if other is not path:
            raise EvaluationError(f"photos: expected names that differ, got {other} and {path}")
    return found
