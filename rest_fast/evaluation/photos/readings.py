"""One video of a photograph, read: every measure of it that is known, and why the others are not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rest_fast.errors import NoFace
from rest_fast.evaluation import mouths
from rest_fast.evaluation.photos import measures
from rest_fast.evaluation.photos.drivers import SIDE, Driver, Portrait, Sound
from rest_fast.evaluation.photos.faces import CURE, Faces
from rest_fast.units import FPS

Array = NDArray[Any]
STRIDE = 5  # identity, sharpness and background are measured on five frames a second
MIDDLE = (0.25, 0.85), (0.22, 0.78)  # rows and columns of a framed picture where the face is
LEAST_BACKGROUND = 0.03  # of the picture
LEAST_FACE = 16  # px of 256 a side of what the frame shows of a face, for its detail to be measured
NO_INSTRUMENTS = f"no instruments: {CURE}"


class Unknown(Exception):
    """Why something cannot be measured of this video."""


@dataclass(eq=False)
class Video:
    """Frames uint8 [1 + n, S, S, 3], frame 0 being the photo, the faces read off them, and what drove them."""

    portrait: Portrait
    driver: Driver
    wrong: Sound | None  # a voice that did not drive it
    frames: Array
    read: Faces | None  # of all 1 + n frames; None without instruments
    cell: int  # side of a latent cell in pixels

    @property
    def faces(self) -> Faces:
        if self.read is None:
            raise Unknown(NO_INSTRUMENTS)
        return self.read

    @functools.cached_property
    def place(self) -> Array:
        """Where the photo's face is in each frame, [n, 2, 3]; averaged, since landmarks tremble."""
        landmarks = self.faces.landmarks
        return measures.smooth(measures.similarity(landmarks[1:], landmarks[0]))

    @functools.cached_property
    def seams(self) -> dict[str, float]:
        """Cell borders that cross the face -> their step over that of their neighbours."""
        side = self.frames.shape[1]
        rows, columns = (slice(round(a * side), round(b * side)) for a, b in MIDDLE)
        found = measures.seams(self.frames[1:], np.asarray(self.frames[0]), self.cell, (rows, columns))
        if not found:
            raise Unknown(f"no border of cells of {self.cell} px crosses the middle of {side} px")
        return {f"{'x' if line > 0 else 'y'} = {abs(line)}": ratio for line, ratio in found.items()}

    @functools.cached_property
    def gap(self) -> Array:
        """Between the inner lips over the distance of the eyes, [n]."""
        return mouths.opening(measures.mouth_points(self.faces.landmarks[1:]), self.driver.name)

    def report(self) -> dict[str, Any]:
        """Each measure by name: a number, NaN where it is not known, of which ``unknown`` says why."""
        values: dict[str, Any] = {"frames": len(self.frames) - 1, "control": self.driver.control}
        unknown: dict[str, str] = {}
        for names, reader in READERS.items():
            try:
                found = reader(self)
                assert len(found) == len(names), f"{names}: expected {len(names)} numbers, got {len(found)}"
                values |= dict(zip(names, map(float, found)))
            except (Unknown, NoFace) as e:
                values |= dict.fromkeys(names, np.nan)
                unknown |= dict.fromkeys(names, str(e))
        return values | {"seams": {} if "seam" in unknown else self.seams, "unknown": unknown}

    def curves(self) -> dict[str, Array]:
        """For the strip: ``gap``, ``voice`` and ``truth``, as far as they are there."""
        found = {"gap": self.gap} if self.read is not None and self.read.found[1:].mean() >= 1 - mouths.MISSING else {}
        if self.driver.sound is not None:
            found["voice"] = measures.envelope(self.driver.sound.samples)
        return found if self.driver.gap is None else found | {"truth": self.driver.gap}


Numbers = tuple[float, ...]


def _found(video: Video) -> Numbers:
    return (video.faces.found[1:].mean(),)


def _identity(video: Video) -> Numbers:
    described = video.faces.descriptors
    if not np.isfinite(described[0, 0]):
        raise Unknown("dlib finds no face in the photo")
    mean, most = measures.identity(described[1:], described[0])
    if np.isnan(mean):
        raise Unknown("dlib finds no face in any frame")
    return mean, most, np.isfinite(described[1:][STRIDE - 1 :: STRIDE, 0]).mean()


def _seam(video: Video) -> Numbers:
    ratios = list(video.seams.values())
    return float(np.mean(ratios)), max(ratios)


