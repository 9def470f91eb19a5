"""Any number of channels as one: what the model hears of stereo and surround sound.

Surround sound is mixed down to two channels as ITU-R BS.775 does: centre and surrounds go to their sides 3 dB quieter,
the bass effects (LFE) to neither. Mono is half the sum of the two channels. Where they cancel, because one of them is
inverted, that would be silence, so mono is half their difference there. Which of the two is decided for each block of
:data:`BLOCK` samples by what the :data:`WINDOW` blocks before it held, so it depends neither on how the sound was cut
nor on what comes later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rest_fast.media.sources import Float32

BLOCK, WINDOW = 160, 50  # samples, and blocks: 10 ms and 0.5 s at 16 kHz
REACH = (WINDOW + 1) * BLOCK  # samples before a position that can affect it
CANCELS = 10  # times the energy of the sum, 10 dB: plain stereo, wide or one-sided, stays below
PIECE = 1 << 18  # samples that are mixed at a time, which bounds the memory

HALF = 0.5**0.5  # 3 dB quieter
# The share of each channel in the left and in the right one.
SHARES = {
    "FL": (1.0, 0.0), "FR": (0.0, 1.0), "FLC": (1.0, 0.0), "FRC": (0.0, 1.0), "FC": (HALF, HALF), "LFE": (0.0, 0.0),
    "BL": (HALF, 0.0), "BR": (0.0, HALF), "SL": (HALF, 0.0), "SR": (0.0, HALF), "BC": (0.5, 0.5),
}  # fmt: skip
# The channels of a sound that does not name them, by their number: the order of WAV files.
LAYOUTS = {
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}


def to_stereo(samples: Float32, layout: Sequence[str] = ()) -> Float32:
    """``[n, channels]`` as ``[n, 2]``, or as it is with one or two channels; ``layout`` names them as FFmpeg does.

    If nothing is known of the channels, they count alike: both sides are their mean.
    """
    channels = samples.shape[1]
    if channels <= 2:
        return samples
    known = len(layout) == channels and all(name in SHARES for name in layout) and {"FL", "FR"} <= set(layout)
    names = tuple(layout) if known else LAYOUTS.get(channels, ())
    shares = [SHARES[name] for name in names] or [(1 / channels, 1 / channels)] * channels
    both = np.zeros((len(samples), 2), np.float32)
    for channel, pair in zip(samples.T, shares):  # one by one: a matrix product's rounding may depend on the length
        for side, share in enumerate(pair):
            both[:, side] += np.float32(share) * channel
    return both


def mono(samples: Float32, start: int = 0, first: int = 0) -> Float32:
    """``samples`` ``[n, 1 or 2]``, of which the first has position ``start``, as ``[m]`` from ``first`` on.

    The result is the same for any ``start`` up to ``first`` - :data:`REACH`. Before the first sample is silence.
    """
    if samples.shape[1] == 1:
        return samples[first - start :, 0]
    out = np.empty(max(0, start + len(samples) - first), np.float32)
    for at in range(first, start + len(samples), PIECE):
        low, high = max(start, at // BLOCK * BLOCK - WINDOW * BLOCK), min(at + PIECE, start + len(samples))
        out[at - first : high - first] = _mono(samples[low - start : high - start], low, at)
    return out


def _mono(pair: Float32, start: int, first: int) -> Float32:
    lead = start % BLOCK  # so that blocks begin where they do in the stream
    padded = np.zeros((-(-(lead + len(pair)) // BLOCK) * BLOCK, 2), np.float32)
    padded[lead : lead + len(pair)] = pair
    left, right = padded.T
    energies = [_energy(side) for side in (left + right, left - right)]
    cancels = np.repeat(CANCELS * energies[0] < energies[1], BLOCK)
    both = (left + np.where(cancels, -right, right)) / 2
    return np.asarray(both[lead + first - start : lead + len(pair)], np.float32)


def _energy(channel: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of the blocks before each block of ``channel``; added in a fixed order, since a last bit could decide."""
    square = channel.astype(np.float64).reshape(-1, BLOCK) ** 2
    blocks = np.concatenate([np.zeros(WINDOW), square.sum(1)])
    total = np.zeros(len(square))
    for i in range(WINDOW):
        total += blocks[i : i + len(square)]
    return total


def mono_of_whole(samples: Float32, layout: Sequence[str] = ()) -> Float32:
    """All of a sound ``[n, channels]`` as ``[n]``. Surround whose sum would be too loud is turned down as a whole."""
    mixed = mono(to_stereo(samples, layout))
    if samples.shape[1] <= 2 or not mixed.size:
        return mixed
    return mixed / np.float32(max(1.0, mixed.max(), -mixed.min()))
