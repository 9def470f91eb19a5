"""From timed phonemes to the motion of a mouth: viseme targets blended by Cohen-Massaro dominance.

A mouth is six numbers a frame: `open` 0..1, `width` -1..1 (pursed to spread), `round` 0..1, `press` 0..1 (lips pressed
together), `tuck` 0..1 (lower lip under the upper teeth), `tongue` 0..1 (tongue tip at the teeth).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rest_fast.errors import ArgumentError

if TYPE_CHECKING:
    from rest_fast.training.synthetic.speech import Phoneme

MOUTH = ("open", "width", "round", "press", "tuck", "tongue")

# name: (open, width, round, press, tuck, tongue, dominance)
VISEMES: dict[str, tuple[float, float, float, float, float, float, float]] = {
    "sil": (0.02, 0.00, 0.00, 0.30, 0.0, 0.0, 0.35),
    "PBM": (0.00, -0.05, 0.10, 1.00, 0.0, 0.0, 2.5),
    "FV": (0.12, 0.15, 0.00, 0.00, 1.0, 0.0, 1.6),
    "TH": (0.22, 0.15, 0.00, 0.00, 0.0, 1.0, 1.3),
    "TDN": (0.22, 0.20, 0.00, 0.00, 0.0, 0.6, 0.9),
    "S": (0.12, 0.45, 0.00, 0.00, 0.0, 0.2, 1.2),
    "SH": (0.18, -0.45, 0.65, 0.00, 0.0, 0.1, 1.3),
    "KG": (0.32, 0.05, 0.00, 0.00, 0.0, 0.0, 0.6),
    "R": (0.25, -0.40, 0.50, 0.00, 0.0, 0.1, 0.9),
    "L": (0.35, 0.15, 0.00, 0.00, 0.0, 0.8, 0.9),
    "W": (0.10, -0.80, 1.00, 0.00, 0.0, 0.0, 1.5),
    "H": (0.40, 0.05, 0.00, 0.00, 0.0, 0.0, 0.3),
    "AA": (1.00, 0.05, 0.00, 0.00, 0.0, 0.0, 1.0),
    "AE": (0.80, 0.45, 0.00, 0.00, 0.0, 0.0, 1.0),
    "AH": (0.70, 0.10, 0.00, 0.00, 0.0, 0.0, 0.9),
    "AO": (0.75, -0.40, 0.60, 0.00, 0.0, 0.0, 1.0),
    "EH": (0.60, 0.45, 0.00, 0.00, 0.0, 0.0, 1.0),
    "ER": (0.40, -0.25, 0.35, 0.00, 0.0, 0.1, 0.9),
    "IH": (0.38, 0.50, 0.00, 0.00, 0.0, 0.0, 0.8),
    "IY": (0.25, 0.85, 0.00, 0.00, 0.0, 0.0, 1.0),
    "OW": (0.50, -0.60, 0.80, 0.00, 0.0, 0.0, 1.0),
    "UW": (0.10, -0.90, 1.00, 0.00, 0.0, 0.0, 1.1),
    "schwa": (0.40, 0.10, 0.00, 0.00, 0.0, 0.0, 0.6),
}

# espeak-ng phoneme names; the longest that begins a name wins, so `t` also stands for `t#` and `t[`.
_PHONEMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("pbm", ("PBM",)),
    **dict.fromkeys("fv", ("FV",)),
    **dict.fromkeys("TD", ("TH",)),
    **dict.fromkeys(("t", "d", "n", "*"), ("TDN",)),
    **dict.fromkeys("sz", ("S",)),
    **dict.fromkeys(("S", "Z", "tS", "dZ"), ("SH",)),
    **dict.fromkeys(("k", "g", "N", "x", "?"), ("KG",)),
    **dict.fromkeys("rR", ("R",)),
    **dict.fromkeys("lL", ("L",)),
    **dict.fromkeys("wW", ("W",)),
    **dict.fromkeys(("j", ";"), ("IH",)),
    "h": ("H",),
    # vowels
    **dict.fromkeys(("A", "A:"), ("AA",)),
    **dict.fromkeys(("a", "aa", "a:"), ("AE",)),
    **dict.fromkeys(("V", "a#"), ("AH",)),
    **dict.fromkeys(("O", "0", "o"), ("AO",)),
    **dict.fromkeys("Ee", ("EH",)),
    **dict.fromkeys(("3", "VR"), ("ER",)),
    "I": ("IH",),
    "i": ("IY",),
    "U": ("OW",),
    "u": ("UW",),
    "@": ("schwa",),
    # several mouth shapes in equal parts
    "A@": ("AA", "ER"),
    **dict.fromkeys(("O@", "o@"), ("AO", "ER")),
    **dict.fromkeys(("E@", "e@"), ("EH", "ER")),
    **dict.fromkeys(("i@", "IR"), ("IY", "ER")),
    **dict.fromkeys(("U@", "u@", "UR"), ("UW", "ER")),
    "eI": ("EH", "IY"),
    "aI": ("AA", "IY"),
    **dict.fromkeys(("aI@", "aI3"), ("AA", "IY", "ER")),
    "OI": ("AO", "IY"),
    "aU": ("AA", "UW"),
    "aU@": ("AA", "UW", "ER"),
    **dict.fromkeys(("oU", "@U"), ("OW", "UW")),
    "@L": ("schwa", "L"),
}
_LONGEST = max(map(len, _PHONEMES))
_STRESS = "',%="

_GRID = 100  # Hz
_REACH = 0.035  # seconds over which a segment's influence falls to 1/e
_CLOSURE_REACH = 0.027
_LONGEST_RIM = 0.03
_SHUT = 0.7  # share of p, b, m before the lips part: a burst comes out of open lips
_SEAL_REACH = 0.012
_SHORTEST_SEAL = 0.04  # one frame of 25 fps: no closure falls between two frames
_LOUDNESS_SPAN = 0.68  # seconds, 17 frames of 25 fps


def viseme_of(phoneme_name: str) -> tuple[str, ...]:
    """Names of the visemes that a phoneme runs through in equal parts of its time.

    Args:
        phoneme_name: as espeak-ng gives it, stress marks included. Pauses (`_`) and language switches (`(`) are `sil`.
    """
    name = phoneme_name.lstrip(_STRESS)
    if name.startswith(("_", "(")):
        return ("sil",)
    for length in range(min(len(name), _LONGEST), 0, -1):
        visemes = _PHONEMES.get(name[:length])
        if visemes:
            return visemes
    raise ArgumentError(f"no viseme for the phoneme {phoneme_name!r}")


def mouth_track(
    phonemes: Sequence[Phoneme], samples: np.ndarray, frames: int, offset: int = 0, rate: int = 16_000, fps: int = 25
) -> np.ndarray:
    """Mouth parameters of each video frame.

    Frame k shows the samples `offset + k * rate / fps` to `offset + (k + 1) * rate / fps` and is taken at their
    middle. A stretch without phonemes is silence.

    Args:
        phonemes: timed in seconds from `samples[0]`.
        samples: [n], the sound; its loudness, relative to its own speech level, moves `open` a little.

    Returns:
        float32 [frames, 6], columns as in `MOUTH`.
    """
    times = offset / rate + (np.arange(frames) + 0.5) / fps
    first = min(0.0, offset / rate)
    last = max(len(samples) / rate, offset / rate + frames / fps)
    # Grid points lie at whole hundredths of `samples`, wherever the frames begin: overlapping tracks agree.
    grid = np.arange(np.floor(first * _GRID), np.ceil(last * _GRID) + 1) / _GRID
    names, starts, ends = _segments(phonemes, first, last)
    motion = _blend(grid, names, starts, ends)
    speech = np.array([name != "sil" for name in names])
    motion[:, 0] *= 0.8 + 0.25 * _loudness(grid, samples, rate, starts[speech], ends[speech])
    track = np.stack([np.interp(times, grid, column) for column in motion.T], axis=1)
    track[:, 0] = np.clip(track[:, 0], 0.0, 1.0)
    return track.astype(np.float32)


def _segments(phonemes: Sequence[Phoneme], first: float, last: float) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Viseme names, starts and ends in seconds, [segments] each, with silence in the gaps of `first`..`last`."""
    segments: list[tuple[str, float, float]] = []
    now = first
    for phoneme in phonemes:
        if phoneme.start > now + 1e-6:
            segments.append(("sil", now, phoneme.start))
        visemes = viseme_of(phoneme.name)
        borders = np.linspace(phoneme.start, phoneme.end, len(visemes) + 1)
        segments += [(viseme, borders[i], borders[i + 1]) for i, viseme in enumerate(visemes)]
        now = max(now, phoneme.end)
    if last > now + 1e-6 or not segments:
        segments.append(("sil", now, max(last, now)))
    return [name for name, _, _ in segments], *np.array([(start, end) for _, start, end in segments]).T


