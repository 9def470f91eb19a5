"""One square that holds a face through a whole clip, without moving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from rest_fast.media.faces import FRAMED
from rest_fast.training.preparation.rules import CROWDED, ENLARGED, JUMP, MISSING, MOVES, RIVAL, SAMPLE, Dropped

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the upright picture
Square = tuple[int, int, int, int]


@dataclass(frozen=True)
class Framing:
    """How the square of a training picture follows from a detector's face, in sides of that face: ``wider`` is the side
    of the square, ``up`` is how much higher its centre lies."""

    wider: float
    up: float


def least_side(size: int) -> int:
    """Smallest side of a crop in pixels, for pictures of ``size``."""
    return -int(-size // ENLARGED)


def given_crop(box: Sequence[float], width: int, height: int, least: int) -> Square:
    """A given square (within 1 px) in whole pixels. Dropped: outside of the picture, smaller than ``least``."""
    left, top = round(box[0]), round(box[1])
    side = round((box[2] - box[0] + box[3] - box[1]) / 2)
    if left < 0 or top < 0 or left + side > width or top + side > height:
        raise Dropped("outside", f"expected a box inside {width} x {height} px, got {list(box)}")
    _check_side(side, least)
    return left, top, left + side, top + side


def face_crop(looks: Sequence[Sequence[Box]], framing: Framing, width: int, height: int, least: int) -> Square:
    """The square around the extremes of a face's box over time; ``looks`` has the faces of each sampled picture.

    The side is that of a still head's portrait plus the distance that the face moves. A square that sticks out is moved
    into the picture, and shrunk if it does not fit; one that has nearly the picture's shorter side gets all of it, as
    for photos. Raises: Dropped, by the rules about faces.
    """
    track = _follow(looks)
    face = median(map(_side, track))
    left, top = (min(box[i] for box in track) for i in (0, 1))
    right, bottom = (max(box[i] for box in track) for i in (2, 3))
    way = max(0.0, right - left - median(b[2] - b[0] for b in track), bottom - top - median(b[3] - b[1] for b in track))
    still = framing.wider * face
    if still + way > MOVES * still:
        raise Dropped("moves", f"expected a face that moves at most {(MOVES - 1) * still:.0f} px, got {way:.0f} px")
    short = min(width, height)
    side = short if still + way >= FRAMED * short else round(still + way)
    x = min(max(round((left + right - side) / 2), 0), width - side)
    y = min(max(round((top + bottom - side) / 2 - framing.up * face), 0), height - side)
    over = max(x - left, y - top, right - x - side, bottom - y - side)
    if over > 0:
        raise Dropped("outside", f"expected a face inside the crop, got one that reaches {over:.0f} px out of it")
    _check_side(side, least)
    return x, y, x + side, y + side


def _follow(looks: Sequence[Sequence[Box]]) -> list[Box]:
    """The face that is present most of the time, in each picture that shows it."""
    seen = [max(faces, key=lambda box: (_side(box), -box[1], -box[0])) for faces in looks if faces]
    if len(seen) < (1 - MISSING) * len(looks):
        raise Dropped("no_face", f"expected a face in every picture, got one in {len(seen)} of {len(looks)}")
    middle, size = np.median([_centre(box) for box in seen], axis=0), median(map(_side, seen))
    crowded = sum(sum(_side(box) >= RIVAL * size for box in faces) > 1 for faces in looks)
    if crowded > CROWDED * len(looks):
        raise Dropped("faces", f"expected one face, got more in {crowded} of {len(looks)} pictures")
    track: list[tuple[int, Box]] = []
    for k, faces in enumerate(looks):
        near = [box for box in faces if _side(box) >= RIVAL * size]  # a wrong hit may be the largest one
        if near:
            track.append((k, min(near, key=lambda box: float(np.hypot(*(_centre(box) - middle))))))
    if len(track) < (1 - MISSING) * len(looks):
        raise Dropped("no_face", f"expected a face in every picture, got one in {len(track)} of {len(looks)}")
    for (i, a), (k, b) in pairwise(track):
        way = float(np.hypot(*(_centre(b) - _centre(a))))
        if way > JUMP * size * (k - i):
            expected = f"a face that moves at most {JUMP * size * (k - i):.0f} px in {(k - i) * SAMPLE} frames"
            raise Dropped("cut", f"expected {expected}, got {way:.0f} px")
    return [box for _, box in track]


def _check_side(side: int, least: int) -> None:
    if side < least:
        raise Dropped("small", f"expected a crop of at least {least} px, got {side} px")


def _side(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _centre(box: Box) -> np.ndarray:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
