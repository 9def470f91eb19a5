"""All decoding and encoding of pictures, sound and video.

Pictures are uint8 ``[H, W, 3]`` RGB, sound is float32 in -1..1; what does not fit is refused.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import IO, Any, TypeAlias

import av
import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Array: TypeAlias = NDArray[Any] | torch.Tensor
Source = str | os.PathLike[str] | bytes | IO[bytes]  # a path, a file's content, an open file

MIN_SIDE, MAX_PIXELS = 16, 40_000_000  # of a picture
BACKDROP = (192, 192, 192)  # light grey: shows through the transparent parts of a picture
MAX_PEAK = 8.0  # floats beyond this are integers in disguise, not a loud voice
SOUND_RATES = (1000, 768_000)  # Hz, lowest and highest
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
PRESETS = "ultrafast, superfast, veryfast, faster, fast, medium, slow, slower, veryslow, placebo"
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov"}
TENSORS = (torch.uint8, torch.int16, torch.float32, torch.float64)


class MediaError(ValueError):
    """A picture, sound or video that cannot be used: names it, what was expected and what came."""


def _error(name: str, expected: str, got: object, where: str = "") -> MediaError:
    if isinstance(got, Exception):
        got = getattr(got, "strerror", None) or f"{type(got).__name__}: {got}"
    return MediaError(" ".join(f"{name}: expected {expected}, got {got} {where}".split()))


def _name(kind: str, source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return f"{kind} {os.fspath(source)!r}"
    return f"{kind} <{getattr(source, 'name', type(source).__name__)}>"


def _number(name: str, value: Any, low: int, high: int, kind: Any = Integral) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        noun = "a whole number" if kind is Integral else "a number"
        raise _error(name, f"{noun} in {low}..{high}", repr(value))
    return int(value) if kind is Integral else float(value)


def _array(name: str, value: Any) -> NDArray[Any]:
    """An array, or a tensor on any device, as an array."""
    if isinstance(value, torch.Tensor) and value.dtype in TENSORS:
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        got = f"{type(value).__name__} {getattr(value, 'dtype', '')}"
        raise _error(name, "an array, or a tensor of uint8, int16, float32 or float64", got)
    return value


def _open(kind: str, source: Source) -> AbstractContextManager[IO[bytes]]:
    """``source`` as a binary file for a ``with``, which leaves a caller's own file open."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            return open(source, "rb")
        except (OSError, ValueError) as error:
            raise _error(_name(kind, source), "a readable file", error) from error
    if isinstance(source, io.TextIOBase) or not hasattr(source, "read"):
        raise _error(kind, "a path, a binary file or bytes", type(source).__name__)
    return nullcontext(source)


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        limits = f"at least {MIN_SIDE} px a side and at most {MAX_PIXELS // 10**6} megapixels"
        raise _error(name, limits, f"{width} x {height} px")


def _uint8(name: str, value: Any, *shape: int | str) -> UInt8:
    """``value`` as an array, which is uint8 of this ``shape``; a letter stands for any size."""
    pixels = _array(name, value)
    sizes = zip(shape, pixels.shape, strict=False)
    fits = pixels.ndim == len(shape) and all(isinstance(s, str) or s == n for s, n in sizes)
    if pixels.dtype != np.uint8 or not fits:
        raise _error(name, f"uint8 [{', '.join(map(str, shape))}]", f"{pixels.dtype} {list(pixels.shape)}")
    return pixels


def _to_rgb(name: str, picture: Image.Image) -> UInt8:
    _check_size(name, *picture.size)  # from the header: nothing is decoded yet
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)  # 16-bit grey, which Pillow's own conversion would clip
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise _error(name, "samples of 8 or 16 bits", f"{values.min():g}..{values.max():g}")
        picture = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, BACKDROP), picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def load_image(source: Source | NDArray[Any] | Image.Image) -> UInt8:
    """Read a picture (path, binary file, bytes, PIL image, uint8 array) as uint8 ``[H, W, 3]``.

    Grey, palette, CMYK and 16-bit pictures (scaled) become RGB; the EXIF rotation is applied, transparency is laid over
    :data:`BACKDROP`, an animation gives its first picture. MediaError: no such file, no picture, cut off, another kind
    of array, or (seen before decoding) under :data:`MIN_SIDE` or over :data:`MAX_PIXELS`.
    """
    name = _name("image", source)
    if isinstance(source, np.ndarray):
        pixels = _uint8(name, source, "H", "W", 3)
        _check_size(name, pixels.shape[1], pixels.shape[0])
        return pixels.copy()
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(name, source)
        with _open("image", source) as file, Image.open(file) as picture:
            return _to_rgb(name, picture)
    except MediaError:
        raise
    except Exception as error:  # on a broken file Pillow's readers raise nearly anything
        got = "an unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise _error(name, "a picture that Pillow can read", got) from error


