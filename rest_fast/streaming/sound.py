"""The caller's samples on the timeline of a stream, at the caller's rate and in the caller's format."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from rest_fast import media
from rest_fast.errors import ArgumentError
from rest_fast.media import downmix
from rest_fast.units import RATE

MARGIN = RATE // 100  # samples around a window, for the resampler: with 10 ms it agrees with the whole file to 3e-5


class SoundTimeline:
    """The samples of a stream from its start on; those that are no longer needed are dropped.

    Positions are absolute sample indices at ``rate``. Resampling works on fixed windows that start at a whole second,
    where every rate has a sample, so it keeps no state: it can be repeated, rolled back and moved.
    """

    def __init__(self, rate: int):
        if isinstance(rate, bool) or not isinstance(rate, int) or not 8000 <= rate <= 96000:
            raise ArgumentError(f"session: sample_rate: expected an integer in 8000..96000 Hz, got {rate!r}")
        self.rate = rate
        self.start = self.end = 0  # the kept samples are [start, end)
        self.fixed = False  # whether a push has set dtype and channels
        self._pieces: deque[np.ndarray] = deque()  # as pushed: a long queue is never copied to take from its front
        self._like = np.zeros(0, np.float32)  # dtype and channels of silence

    @property
    def format(self) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """dtype and shape of one sample, once a push has set them."""
        return (self._like.dtype, self._like.shape[1:]) if self.fixed else None

    def sample_of(self, frame: int) -> int:
        """round(frame rate / 25); a half cannot occur."""
        return (2 * frame * self.rate + 25) // 50

    def append(self, pcm: np.ndarray) -> None:
        """Samples [n] or [n, channels]; all pushes of a stream share dtype and channels."""
        if not self.fixed:
            self._like, self.fixed = pcm[:0], True
            self._replace(self._silence(self.end - self.start))  # silence so far, in that format
        self._pieces.append(pcm)
        self.end += len(pcm)

    def pad_to(self, position: int) -> None:
        """Silence up to a position."""
        count = max(0, position - self.end)
        self._pieces.append(self._silence(count))
        self.end += count

    def insert_silence(self, at: int, count: int) -> None:
        self._replace(self.raw(self.start, at), self._silence(count), self.raw(at, self.end))

    def cut(self, a: int, b: int) -> None:
        """Remove the samples [a, b); what follows moves forward."""
        self._replace(self.raw(self.start, a), self.raw(b, self.end))

    def truncate(self, position: int) -> None:
        self._replace(self.raw(self.start, max(self.start, min(position, self.end))))

    def drop_before(self, position: int) -> None:
        """Forget the pieces that end before, and that do not affect the mix of what comes after."""
        while self._pieces and self.start + len(self._pieces[0]) <= position - downmix.REACH:
            self.start += len(self._pieces.popleft())

    def oldest(self, frame: int, back: int) -> int:
        """A position before all that windows read which begin ``back`` 16 kHz samples before this frame, or later."""
        reach = back + self.margin + RATE  # windows start at a whole second
        return self.sample_of(frame) - reach * self.rate // RATE - 1

    def raw(self, a: int, b: int) -> np.ndarray:
        """The samples [a, b) as the caller pushed them; zeros beyond the end."""
        assert a >= self.start, f"sound: sample {a} was dropped (kept from {self.start})"
        out, at = self._silence(b - a), self.start
        for piece in self._pieces:
            if at >= b:
                break
            low, high = max(a, at), min(b, at + len(piece))
            if low < high:
                out[low - a : high - a] = piece[low - at : high - at]
            at += len(piece)
        return out

    def mono(self, a: int, b: int, limit: int) -> np.ndarray:
        """fp32 [b - a], all channels as one (:mod:`rest_fast.media.downmix`); zeros before 0 and from ``limit`` on."""
        low, high = max(a, 0), max(min(b, limit), max(a, 0))
        start = max(self.start, low - downmix.REACH)
        piece = downmix.mono(media.stereo_pcm(self.raw(start, high)), start, low)
        return np.pad(piece, (low - a, b - high))

    def needed(self, end16: int) -> int:
        """Number of samples that must be there to compute the 16 kHz positions before ``end16``."""
        return -(-(end16 + self.margin) * self.rate // RATE)

    @property
    def margin(self) -> int:
        return 0 if self.rate == RATE else MARGIN

    def window16(self, a: int, b: int, limit: int) -> np.ndarray:
        """fp32 [b - a]: the sound at 16 kHz positions a..b, silent from sample ``limit`` (of ``rate``) on."""
        if self.rate == RATE:
            return self.mono(a, b, limit)
        second = (a - self.margin) // RATE
        x = self.mono(second * self.rate, self.needed(b), limit)
        y = media.resample(x, self.rate, RATE)
        y = y[a - second * RATE :][: b - a]
        assert len(y) == b - a, f"sound: resampler gave {len(y)} of {b - a} samples"
        return y

    def _silence(self, count: int) -> np.ndarray:
        return np.zeros((count, *self._like.shape[1:]), self._like.dtype)

    def _replace(self, *pieces: np.ndarray) -> None:
        self._pieces = deque(pieces)
        self.end = self.start + sum(map(len, pieces))

    @classmethod
    def restore(cls, rate: int, start: int, samples: np.ndarray, fixed: bool) -> SoundTimeline:
        """A timeline that holds these samples from ``start`` on."""
        line = cls(rate)
        line.start, line.fixed, line._like = start, fixed, samples[:0]
        line._replace(samples)
        return line
