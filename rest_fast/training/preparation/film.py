"""One video file on one clock: pictures at 25 a second, sound at 16 kHz, both from the first picture's time on.

Frame k is at k / 25 s. It is the picture with the nearest timestamp, or the earlier one of two equally near; the last
picture lasts as long as the median one. Sound position p is at p / 16000 s. So frame k covers [640 k, 640 (k + 1)),
whatever the rates and starts of the two streams.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from rest_fast.media import downmix
from rest_fast.media.containers import choose, open_container
from rest_fast.media.sound_files import MAX_SECONDS, SOUND_RATES
from rest_fast.media.sources import Float32, UInt8, is_empty
from rest_fast.training.preparation.rules import SAMPLE, Dropped
from rest_fast.units import FPS, RATE

LOOSE = Fraction(1, 50)  # s by which timestamps of sound may be off its samples; beyond, sound is missing or repeated
THUMB = 32  # px: side of the small pictures that are compared to find cuts


@dataclass
class Sound:
    """Mono samples at 16 kHz of which the first has position ``first`` (negative: before the first picture)."""

    samples: Float32
    first: int

    def window(self, a: int, b: int) -> Float32:
        """float32 [b - a]: positions a..b, zeros where there is no sound."""
        low = min(max(a, self.first), b)
        high = max(min(b, self.first + len(self.samples)), low)
        piece = self.samples[low - self.first : high - self.first]
        return np.pad(piece, (low - a, b - high))

    def covered(self, a: int, b: int) -> float:
        """Share of the positions a..b that the track has."""
        return max(0, min(b, self.first + len(self.samples)) - max(a, self.first)) / (b - a)


class _SoundTrack:
    """Joins decoded sound by its timestamps, mixes it to mono and resamples it, piece by piece."""

    def __init__(self) -> None:
        self.start = Fraction(0)  # s, of the first sample
        self._rate = self._count = 0
        self._recent = np.zeros((0, 2), np.float32)  # the last samples in two channels, as far as the mix needs them
        self._pieces: list[Float32] = []
        self._packed = av.AudioResampler(format="flt")  # not planar: PyAV crashes over 8 planes

    def add(self, frame: Any) -> None:
        if frame.pts is None:
            raise Dropped("unreadable", "expected sound with timestamps, got a piece without")
        time = frame.pts * Fraction(frame.time_base)
        if not self._rate:
            self.start, self._rate = time, frame.sample_rate
            if not SOUND_RATES[0] <= self._rate <= SOUND_RATES[1]:
                raise Dropped("unreadable", f"expected sound of {SOUND_RATES} Hz, got {self._rate} Hz")
            self._soxr = soxr.ResampleStream(self._rate, RATE, 1, quality="HQ")
        if frame.sample_rate != self._rate:
            raise Dropped("unreadable", f"expected one sample rate, got {self._rate} and {frame.sample_rate} Hz")
        late = time - self.start - Fraction(self._count, self._rate)
        if time - self.start > MAX_SECONDS:
            raise Dropped("unreadable", f"expected at most {MAX_SECONDS} s, got sound at {float(time):.0f} s")
        if late < -LOOSE:
            raise Dropped("unreadable", f"expected sound in order, got {-float(late):.3f} s twice at {float(time):.2f}")
        if late > LOOSE:
            self._push(np.zeros((round(late * self._rate), 2), np.float32))
        for block in self._packed.resample(frame):
            values = np.asarray(block.to_ndarray(), np.float32).reshape(-1, block.layout.nb_channels)
            self._push(downmix.to_stereo(values, [channel.name for channel in block.layout.channels]))

    def _push(self, sound: Float32, last: bool = False) -> None:
        if not np.isfinite(sound).all():
            raise Dropped("unreadable", "expected finite samples of sound, got NaN or infinity")
        start = self._count - len(self._recent)
        self._recent = np.concatenate([self._recent, np.broadcast_to(sound, (len(sound), 2))])
        mono = downmix.mono(self._recent, start, self._count)
        self._count += len(mono)
        self._recent = self._recent[-downmix.REACH :]
        self._pieces.append(self._soxr.resample_chunk(mono, last=last))

    def finish(self, origin: Fraction) -> Sound:
        """The whole track, with positions counted from ``origin`` seconds."""
        if not self._count:
            raise Dropped("no_sound", "expected a sound track, got one without samples")
        self._push(np.zeros((0, 2), np.float32), last=True)
        return Sound(np.concatenate(self._pieces), round((self.start - origin) * RATE))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """The container and its streams of video and sound, those that players take. Dropped: what cannot be read."""
    try:
        with open(path, "rb") as file:
            if is_empty(file):  # which FFmpeg calls an invalid argument
                raise Dropped("unreadable", "expected a video, got an empty file")
            with open_container(file) as container:
                video, audio = choose(container, "video"), choose(container, "audio")
                if video is None:
                    raise Dropped("no_video", f"expected a video stream, got {_kinds(container)}")
                if audio is None:
                    raise Dropped("no_sound", f"expected a sound stream, got {_kinds(container)}")
                video.codec_context.thread_count = 1  # several files are read at the same time
                yield container, video, audio
    except (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError) as error:
        got = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise Dropped("unreadable", f"expected a video that FFmpeg can read to its end, got {got}") from error


def _kinds(container: Any) -> str:
    return "streams of " + (", ".join(s.type for s in container.streams) or "nothing")


def pictures(
    decoded: Iterable[Any], sound: _SoundTrack | None = None, damaged: set[int] | None = None
) -> Iterator[Any]:
    """The pictures among decoded frames, checked for order; the other frames go to ``sound``.

    ``damaged`` collects the times of pictures that FFmpeg could only guess, and of those that depend on them.
    """
    before, guessed = None, False
    for frame in decoded:
        if isinstance(frame, av.AudioFrame):
            if sound is not None:
                sound.add(frame)
            continue
        if frame.pts is None:
            raise Dropped("unreadable", "expected pictures with timestamps, got one without")
        if before is not None and frame.pts < before.pts:
            raise Dropped("unreadable", f"expected pictures in order, got {frame.time:.2f} s after {before.time:.2f} s")
        if before is not None and (frame.width, frame.height) != (before.width, before.height):
            sizes = f"{before.width} x {before.height} and {frame.width} x {frame.height}"
            raise Dropped("unreadable", f"expected pictures of one size, got {sizes}")
        guessed = bool(frame.is_corrupt or (guessed and not frame.key_frame))
        if guessed and damaged is not None:
            damaged.add(frame.pts)
        before = frame
        yield frame


def at_25(frames: Iterable[Any]) -> Iterator[tuple[Any, float]]:
    """For each frame at 25 a second its picture, and how many seconds away that is. Holds one picture at a time."""
    before: Any = None
    origin, position, k = 0, 0, 0
    gaps: list[int] = []
    for frame in frames:
        # in units of time_base / 25, so that the times of pictures and of frames are integers
        unit = Fraction(frame.time_base) * FPS
        if before is None:
            origin, scale, step = frame.pts, unit.numerator, unit.denominator
        elif unit != Fraction(scale, step):
            raise Dropped("unreadable", "expected one time base, got several")
        now = (frame.pts - origin) * scale
        if now > MAX_SECONDS * FPS * step:
            raise Dropped("unreadable", f"expected at most {MAX_SECONDS} s, got a picture at {now / step / FPS:.0f} s")
        while before is not None and k * step - position <= now - k * step:
            yield before, abs(k * step - position) / step / FPS
            k += 1
        gaps += [now - position] if before is not None else []
        before, position = frame, now
    if before is None:
        raise Dropped("no_video", "expected pictures, got a video stream without any")
    end = position + (statistics.median_low(gaps) if gaps else step)
    while k * step < end:
        yield before, abs(k * step - position) / step / FPS
        k += 1


def upright(frame: Any, aspect: Fraction = Fraction(1)) -> UInt8:
    """A picture as uint8 [H, W, 3] RGB with square pixels, turned and mirrored as its file asks."""
    width = round(frame.width * aspect)
    pixels = frame.to_ndarray(format="rgb24", **({"width": width, "height": frame.height} if aspect != 1 else {}))
    # Not VideoFrame.rotation: it knows no mirrors, and PyAV 14 has none of it.
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]  # a pixel (x, y) is shown at (a x + c y, b x + d y)
        if (a or d) and (b or c):
            raise Dropped("unreadable", f"expected a picture turned by quarters, got the matrix {a} {b} {c} {d}")
        right, down = (a, d) if a else (c, b)
        pixels = pixels if a else pixels.transpose(1, 0, 2)
        pixels = pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
    return np.ascontiguousarray(pixels)


def pixel_aspect(stream: Any) -> Fraction:
    """Width of a pixel divided by its height; 1 if the file does not say."""
    return Fraction(getattr(stream, "sample_aspect_ratio", None) or stream.codec_context.sample_aspect_ratio or 1)


@dataclass
class Film:
    """What one reading of a file has found about its n frames at 25 a second."""

    sound: Sound
    size: tuple[int, int]  # (width, height) of the upright picture
    away: NDArray[np.float64]  # [n], seconds to the nearest picture
    change: NDArray[np.float64]  # [n], mean difference in levels from the frame before
    damaged: NDArray[np.bool_]  # [n]
    looks: dict[int, Any] = field(default_factory=dict)  # results of ``look`` for the sampled frames

    def __len__(self) -> int:
        return len(self.away)


def survey(path: Path, clip: int, look: Callable[[UInt8], Any] | None = None) -> Film:
    """Read a file once; ``look`` gets every 4th frame of each ``clip`` frames. Raises: Dropped if it cannot be read."""
    track, looks, size, first = _SoundTrack(), dict[int, Any](), (0, 0), None
    found, damaged = list[tuple[float, float, bool]](), set[int]()
    shown, small = None, np.zeros((0,), np.float32)
    with opened(path) as (container, video, audio):
        aspect = pixel_aspect(video)
        for k, (frame, away) in enumerate(at_25(pictures(container.decode(video, audio), track, damaged))):
            change = 0.0
            if first is None:
                first, (height, width) = frame.pts * Fraction(frame.time_base), upright(frame, aspect).shape[:2]
                size = width, height
            if frame is not shown:
                thumb = frame.reformat(THUMB, THUMB, "rgb24", interpolation="AREA").to_ndarray().astype(np.float32)
                change = float(np.abs(thumb - small).mean()) if k else 0.0
                small, shown = thumb, frame
            if look is not None and k % clip % SAMPLE == 0:
                looks[k] = look(upright(frame, aspect))
            found.append((away, change, frame.pts in damaged))
    assert first is not None
    away_, change_, damaged_ = (np.array(column) for column in zip(*found))
    return Film(track.finish(first), size, away_, change_, damaged_, looks)


def frames_25(path: Path, wanted: Container[int]) -> Iterator[tuple[int, UInt8]]:
    """The wanted frames and their upright pictures, in a second reading; a repeated picture is the same array."""
    shown, pixels = None, np.zeros((0, 0, 3), np.uint8)
    with opened(path) as (container, video, _):
        aspect = pixel_aspect(video)
        for k, (frame, _) in enumerate(at_25(pictures(container.decode(video)))):
            if k in wanted:
                if frame is not shown:
                    shown, pixels = frame, upright(frame, aspect)
                yield k, pixels
