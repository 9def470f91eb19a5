"""The caller's samples on the timeline of a stream, at the caller's rate and in the caller's format."""

from __future__ import annotations

import numpy as np

from rest_fast import media

RATE = 16000
MARGIN = RATE // 100  # resampler's neighbourhood: past 10 ms, soxr HQ windows agree with the whole file to 1e-5


class SoundTimeline:
    """Samples from the start of the stream; what is no longer needed is dropped.

    Positions are absolute sample indices at ``rate``. Resampling works on fixed windows that start at a whole second,
    where every rate has a sample, so it keeps no state: it can be repeated, rolled back and moved.
    """

    def __init__(self, rate: int):
        if isinstance(rate, bool) or not isinstance(rate, int) or not 8000 <= rate <= 96000:
            raise ValueError(f"session: sample_rate: expected an integer in 8000..96000 Hz, got {rate!r}")
        self.rate = rate
        self.start = 0  # absolute index of data[0]
        self.data = np.zeros(0, np.float32)
        self.fixed = False  # whether a push has set dtype and channels
        self._tail: list[np.ndarray] = []
        self._tail_len = 0

    @property
    def end(self) -> int:
        return self.start + len(self.data) + self._tail_len

    def sample_of(self, frame: int) -> int:
        """round(frame rate / 25); a half cannot occur."""
        return (2 * frame * self.rate + 25) // 50

    def append(self, pcm: np.ndarray) -> None:
        """Samples [n] or [n, channels]; all pushes of a stream share dtype and channels."""
        if not self.fixed:
            self._merge()
            self.data = np.zeros((len(self.data), *pcm.shape[1:]), pcm.dtype)  # silence so far, in that format
            self.fixed = True
        self._tail.append(pcm)
        self._tail_len += len(pcm)

    def pad_to(self, position: int) -> None:
        """Silence up to a position."""
        self._merge()
        self._tail_len = max(0, position - self.end)
        self._tail = [self._silence(self._tail_len)]

    def insert_silence(self, at: int, count: int) -> None:
        self._merge()
        cut = at - self.start
        self.data = np.concatenate([self.data[:cut], self._silence(count), self.data[cut:]])

    def truncate(self, position: int) -> None:
        self._merge()
        self.data = self.data[: max(0, position - self.start)].copy()

    def drop_before(self, position: int) -> None:
        """Forget what lies before; the copy is made when half is gone, so an hour pushed at once costs no more."""
        gone = position - self.start
        if gone > max(len(self.data) // 2, self.rate):
            self._merge()
            self.data, self.start = self.data[gone:].copy(), self.start + min(gone, len(self.data))

    def raw(self, a: int, b: int) -> np.ndarray:
        """The caller's own samples [a, b); zeros beyond the end."""
        self._merge()
        assert a >= self.start, f"sound: sample {a} was dropped (kept from {self.start})"
        piece = self.data[a - self.start : b - self.start]
        return np.concatenate([piece, self._silence(b - a - len(piece))])

    def mono(self, a: int, b: int, limit: int) -> np.ndarray:
        """fp32 [b - a] in -1..1, channels averaged; zeros before 0 and from ``limit`` on."""
        low, high = max(a, 0), max(min(b, limit), max(a, 0))
        piece = media.check_pcm(self.raw(low, high)) if high > low else np.zeros(0, np.float32)
        return np.pad(piece, (low - a, b - max(high, low)))

    def needed(self, end16: int) -> int:
        """Samples that must be there for 16 kHz positions before ``end16``."""
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
        return np.zeros((count, *self.data.shape[1:]), self.data.dtype)

    def _merge(self) -> None:
        if self._tail:
            self.data = np.concatenate([self.data, *self._tail])
            self._tail, self._tail_len = [], 0