def _square(box: Sequence[float] | None, width: int, height: int) -> tuple[int, int, int, int]:
    """``box`` in whole pixels and exactly square, within 1 px of what was asked."""
    if box is None:
        side = min(width, height)
        box = (width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2
    try:
        x0, y0, x1, y1 = (float(edge) for edge in box)
    except (TypeError, ValueError):
        raise _error("crop box", "(left, top, right, bottom) in pixels", repr(box)) from None
    inside = 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    if not inside or abs((x1 - x0) - (y1 - y0)) > 1:
        raise _error("crop box", f"a square (within 1 px) inside {width} x {height} px", repr(box))
    side = max(1, min(round((x1 - x0 + y1 - y0) / 2), width, height))
    left, top = min(round(x0), width - side), min(round(y0), height - side)
    return left, top, left + side, top + side


def square_crop(
    image: UInt8, box: Sequence[float] | None = None, size: int = 512
) -> tuple[UInt8, tuple[int, int, int, int]]:
    """Cut a square out of uint8 ``[H, W, 3]`` and scale it (Lanczos) to ``[size, size, 3]``.

    ``box`` is ``(left, top, right, bottom)`` in pixels, right and bottom exclusive; ``None`` takes the largest centred
    square. The box returned is the one used: whole pixels, exactly square. MediaError: another kind of image or box.
    """
    pixels = _uint8("image", image, "H", "W", 3)
    side, used = _number("crop size", size, 1, 16384), _square(box, pixels.shape[1], pixels.shape[0])
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(picture.resize((side, side), Image.Resampling.LANCZOS, box=used)), used


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
    name, blocks, rate = _name(kind, source), list[NDArray[Any]](), Fraction(1)
    # Playlists and concat scripts name other files and addresses; none of them may be opened.
    only_this = {"protocol_whitelist": "pipe"}
    try:
        with _open(kind, source) as file, av.open(file, "r", options=only_this, metadata_errors="ignore") as container:
            stream = next((s for s in container.streams if s.type == kind), None)
            if stream is None:
                raise _error(name, f"a file with {kind} in it", f"no {kind} stream")
            for frame in container.decode(stream):
                # Not the audio stream's own rate: that is halved for some kinds of AAC.
                rate = Fraction(getattr(frame, "sample_rate", None) or stream.average_rate or 1)
                blocks += convert(frame)
                if len(blocks) >= limit:
                    break
        if not sum(map(len, blocks)):
            raise _error(name, f"some {kind}", "an empty stream")
        return np.concatenate(blocks), rate
    except MediaError:
        raise
    except (av.FFmpegError, ValueError) as error:
        where = f"after {float(sum(map(len, blocks)) / rate):.2f} s"
        raise _error(name, f"{kind} that FFmpeg can read to its end", error, where) from error


def load_audio(source: Source) -> Audio:
    """Read sound from a path, a binary file or bytes: any codec, also the sound of a video.

    Takes the first audio stream from its first sample on, with its own rate and channels. Integers
    are scaled to -1..1; WAV and FLAC come out sample by sample. MediaError: no such file, no sound
    or no samples in it, NaN or infinity, an error part way (it says how many seconds were read).
    """
    packed = av.AudioResampler(format="flt")  # not planar: PyAV crashes over 8 planes
    samples, rate = _decode(
        "audio", source, lambda f: [b.to_ndarray().reshape(-1, b.layout.nb_channels) for b in packed.resample(f)]
    )
    if not np.isfinite(samples).all():
        raise _error(_name("audio", source), "finite samples", "NaN or infinity")
    return Audio(samples, int(rate))


def _samples(name: str, value: Any, least: int, most: int) -> NDArray[Any]:
    """int16 or float samples ``[n]`` or ``[n, least..most]``, checked, as ``[n, channels]`` of their own dtype."""
    pcm = _array(name, value)
    if pcm.dtype not in (np.int16, np.float32, np.float64):
        raise _error(name, "int16, float32 or float64 samples", pcm.dtype)
    pcm = pcm[:, None] if pcm.ndim == 1 else pcm
    if pcm.ndim != 2 or not least <= pcm.shape[1] <= most:
        raise _error(name, f"samples [n, {least}..{most} channels]", f"shape {list(pcm.shape)}")
    if pcm.dtype != np.int16 and pcm.size:
        peak = max(pcm.max(), -pcm.min())
        if not peak <= MAX_PEAK:  # NaN too
            raise _error(name, "finite floats in -1..1", f"a peak of {peak:g} (unscaled integers?)")
    return pcm


def _floats(name: str, value: Any, least: int, most: int) -> Float32:
    """:func:`_samples` as float32 ``[n, channels]``; int16 is divided by 32768."""
    pcm = _samples(name, value, least, most)
    return pcm.astype(np.float32) / np.float32(32768) if pcm.dtype == np.int16 else pcm.astype(np.float32)


def own_pcm(pcm: Array) -> NDArray[Any]:
    """The samples of a live push, checked like :func:`check_pcm`, as a copy in their own shape and dtype."""
    _samples("pcm", pcm, 1, 8)
    return np.array(_array("pcm", pcm))


def check_pcm(pcm: Array, channels: int | None = None) -> Float32:
    """The samples of a live push, checked, as float32 mono ``[n]``: the mean of the channels.

    ``pcm`` is int16 (divided by 32768) or float32 or float64 (as it is), ``[n]`` or
    ``[n, channels]``, and may be empty. ``channels`` is the number agreed on, ``None`` takes 1..8.
    MediaError: another dtype or shape, NaN or infinity, floats beyond :data:`MAX_PEAK`.
    """
    return np.asarray(_floats("pcm", pcm, channels or 1, channels or 8).mean(1, dtype=np.float32))


def resample(samples: Float32, rate_in: int, rate_out: int) -> Float32:
    """Resample float32 ``[n]`` in one go (soxr HQ, aligned at sample 0); MediaError otherwise."""
    rates = [_number("sample rate", rate, *SOUND_RATES) for rate in (rate_in, rate_out)]
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
        name, ending = _name("video", path), os.path.splitext(path)[1]
        if ending.lower() not in CONTAINERS:
            raise _error(name, f"a name that ends in {', '.join(CONTAINERS)}", repr(ending))
        size = _number("width", width, 2, 16384), _number("height", height, 2, 16384)
        if width % 2 or height % 2:
            raise _error(name, "an even width and height (H.264 4:2:0)", f"{width} x {height}")
        self._fps = Fraction(_number("fps", fps, 1, 240, Real)).limit_denominator(1001)
        if preset not in PRESETS.split(", "):
            raise _error("preset", f"one of {PRESETS}", repr(preset))
        quality = {"crf": str(_number("crf", crf, 0, 51, Real)), "preset": preset}
        self._channels = _number("channels", channels, 1, 2)
        self._layout = "stereo" if channels == 2 else "mono"
        self.audio_rate: int | None = None
        self._resampler: soxr.ResampleStream | None = None
        if sample_rate is not None:
            rate = _number("sample_rate", sample_rate, *SOUND_RATES)
            self.audio_rate = min(AAC_RATES, key=lambda known: abs(known - rate))
            if self.audio_rate != rate:
                self._resampler = soxr.ResampleStream(rate, self.audio_rate, self._channels)
        self.frames, self.samples, self._encoded, self._closed = 0, 0, 0, False
        try:
            self._start(os.path.abspath(path), CONTAINERS[ending.lower()], size, quality)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _error(name, "a file that can be written", error) from error

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
            raise _error("VideoWriter.write", "an open writer", "a closed one")
        pixels = _uint8("frames", frames, "n", self._video.height, self._video.width, 3)
        if audio is not None and self.audio_rate is None:
            raise _error("audio", "none (the writer has no sample_rate)", "samples")
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
    limit = math.inf if max_frames is None else _number("max_frames", max_frames, 1, 2**31)
    pictures, rate = _decode("video", source, lambda f: [f.to_ndarray(format="rgb24")[None]], limit)
    return pictures, float(rate)