def _blend(grid: np.ndarray, names: list[str], starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Cohen-Massaro blend of all segments' targets: [times, 6] for `grid` [times] in seconds."""
    values = np.array([VISEMES[name] for name in names])
    targets, dominance = values[:, :6], values[:, 6]
    closed = np.array([name == "PBM" for name in names])
    ends = np.where(closed, starts + _SHUT * (ends - starts), ends)
    reach = np.where(closed, _CLOSURE_REACH, _REACH)
    # The middle 60 % is at full strength, and a long pause is not left ajar for a fifth of its time.
    rim = np.minimum(0.2 * (ends - starts), _LONGEST_RIM)
    distance = _distance(grid, starts + rim, ends - rim)
    # In the exponent, so that a moment far from everything still has a nearest segment and not 0 / 0.
    exponent = np.log(dominance) - (distance / reach) ** 1.3
    weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    motion = weight @ targets / weight.sum(axis=1, keepdims=True)
    # Lips that touch (or meet the teeth) do touch, however open the neighbours are: dominance alone leaves a gap in
    # a short `b` between two long `a`. Width and rounding stay the neighbours' affair.
    for viseme in ("PBM", "FV"):
        chosen = np.array([name == viseme for name in names])
        if chosen.any():
            start, end = starts[chosen], ends[chosen]
            widen = np.maximum(_SHORTEST_SEAL - (end - start), 0.0) / 2
            gap = _distance(grid, start - widen, end + widen).min(axis=1, keepdims=True)
            seal = np.exp(-((gap / _SEAL_REACH) ** 1.3))
            pinned = [MOUTH.index(name) for name in ("open", "press", "tuck")]
            motion[:, pinned] += seal * (np.array(VISEMES[viseme])[pinned] - motion[:, pinned])
    return motion


def _distance(grid: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Seconds from each moment of `grid` [times] to each interval: [times, intervals], zero inside."""
    return np.maximum(np.maximum(starts - grid[:, None], grid[:, None] - ends), 0.0)


def _loudness(grid: np.ndarray, samples: np.ndarray, rate: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Smoothed level of the sound at `grid` [times], 0..1: ordinary speech of these `samples` is at 0.5."""
    power = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])

    def energy(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        low, high = (np.clip(np.rint(t * rate).astype(np.int64), 0, len(samples)) for t in (begin, end))
        return np.stack([power[high] - power[low], np.maximum(high - low, 1)])

    total, count = energy(starts, ends).sum(axis=1)
    if not total > 0.0:
        return np.zeros(len(grid))
    near, width = energy(grid - _LOUDNESS_SPAN / 2, grid + _LOUDNESS_SPAN / 2)
    return np.clip(0.5 * np.sqrt(near / width / (total / count)), 0.0, 1.0)
