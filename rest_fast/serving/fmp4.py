"""A stream of frames as fragmented MP4 (H.264 and AAC), a fragment for each frame."""

from __future__ import annotations

from fractions import Fraction

import av

from rest_fast.media import AAC_RATES, av_frames
from rest_fast.serving.pacer import Shown
from rest_fast.units import FPS

PRIMING = 1024  # samples by which the AAC encoder begins early


class FragmentedMP4:
    """``add`` frames in order; what it returns continues the file.

    The header comes before the first packets, so it cannot say how early the encoder's sound begins. So everything is
    later in the file than on the media clock, by ``delay`` seconds, in which the first frame is shown.
    """

    def __init__(self, width: int, height: int, rate: int, channels: int = 1):
        assert rate in AAC_RATES, f"fmp4: expected a rate of AAC, {AAC_RATES}, got {rate}"
        self._out, self.rate, self.delay = _Pipe(), rate, PRIMING / rate
        # A fragment ends behind a frame (microseconds). With frag_every_frame, frames would have wrong durations. And
        # no packet is held back until one of the other track has come: that would be a quarter of a second.
        options = {"movflags": "empty_moov+default_base_moof", "frag_duration": str(10**6 // FPS)}
        options |= {"flush_packets": "1", "max_interleave_delta": "1"}
        self._file = av.open(self._out, "w", format="mp4", container_options=options)
        quality = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23", "g": str(2 * FPS), "profile": "baseline"}
        self._video = self._file.add_stream("libx264", FPS, quality)
        codec = self._video.codec_context
        (codec.width, codec.height), codec.pix_fmt = (width, height), "yuv420p"
        codec.time_base = Fraction(1, av_frames.CLOCK)
        codec.thread_count = 1
        codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = 1  # BT.709
        self._audio = self._file.add_stream("aac", rate, layout="stereo" if channels == 2 else "mono")
        self._file.start_encoding()

    @property
    def mime(self) -> str:
        """What ``MediaSource.addSourceBuffer`` wants to know."""
        header = bytes(self._video.codec_context.extradata or b"")
        at = header.find(b"\x67")  # the sequence parameter set, which names profile and level
        return f'video/mp4; codecs="avc1.{header[at + 1 : at + 4].hex()},mp4a.40.2"'

    def add(self, shown: Shown) -> bytes:
        frame = av_frames.video_frame(shown.picture, shown.index)
        if shown.index:
            frame.pts = shown.index * (av_frames.CLOCK // FPS) + round(self.delay * av_frames.CLOCK)
        self._file.mux(self._video.encode(frame))
        sound = av_frames.sound_frame(shown.sound, self.rate, shown.first + PRIMING)
        self._file.mux(self._audio.encode(sound))
        return self._out.take()

    def close(self) -> bytes:
        """The end of the file."""
        for stream in (self._video, self._audio):
            self._file.mux(stream.encode(None))
        self._file.close()
        return self._out.take()


class _Pipe:
    """What a muxer writes to; it cannot go back."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        found, self._written = bytes(self._written), bytearray()
        return found