def _sharpness(video: Video) -> Numbers:
    """Over the photo moved once and for all, and over the photo moved as the head is in each frame."""
    faces, photo, side = video.faces, video.portrait.sharp(), video.frames.shape[1]
    times, fixed = SIDE / side, measures.rolled(SIDE)
    ratios = []
    for i, frame in measures.each(video.frames[1:], STRIDE):
        if not faces.found[1 + i]:
            continue
        points = measures.resized(faces.landmarks[1 + i, :, :2], times)
        if min(edge.stop - edge.start for edge in measures.face_box(points, SIDE, SIDE)) >= LEAST_FACE:
            picture = np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            own = measures.resized_motion(video.place[i], times)
            ratios.append([measures.sharpness(picture, photo, how, points) for how in (fixed, own)])
    if not ratios:
        raise Unknown(f"no frame has {LEAST_FACE} px of {SIDE} of a face")
    return tuple(np.mean(ratios, 0))


def _voice(video: Video) -> Numbers:
    return _follows(video.gap, _sound(video))


def _wrong(video: Video) -> Numbers:
    _sound(video)
    if video.wrong is None:
        raise Unknown("no other voice")
    return _follows(video.gap, measures.envelope(video.wrong.samples))[:1]


def _growth(video: Video) -> Numbers:
    if not np.isfinite(video.place).any():
        raise Unknown("no face is found in any frame")
    return (measures.growth(video.place),)


def _spread(video: Video) -> Numbers:
    return (video.gap.std(),)


def _truth(video: Video) -> Numbers:
    truth = video.driver.gap
    if truth is None:
        raise Unknown("no known motion")
    spread = float(truth.std())
    if not spread > 0:
        raise Unknown("the known motion opens no mouth")
    return (*_follows(video.gap, truth), video.gap.std() / spread)


def _closure(video: Video) -> Numbers:
    """Share of closed lips at p, b and m, and of all frames: a mouth that hardly opens is closed at these, too."""
    sound, closed = video.driver.sound, measures.closed(video.gap)
    closures = [frame for frame in sound.closures() if frame < len(closed)] if sound is not None else []
    if not closures:
        raise Unknown("no known times of p, b and m")
    return closed[closures].mean(), closed.mean(), len(closures)


def _eyes(video: Video) -> Numbers:
    opening = measures.eye_opening(video.faces.landmarks[1:])
    if not np.isfinite(opening).any():
        raise Unknown("no face is found in any frame")
    return measures.blinks(opening), float(np.nanstd(opening))


def _background(video: Video) -> Numbers:
    if video.driver.control:
        raise Unknown("the background is moved, too")
    side = video.frames.shape[1]
    outside = measures.outside_head(video.faces.landmarks[0], side, side)
    if outside.mean() < LEAST_BACKGROUND:
        raise Unknown(f"the head leaves {outside.mean():.1%} of the picture")
    frames = (frame for _, frame in measures.each(video.frames[1:], STRIDE))
    return (measures.background(frames, np.asarray(video.frames[0]), outside),)


def _flicker(video: Video) -> Numbers:
    points = measures.skin_points(video.faces.landmarks[0])
    found = measures.flicker(video.frames[1:], video.place, points)
    if np.isnan(found):
        raise Unknown("no three frames with a face follow each other")
    return (found,)


def _sound(video: Video) -> Array:
    if video.driver.sound is None:
        raise Unknown("no voice")
    return measures.envelope(video.driver.sound.samples)


def _follows(gap: Array, wanted: Array) -> Numbers:
    """r, lag, r at that lag."""
    if min(len(gap), len(wanted)) < FPS:
        raise Unknown("less than a second of both")
    return measures.follows(gap, wanted)


# Names of measures -> what finds them.
READERS: dict[tuple[str, ...], Callable[[Video], Numbers]] = {
    ("face_found",): _found,
    ("identity_mean", "identity_max", "identity_found"): _identity,
    ("seam", "seam_worst"): _seam,
    ("sharpness", "sharpness_same_motion"): _sharpness,
    ("gap_r", "gap_lag", "gap_lag_r"): _voice,
    ("gap_r_wrong",): _wrong,
    ("gap_std",): _spread,
    ("truth_r", "truth_lag", "truth_lag_r", "truth_amplitude"): _truth,
    ("closure", "closure_any", "closures"): _closure,
    ("blinks", "eye_std"): _eyes,
    ("head_size",): _growth,
    ("background",): _background,
    ("flicker",): _flicker,
}
