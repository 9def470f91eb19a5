"""Video in and out, and the samples of live pushes; the functions for sound files and pictures are imported here, too.

Pictures are uint8 ``[H, W, 3]`` RGB, sound is float32 in -1..1; anything else is refused.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager
from fractions import Fraction
from numbers import Real
from typing import Any

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from rest_fast.media import downmix, provenance
from rest_fast.media.containers import choose, open_container
from rest_fast.media.pictures import BACKDROP, MAX_PIXELS, MIN_SIDE, load_image, square_crop
from rest_fast.media.sound_files import MAX_PEAK, MAX_SAMPLES, MAX_SECONDS, SOUND_RATES, Audio, join, load_audio
from rest_fast.media.sources import (
    Array,
    Float32,
    MediaError,
    Source,
    UInt8,
    as_array,
    as_uint8,
    is_empty,
    media_error,
    number,
    open_source,
    source_name,
)

__all__ = [
    "BACKDROP",
    "MAX_PIXELS",
    "MAX_SAMPLES",
    "MAX_SECONDS",
    "MIN_SIDE",
    "Audio",
    "MediaError",
    "VideoWriter",
    "check_pcm",
    "load_audio",
    "load_image",
    "own_pcm",
    "read_video",
    "resample",
    "square_crop",
]

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
PRESETS = "ultrafast, superfast, veryfast, faster, fast, medium, slow, slower, veryslow, placebo"
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov"}


def _samples(name: str, value: Any, least: int, most: int) -> NDArray[Any]:
    """int16 or float samples ``[n]`` or ``[n, least..most]``, checked, as ``[n, channels]`` of their own dtype."""
    pcm = as_array(name, value)
    if pcm.dtype not in (np.int16, np.float32, np.float64):
        raise media_error(name, "int16, float32 or float64 samples", pcm.dtype)
    pcm = pcm[:, None] if pcm.ndim == 1 else pcm
    if pcm.ndim != 2 or not least <= pcm.shape[1] <= most:
        raise media_error(name, f"samples [n, {least}..{most} channels]", f"shape {list(pcm.shape)}")
    if pcm.dtype != np.int16 and pcm.size:
        peak = max(pcm.max(), -pcm.min())
        if not peak <= MAX_PEAK:  # NaN too
            raise media_error(name, "finite floats in -1..1", f"a peak of {peak:g} (unscaled integers?)")
    return pcm


def _floats(name: str, value: Any, least: int, most: int) -> Float32:
    """:func:`_samples` as float32 ``[n, channels]``; int16 is divided by 32768."""
    pcm = _samples(name, value, least, most)
    return pcm.astype(np.float32) / np.float32(32768) if pcm.dtype == np.int16 else pcm.astype(np.float32)


def own_pcm(pcm: Array) -> NDArray[Any]:
    """The samples of a live push, checked like :func:`check_pcm`, as a copy in their own shape and dtype."""
    _samples("pcm", pcm, 1, 8)
    return np.array(as_array("pcm", pcm))


def stereo_pcm(pcm: Array, channels: int | None = None) -> Float32:
    """Like :func:`check_pcm`, but two or more channels become two: float32 ``[n, 1 or 2]``."""
    return downmix.to_stereo(_floats("pcm", pcm, channels or 1, channels or 8))


def check_pcm(pcm: Array, channels: int | None = None) -> Float32:
    """The samples of a live push, checked, as float32 mono ``[n]`` (:mod:`rest_fast.media.downmix`).

    ``pcm`` is int16 (divided by 32768) or float32 or float64 (unchanged), ``[n]`` or ``[n, channels]``, and may be
    empty. ``channels`` is the required number; ``None`` allows 1..8.
    Raises: MediaError for another dtype or shape, NaN or infinity, and floats beyond :data:`MAX_PEAK`.
    """
    return downmix.mono(stereo_pcm(pcm, channels))


def resample(samples: Float32, rate_in: int, rate_out: int) -> Float32:
    """Resample float32 ``[n]`` in one go (soxr HQ, aligned at sample 0); MediaError otherwise."""
    rates = [number("sample rate", rate, *SOUND_RATES) for rate in (rate_in, rate_out)]
    return np.asarray(soxr.resample(_floats("samples", samples, 1, 1)[:, 0], *rates, "HQ"))


def check_name(path: str | os.PathLike[str]) -> str:
    """The ending of a video's name, in small letters. Raises: MediaError for one that no video is written to."""
    ending = os.path.splitext(path)[1]
    if ending.lower() not in CONTAINERS:
        raise media_error(source_name("video", path), f"a name that ends in {', '.join(CONTAINERS)}", repr(ending))
    return ending.lower()


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Write H.264 and AAC into a fragmented MP4, piece by piece: ``with VideoWriter(...) as w``.

    The file grows by fragments of 0.2 s. If a process is killed and pictures and sound were written together, its file
    plays up to about half a second before the end. Both begin at time 0, and each write continues them; ``frames`` and
    ``samples`` (per channel) count them. Sound is resampled to ``audio_rate``, the AAC rate nearest to ``sample_rate``
    (``None`` without sound).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        fps: float | Fraction = 25,
        sample_rate: int | None = None,
        channels: int = 1,
        crf: float = 18,
        preset: str = "veryfast",
        source_type: str | None = None,
    ) -> None:
        """Check everything, then create the file at ``path`` (.mp4, .m4v or .mov) or empty it.

        ``width`` and ``height`` in pixels, even; ``fps`` 1..240; ``sample_rate`` of the sound in Hz, ``None`` for a
        silent video; ``channels`` 1 or 2; ``crf`` 0 (lossless) .. 51, ``preset`` of x264; ``source_type``: see
        :mod:`rest_fast.media.provenance`, None for video that is not generated. Raises: MediaError for anything else.
        """
        name, ending = source_name("video", path), check_name(path)
        size = number("width", width, 2, 16384), number("height", height, 2, 16384)
        if width % 2 or height % 2:
            raise media_error(name, "an even width and height (H.264 4:2:0)", f"{width} x {height}")
        self._fps = Fraction(number("fps", fps, 1, 240, Real)).limit_denominator(1001)
        if preset not in PRESETS.split(", "):
            raise media_error("preset", f"one of {PRESETS}", repr(preset))
        quality = {"crf": str(number("crf", crf, 0, 51, Real)), "preset": preset}
        self._channels = number("channels", channels, 1, 2)
        self._layout = "stereo" if channels == 2 else "mono"
        self.audio_rate: int | None = None
        self._resampler: soxr.ResampleStream | None = None
        if sample_rate is not None:
            rate = number("sample_rate", sample_rate, *SOUND_RATES)
            self.audio_rate = min(AAC_RATES, key=lambda known: abs(known - rate))
            if self.audio_rate != rate:
                self._resampler = soxr.ResampleStream(rate, self.audio_rate, self._channels)
        self.frames, self.samples, self._encoded, self._closed = 0, 0, 0, False
        self._path, self._source_type = os.path.abspath(path), source_type
        try:
            self._start(self._path, CONTAINERS[ending], size, quality)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise media_error(name, "a file that can be written", error) from error

    def _start(self, path: str, form: str, size: tuple[int, int], quality: dict[str, str]) -> None:
        # delay_moov: the header waits for the first packets and so can hold the edit list that
        # hides the AAC encoder's 1024 samples of priming. With empty_moov the sound comes late.
        flags = "frag_keyframe+delay_moov+default_base_moof"
        mux = {"movflags": flags, "flush_packets": "1", "frag_duration": "200000"}  # microseconds
        self._file = av.open(path, "w", format=form, container_options=mux)
        if self._source_type is not None:
            self._file.metadata["comment"] = provenance.NOTE
        # No B frames, no frame threads, a look-ahead of 0.2 s: so much a killed process loses.
        # No look-ahead at all (zerolatency) would more than double the file.
        delay = f"rc-lookahead={math.ceil(self._fps / 5)}:sync-lookahead=0"
        # One thread, and no algorithm for one processor alone: the same pictures give the same bytes. x264 would cut a
        # picture into as many slices as there are cores, and even two of them do not always come out alike.
        alike = "threads=1:lookahead-threads=1:cpu-independent=1"
        options = {**quality, "g": str(int(self._fps)), "bf": "0", "x264-params": f"{delay}:{alike}"}
        self._video = self._file.add_stream("libx264", self._fps, options)
        codec = self._video.codec_context
        (codec.width, codec.height), codec.pix_fmt = size, "yuv420p"
        codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = 1  # BT.709
        if self.audio_rate:
            self._audio = self._file.add_stream("aac", self.audio_rate, layout=self._layout)
        self._file.start_encoding()  # opens the encoders, then creates the file

    def write(self, frames: Array, audio: Array | None = None) -> None:
        """Append ``frames`` uint8 ``[n, H, W, 3]`` and sound that continues that of the last write.

        ``audio``: ``[m]`` or ``[m, channels]``, int16 or float in -1..1; one channel is copied to two. Both may be
        empty. Raises: MediaError, before anything is written, for anything else and for a closed writer.
        """
        if self._closed:
            raise media_error("VideoWriter.write", "an open writer", "a closed one")
        pixels = as_uint8("frames", frames, "n", self._video.height, self._video.width, 3)
        if audio is not None and self.audio_rate is None:
            raise media_error("audio", "none (the writer has no sample_rate)", "samples")
        sound = _floats("audio", np.zeros(0, "f4") if audio is None else audio, 1, self._channels)
        for picture in pixels:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame = rgb.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = self.frames, 1 / self._fps
            self._file.mux(self._video.encode(frame))
            self.frames += 1
        self._encode_sound(sound)
        self.samples += len(sound)

    def _encode_sound(self, sound: Float32, last: bool = False) -> None:
        sound = np.ascontiguousarray(np.broadcast_to(sound, (len(sound), self._channels)))
        if self._resampler:
            sound = self._resampler.resample_chunk(sound, last=last)
        if self.audio_rate and len(sound):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), "fltp", self._layout)
            frame.sample_rate, frame.pts = self.audio_rate, self._encoded
            frame.time_base = Fraction(1, self.audio_rate)
            self._file.mux(self._audio.encode(frame))
            self._encoded += len(sound)

    def close(self) -> None:
        """Write what the encoders still hold and finish the file; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._file.mux(self._video.encode(None))
            if self.audio_rate:
                self._encode_sound(np.zeros((0, 1), np.float32), last=True)
                self._file.mux(self._audio.encode(None))
        finally:
            self._file.close()
        if self._source_type is not None:
            provenance.append(self._path, self._source_type)

    def __exit__(self, *_: object) -> None:
        self.close()


def read_video(source: Source, max_frames: int | None = None) -> tuple[UInt8, float]:
    """The video stream that players take, or its first ``max_frames`` pictures, and its frames per second.

    Returns: uint8 ``[n, H, W, 3]``. Raises: MediaError if there is no such file, no picture, or an error part way.
    """
    limit = math.inf if max_frames is None else number("max_frames", max_frames, 1, 2**31)
    name, pictures, rate = source_name("video", source), list[UInt8](), Fraction(1)
    try:
        with open_source("video", source) as file:
            if is_empty(file):  # which FFmpeg calls an invalid argument
                raise media_error(name, "a file with video in it", "an empty file")
            with open_container(file) as container:
                stream = choose(container, "video")
                if stream is None:
                    raise media_error(name, "a file with video in it", "no video stream")
                rate = Fraction(stream.average_rate or 1)
                for frame in container.decode(stream):
                    pictures.append(frame.to_ndarray(format="rgb24")[None])
                    if len(pictures) >= limit:
                        break
        if not pictures:
            raise media_error(name, "some video", "an empty stream")
        return join(pictures), float(rate)
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        where = f"after {float(len(pictures) / rate):.2f} s"
        raise media_error(name, "video that FFmpeg can read to its end", error, where) from error
