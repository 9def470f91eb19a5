"""How a drawn head moves while it speaks: slow sway, blinks, nods and brows; the mouth comes from the phonemes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rest_fast.training.synthetic.portraits import MOTION
from rest_fast.training.synthetic.visemes import MOUTH
from rest_fast.units import FPS, FRAME


def head_motion(
    rng: np.random.Generator, mouth: NDArray[np.float32], samples: NDArray[np.float32], *, from_rest: bool = True
) -> NDArray[np.float32]:
    """Everything that moves, [n, 13] in the order of :data:`MOTION`.

    Args:
        rng: what the sound does not determine is drawn from it.
        mouth: [n, 6] in the order of :data:`MOUTH`, as :func:`visemes.mouth_track` gives it.
        samples: the sound of the same n frames, [n x 640] at 16 kHz.
        from_rest: frame 0 is the reference photo (mouth at rest, eyes open, head anywhere); speech may be going on
            already, so at frame 1 the mouth is half way to its track.
    """
    frames = len(mouth)
    track = dict.fromkeys(MOTION, np.zeros(frames))
    opening = np.minimum(np.arange(frames) / 2, 1) if from_rest else np.ones(frames)
    track |= {name: mouth[:, i] * opening for i, name in enumerate(MOUTH)}
    stress = emphasis(samples, frames)
    # Sway is slow (a full swing takes 3 to 5 s at least), so that it goes on over the border of a chunk of 0.96 s.
    turn = sway(rng, frames)
    track["yaw"] = 0.7 * turn + 0.3 * sway(rng, frames)
    track["dx"] = 5.5 * turn + 2.5 * sway(rng, frames)
    track["dy"] = 2.5 * sway(rng, frames) + 1.5 * stress
    track["roll"] = 0.08 * sway(rng, frames)
    track["pitch"] = 0.6 * sway(rng, frames) - 0.5 * stress
    track["brow"] = np.clip(0.5 * sway(rng, frames) + 0.9 * stress, -1, 1)
    track["blink"] = blinks(rng, frames)
    return np.stack([track[name] for name in MOTION], 1).astype(np.float32)


def sway(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """[frames] in about -1..1: a Catmull-Rom curve through random knots 1.5 to 2.5 s apart."""
    spacing = FPS * rng.uniform(1.5, 2.5)
    knots = rng.uniform(-1, 1, int(frames / spacing) + 4)
    t, k = np.modf(np.arange(frames) / spacing + rng.uniform())
    a, b, c, d = (knots[np.minimum(k.astype(int) + j, len(knots) - 1)] for j in range(4))
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def blinks(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """[frames], 1 shut: blinks of 7 to 9 frames (latents have 8), 1.6 to 4.5 s apart; never at frame 0."""
    shut, start = np.zeros(frames + 9), int(rng.integers(4, 80))
    while start < frames:
        length = int(rng.integers(7, 10))
        wave = np.sin(np.pi * (np.arange(length) + 0.5) / length)
        shut[start : start + length] = np.minimum(1.0, 1.25 * wave**1.5)
        start += int(rng.integers(40, 113))
    return shut[:frames]


def emphasis(samples: NDArray[np.float32], frames: int) -> NDArray[np.float64]:
    """[frames] in 0..1: how much louder than its surroundings the speech is, smoothed over half a second."""
    power = np.square(samples[: frames * FRAME].astype(np.float64)).reshape(frames, FRAME).mean(1)
    level = np.sqrt(power) / (np.sqrt(power.mean()) + 1e-6)
    window = np.hanning(15)[1:-1]
    smooth = np.convolve(np.pad(level, 6, "edge"), window / window.sum(), "valid")
    return np.clip(smooth - 0.9, 0, 1)
