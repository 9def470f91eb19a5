"""Sound as transports have it, pushed to a session as the session wants it: int16, one channel, its own rate."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from rest_fast import media
from rest_fast.media import av_frames
from rest_fast.media.sources import number
from rest_fast.streaming.session import Session


class SoundIn:
    """Takes frames, bytes and arrays of any rate and up to 8 channels, for one session.

    What has the session's rate, int16 and one channel, goes through as it is. Another rate is resampled as it comes,
    so a few milliseconds stay behind until :meth:`end_segment`.
    """

    def __init__(self, session: Session):
        self.session = session
        self._from: int | None = None  # the rate that is being resampled
        self._resampler: soxr.ResampleStream | None = None
        self.pushed = False  # whether the segment has samples

    def push_frame(self, frame: av.AudioFrame) -> None:
        """Raises: :class:`rest_fast.MediaError`, :class:`rest_fast.BacklogFull`, :class:`rest_fast.SessionClosed`."""
        self.push(av_frames.samples_of(frame), frame.sample_rate)

    def push_bytes(
        self, data: bytes, *, form: str = "s16le", rate: int | None = None, channels: int = 1, planar: bool = False
    ) -> None:
        """``form``: s16le, s32le or f32le; ``rate``: None for the session's."""
        self.push(av_frames.samples_of_bytes(data, form, channels, planar), rate)

    def push(self, samples: NDArray[Any], rate: int | None = None) -> None:
        """Samples int16 or float in -1..1, [n] or [n, channels]."""
        rate = self.session.rate if rate is None else number("sample rate", rate, *media.SOUND_RATES)
        plain = samples.dtype == np.int16 and samples[..., None].shape[1:] in ((1,), (1, 1))
        sound = samples.reshape(-1) if plain else media.check_pcm(samples)
        if rate != self._from:
            self._flush()  # it comes before these
        if rate != self.session.rate:
            sound = self._resampled(media.check_pcm(sound), rate)
        self._push(sound)

    def _push(self, sound: NDArray[Any]) -> None:
        if len(sound):
            self.session.push_audio(av_frames.as_int16(sound))
            self.pushed = True

    def end_segment(self) -> bool:
        """What was pushed is complete. Returns: whether that was anything, so that a segment ends."""
        self._flush()
        ends = self.pushed
        if ends:
            self.session.end_segment()
        self.forget()
        return ends

    def _flush(self) -> None:
        """What stayed behind in the resampler."""
        resampler, self._resampler, self._from = self._resampler, None, None
        if resampler is not None:
            self._push(resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    def forget(self) -> bool:
        """What was pushed is not wanted any more: behind an interrupt. Returns: whether a segment had begun."""
        began, self.pushed = self.pushed or self._resampler is not None, False
        self._resampler = self._from = None
        return began

    def _resampled(self, sound: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        if self._resampler is None:
            self._resampler, self._from = soxr.ResampleStream(rate, self.session.rate, 1, "float32"), rate
        made: NDArray[np.float32] = self._resampler.resample_chunk(sound)
        return made
