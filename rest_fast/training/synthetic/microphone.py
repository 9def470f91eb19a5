"""What lies between a mouth and a file: level, spectrum and noise of a microphone; a room; a line or a codec.

Nothing here moves sound in time, so that phonemes keep their times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr

from rest_fast.units import RATE

Array = np.ndarray


def recorded(rng: np.random.Generator, clip: Array, spoken: Sequence[tuple[float, float]]) -> Array:
    """The clip through a random microphone: float32 [n], tilted spectrum, level of -32..-14 dBFS where it is ``spoken``
    (seconds from and to), noise floor."""
    level, tilted, noisy = rng.uniform(-32.0, -14.0), rng.random() < 0.3, rng.random() < 0.5
    samples = clip.astype(np.float64)
    if tilted:
        corner, order, db = rng.uniform(300.0, 3000.0), int(rng.integers(1, 3)), rng.uniform(-6.0, 6.0)
        samples = _tilt(samples, corner, order, db)
    inside = np.zeros(len(clip), bool)
    for start, end in spoken:
        inside[round(start * RATE) : round(end * RATE)] = True
    rms = np.sqrt(np.mean(np.square(samples[inside]))) if inside.any() else 0.0
    if rms > 0.0:
        samples *= 10 ** (level / 20) / rms
    if noisy:
        samples += _noise(rng, len(clip), rng.uniform(-70.0, -45.0), colour=rng.uniform(0.0, 1.0))
    return _bounded(samples)


def in_a_room(rng: np.random.Generator, samples: Array) -> Array:
    """In half of all cases with the echoes of a room behind the direct sound, whose place in time is kept.

    Noise that falls by 60 dB in 0.15 to 0.6 s, 6 to 20 dB below the direct sound.
    """
    if rng.random() < 0.5:
        return samples
    seconds, db = rng.uniform(0.15, 0.6), rng.uniform(6.0, 20.0)
    times = np.arange(1, round(seconds * RATE)) / RATE
    echoes = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    echoes *= 10 ** (-db / 20) / np.sqrt(np.square(echoes).sum())
    response = np.concatenate([[1.0], echoes])
    size = len(samples) + len(response)
    heard = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples)]
    return _bounded(heard)


def transmitted(rng: np.random.Generator, samples: Array) -> Array:
    """One in six over a telephone (8 kHz, 8-bit mu-law), one in three without what lies above 4 to 7 kHz."""
    kind = rng.random()
    if kind < 1 / 6:
        narrow = soxr.resample(samples.astype(np.float64), RATE, 8000)
        level = np.sign(narrow) * np.log1p(255 * np.abs(narrow).clip(max=1)) / np.log(256)
        level = np.rint(level * 127) / 127
        narrow = np.sign(level) * np.expm1(np.abs(level) * np.log(256)) / 255
        wide = soxr.resample(narrow, 8000, RATE)
        return _bounded(np.pad(wide, (0, max(0, len(samples) - len(wide))))[: len(samples)])
    if kind < 1 / 2:
        edge = rng.uniform(4000.0, 7000.0)
        size = len(samples) + RATE // 10
        frequency = np.fft.rfftfreq(size, 1 / RATE)
        gain = 1 / (1 + (frequency / edge) ** 16)
        return _bounded(np.fft.irfft(np.fft.rfft(samples, size) * gain, size)[: len(samples)])
    return samples


def _bounded(samples: Array) -> Array:
    """float32 within -1..1, softer where it was louder."""
    return (samples * min(1.0, 0.99 / max(np.abs(samples).max(initial=0.0), 1e-9))).astype(np.float32)


def _tilt(samples: Array, corner: float, order: int, db: float) -> Array:
    """A shelf without phase (so that nothing moves in time): 0 dB far below `corner` Hz, `db` dB per order above."""
    size = len(samples) + RATE // 10  # room for the tail, which would else come in at the other end
    ratio = np.square(np.fft.rfftfreq(size, 1 / RATE) / corner)
    gain = np.sqrt((1 + ratio * 10 ** (db / 10)) / (1 + ratio)) ** order
    return np.fft.irfft(np.fft.rfft(samples, size) * gain, size)[: len(samples)]


def _noise(rng: np.random.Generator, count: int, db: float, colour: float) -> Array:
    """Noise [count] with an RMS of `db` dBFS, from white (colour 0) to pink (colour 1)."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20.0)
    noise = np.fft.irfft(spectrum * frequency ** (-colour / 2), count)
    return noise * 10 ** (db / 20) / max(np.sqrt(np.mean(np.square(noise))), 1e-12)
