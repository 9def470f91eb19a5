"""Films for tests of data preparation: written with given timestamps, of a face that speaks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from rest_fast import preset
from rest_fast.training.preparation import prepare
from rest_fast.training.preparation.units import find_units
from tests.kit.media_files import LAYOUTS, chirp, film

CLOCK = 90_000  # time base of the films


def even(fps: Fraction | float, count: int) -> list[Fraction]:
    return [Fraction(i) / Fraction(fps) for i in range(count)]


def write_film(
    path: Path,
    pictures: Sequence[np.ndarray],
    times: Sequence[Fraction],
    samples: np.ndarray | None = None,
    rate: int = 16000,
    sound_at: Fraction = Fraction(0),
    aspect: Fraction | None = None,
) -> Path:
    """Pictures uint8 [H, W, 3] at ``times`` and sound float32 [n, channels] from ``sound_at`` on; AAC in an .mp4, else
    PCM."""
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "10"})
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt, video.codec_context.time_base = "yuv420p", Fraction(1, CLOCK)
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        if samples is not None:
            codec = "aac" if path.suffix == ".mp4" else "pcm_s16le"
            audio = file.add_stream(codec, rate=rate, layout=LAYOUTS[samples.shape[1]])
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = round(time * CLOCK), Fraction(1, CLOCK)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if samples is not None:
            if codec == "aac":
                data, form = np.ascontiguousarray(samples.T), "fltp"
            else:
                data, form = np.round(samples * 32767).astype(np.int16).reshape(1, -1), "s16"
            frame = av.AudioFrame.from_ndarray(data, form, LAYOUTS[samples.shape[1]])
            frame.sample_rate, frame.pts, frame.time_base = rate, round(sound_at * rate), Fraction(1, rate)
            file.mux(audio.encode(frame))
            file.mux(audio.encode(None))
    return path


TOY = preset("toy")  # 64 x 64


BOX = [8, 0, 72, 64]


def speaking(path: Path, frames: int = 100, seconds: float | None = None, **options: object) -> Path:
    """A drifting picture of 64 x 80 at 25 a second with a sweep as its sound."""
    there = [*film(10, 64, 80)]
    pictures = [*there, *there[8:0:-1]] * (frames // 18 + 1)  # and back: no jump
    samples = chirp(16000, frames / 25 if seconds is None else seconds)
    return write_film(path, pictures[:frames], even(25, frames), **({"samples": samples} | options))


def boxes(source: Path) -> Path:
    """A file with the same box for a video, or for all of a folder."""
    path = source.parent / f"{source.name}.json"
    path.write_text(json.dumps({unit.name: BOX for unit in find_units(source, 0)[0]}))
    return path


def run(source: Path, out: Path, **options):
    return prepare(source, out, **({"config": TOY, "workers": 1, "validation": 0.0} | options))


def jittered(count: int, seed: int = 0) -> list[Fraction]:
    """A variable rate: gaps between 10 and 90 ms, in ticks of the film's clock."""
    gaps = np.random.default_rng(seed).integers(CLOCK // 100, CLOCK * 9 // 100, count)
    return [Fraction(int(t), CLOCK) for t in np.cumsum(gaps)]
