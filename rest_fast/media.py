"""All decoding and encoding of sound and video; the pictures of :mod:`rest_fast.pictures` under the same name.

Pictures are uint8 ``[H, W, 3]`` RGB, sound is float32 in -1..1; what does not fit is refused.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import IO, Any

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from rest_fast.pictures import BACKDROP, MAX_PIXELS, MIN_SIDE, load_image, square_crop
from rest_fast.sources import (
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

MAX_SECONDS = 7200  # of a file of sound: two hours
MAX_SAMPLES = 1 << 30  # of all channels together: 4 GiB as float32
MAX_PEAK = 8.0  # floats beyond this are integers in disguise, not a loud voice
SOUND_RATES = (1000, 768_000)  # Hz, lowest and highest
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
PRESETS = "ultrafast, superfast, veryfast, faster, fast, medium, slow, slower, veryslow, placebo"
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov"}


@dataclass(frozen=True, eq=False)
class Audio:
    """Decoded sound: ``samples`` float32 ``[n, channels]`` in -1..1 at ``rate`` Hz."""

    samples: Float32
    rate: int

    @property
    def mono(self) -> Float32:
        """The mean of the channels, float32 ``[n]``."""
        return np.asarray(self.samples.mean(axis=1, dtype=np.float32))

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate


def _decode(
    kind: str, source: Source, convert: Callable[[Any], list[NDArray[Any]]], limit: float = math.inf
) -> tuple[NDArray[Any], Fraction]:
    """The first audio or video stream, converted frame by frame and joined, and its rate."""
    name, blocks, rate = source_name(kind, source), list[NDArray[Any]](), Fraction(1)
    # Playlists and concat scripts name other files and addresses; none of them may be opened.
    safe: dict[str, Any] = {"options": {"protocol_whitelist": "pipe"}, "metadata_errors": "ignore"}
    try:
        with open_source(kind, source) as file:
            if is_empty(file):  # which FFmpeg calls an invalid argument
                raise media_error(name, f"a file with {kind} in it", "an empty file")
            if kind == "audio":
                _check_wav(name, file)
            with av.open(file, "r", **safe) as container:
                stream = next((s for s in container.streams if s.type == kind), None)
                if stream is None:
                    raise media_error(name, f"a file with {kind} in it", f"no {kind} stream")
                if kind == "audio":
                    _check_length(name, _promised(container, stream))
                for frame in container.decode(stream):
                    # Not the audio stream's own rate: that is halved for some kinds of AAC.
                    rate = Fraction(getattr(frame, "sample_rate", None) or stream.average_rate or 1)
                    blocks += convert(frame)
                    if len(blocks) >= limit:
                        break
        if not sum(map(len, blocks)):
            raise media_error(name, f"some {kind}", "an empty stream")
        return _join(blocks), rate
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        where = f"after {float(sum(map(len, blocks)) / rate):.2f} s"
        raise media_error(name, f"{kind} that FFmpeg can read to its end", error, where) from error


def _join(blocks: list[NDArray[Any]]) -> NDArray[Any]:
    """The blocks as one array; the list is emptied on the way, so that the memory is not needed twice."""
    if len({block.shape[1:] for block in blocks}) > 1:
        raise ValueError("channels or picture size change part way")
    at = sum(map(len, blocks))
    whole = np.empty((at, *blocks[0].shape[1:]), blocks[0].dtype)
    while blocks:
        block = blocks.pop()
        at -= len(block)
        whole[at : at + len(block)] = block
    return whole


def _check_length(name: str, seconds: float, values: int = 0, more: str = "") -> None:
    if seconds > MAX_SECONDS:
        raise media_error(name, f"at most {MAX_SECONDS} s of sound", f"{more} {seconds:.2f} s")
    if values > MAX_SAMPLES:
        raise media_error(name, f"at most {MAX_SAMPLES} samples, all channels together", f"{more} {values}")


def _promised(container: Any, stream: Any) -> float:
    """Seconds of sound by the header; 0 where it says nothing or FFmpeg would guess from the first frames."""
    if container.format.name in ("mp3", "aac", "wav"):  # what WAV promises is read by _check_wav
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _check_wav(name: str, file: IO[bytes]) -> None:
    """MediaError for a WAV that ends before its header says (FFmpeg plays what is there) or lasts too long.

    Sizes of 0 and of nearly 2 or 4 GiB are those of a stream whose writer could not know the end. A lack of up to
    10 ms passes: headers exist that count a few bytes too many.
    """
    if not (hasattr(file, "seekable") and file.seekable()):
        return
    start, rate = file.tell(), 0
    try:
        end = file.seek(0, os.SEEK_END)
        file.seek(start)
        head = file.read(12)
        is_wav = head[:4] == b"RIFF" and head[8:] == b"WAVE"
        for _ in range(100 * is_wav):  # chunks; a bound, since a file may consist of empty ones
            if len(chunk := file.read(8)) < 8:
                return
            size, at = int.from_bytes(chunk[4:], "little"), file.tell()
            if chunk[:4] == b"fmt " and size >= 16:
                rate = int.from_bytes(file.read(12)[8:], "little")  # bytes a second
            if chunk[:4] == b"data" and rate:
                held, promised = (end - at) / rate, size / rate
                if 0 < size < 0x7FFFF000 and held < promised - 0.01:
                    there = f"the header promises {promised:.2f} s, the file holds {held:.2f} s"
                    raise media_error(name, "a whole WAV", f"truncated: {there}")
                return _check_length(name, min(held, promised or held))
            file.seek(at + size + size % 2)
    finally:
        file.seek(start)


def load_audio(source: Source) -> Audio:
    """Read sound from a path, a binary file or bytes: any codec, also the sound of a video.

    Takes the first audio stream from its first sample on, with its own rate and channels. Integers are scaled to -1..1;
    WAV and FLAC come out sample by sample. At most :data:`MAX_SECONDS` and :data:`MAX_SAMPLES`, which bound the memory:
    more is refused by the header where it says so, else as soon as it has been decoded. MediaError: no such file, no
    sound or no samples in it, NaN or infinity, too much, an error part way (it says how many seconds were read), a WAV
    that ends before its header says; a cut MP3, Ogg or Matroska file counts as a shorter one where FFmpeg does.
    """
    name, count = source_name("audio", source), 0
    packed = av.AudioResampler(format="flt")  # not planar: PyAV crashes over 8 planes

    def convert(frame: Any) -> list[NDArray[Any]]:
        nonlocal count
        blocks = [b.to_ndarray().reshape(-1, b.layout.nb_channels) for b in packed.resample(frame)]
        for block in blocks:
            if not np.isfinite(block).all():
                raise media_error(name, "finite samples", "NaN or infinity")
            count += len(block)
            _check_length(name, count / frame.sample_rate, count * block.shape[1], "more, stopped at")
        return blocks

    samples, rate = _decode("audio", source, convert)
    return Audio(samples, int(rate))


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


def check_pcm(pcm: Array, channels: int | None = None) -> Float32:
    """The samples of a live push, checked, as float32 mono ``[n]``: the mean of the channels.

    ``pcm`` is int16 (divided by 32768) or float32 or float64 (as it is), ``[n]`` or
    ``[n, channels]``, and may be empty. ``channels`` is the number agreed on, ``None`` takes 1..8.
    MediaError: another dtype or shape, NaN or infinity, floats beyond :data:`MAX_PEAK`.
    """
    return np.asarray(_floats("pcm", pcm, channels or 1, channels or 8).mean(1, dtype=np.float32))


def resample(samples: Float32, rate_in: int, rate_out: int) -> Float32:
    """Resample float32 ``[n]`` in one go (soxr HQ, aligned at sample 0); MediaError otherwise."""
    rates = [number("sample rate", rate, *SOUND_RATES) for rate in (rate_in, rate_out)]
    return np.asarray(soxr.resample(_floats("samples", samples, 1, 1)[:, 0], *rates, "HQ"))


class VideoWriter(AbstractContextManager["VideoWriter"]):
    """Write H.264 and AAC into a fragmented MP4, piece by piece: ``with VideoWriter(...) as w``.

    The file grows by fragments of 0.2 s: what a killed process leaves behind plays up to about half a second before its
    end, if pictures and sound come along together. Both start at time 0 and go on from their own end; ``frames`` and
    ``samples`` (per channel) count them. ``audio_rate`` is the AAC rate nearest to ``sample_rate``, which sound is
    resampled to; ``None`` without sound.
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
    ) -> None:
        """Check everything, then create the file at ``path`` (.mp4, .m4v or .mov) or empty it.

        ``width`` and ``height`` in pixels, even; ``fps`` 1..240; ``sample_rate`` of the sound in Hz, ``None`` for a
        silent video; ``channels`` 1 or 2; ``crf`` 0 (lossless) .. 51, ``preset`` of x264. MediaError: anything else.
        """
        name, ending = source_name("video", path), os.path.splitext(path)[1]
        if ending.lower() not in CONTAINERS:
            raise media_error(name, f"a name that ends in {', '.join(CONTAINERS)}", repr(ending))
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
        try:
            self._start(os.path.abspath(path), CONTAINERS[ending.lower()], size, quality)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise media_error(name, "a file that can be written", error) from error

    def _start(self, path: str, form: str, size: tuple[int, int], quality: dict[str, str]) -> None:
        # delay_moov: the header waits for the first packets and so can hold the edit list that
        # hides the AAC encoder's 1024 samples of priming. With empty_moov the sound comes late.
        flags = "frag_keyframe+delay_moov+default_base_moof"
        mux = {"movflags": flags, "flush_packets": "1", "frag_duration": "200000"}  # microseconds
        self._file = av.open(path, "w", format=form, container_options=mux)
        # No B frames, no frame threads, a look-ahead of 0.2 s: so much a killed process loses.
        # No look-ahead at all (zerolatency) would more than double the file.
        delay = f"rc-lookahead={math.ceil(self._fps / 5)}:sync-lookahead=0:sliced-threads=1"
        options = {**quality, "g": str(int(self._fps)), "bf": "0", "x264-params": delay}
        self._video = self._file.add_stream("libx264", self._fps, options)
        codec = self._video.codec_context
        (codec.width, codec.height), codec.pix_fmt = size, "yuv420p"
        codec.colorspace = codec.color_primaries = codec.color_trc = codec.color_range = 1  # BT.709
        if self.audio_rate:
            self._audio = self._file.add_stream("aac", self.audio_rate, layout=self._layout)
        self._file.start_encoding()  # opens the encoders, then creates the file

    def write(self, frames: Array, audio: Array | None = None) -> None:
        """Append ``frames`` uint8 ``[n, H, W, 3]`` and the sound that goes on from the last write.

        ``audio``: ``[m]`` or ``[m, channels]``, int16 or float in -1..1; one channel is copied to
        two. Both may be empty. MediaError, with nothing written: anything else, a closed writer.
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

    def __exit__(self, *_: object) -> None:
        self.close()


def read_video(source: Source, max_frames: int | None = None) -> tuple[UInt8, float]:
    """The first video stream, or its first ``max_frames`` pictures, and its frames per second.

    Returns uint8 ``[n, H, W, 3]``. MediaError: no such file, no pictures, an error part way.
    """
    limit = math.inf if max_frames is None else number("max_frames", max_frames, 1, 2**31)
    pictures, rate = _decode("video", source, lambda f: [f.to_ndarray(format="rgb24")[None]], limit)
    return pictures, float(rate)
