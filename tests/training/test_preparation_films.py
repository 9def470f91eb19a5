"""One file on one clock: which picture and which sound stand at which time, for all rates, starts and gaps."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soxr

from rest_fast.training.preparation.film import Sound, _SoundTrack, frames_25, survey
from rest_fast.training.preparation.rules import Dropped
from tests.kit.films import CLOCK, even, jittered, write_film
from tests.kit.media_files import chirp, photo

BITS, SIDE = 10, 80  # stripes of a numbered picture, and its width and height


def numbered(i: int) -> np.ndarray:
    """uint8 [80, 80, 3] with its number in black and white stripes, which survive any codec."""
    stripes = np.repeat([(i >> bit & 1) * 200 + 28 for bit in range(BITS)], SIDE // BITS)
    return np.broadcast_to(stripes[None, :, None], (SIDE, SIDE, 3)).astype(np.uint8)


def number(picture: np.ndarray) -> int:
    bright = picture[8:-8].mean((0, 2)).reshape(BITS, -1).mean(1) > 128
    return int(sum(1 << bit for bit in range(BITS) if bright[bit]))


# -- pictures


def nearest(times: Sequence[Fraction]) -> list[int]:
    """Number of the picture of each frame: by exact fractions, and a search through all."""
    gaps = sorted(b - a for a, b in pairwise(times))
    end = times[-1] - times[0] + gaps[(len(gaps) - 1) // 2]
    frames = iter(Fraction(k, 25) for k in range(10_000))
    found = []
    while (t := next(frames)) < end:
        found.append(min(range(len(times)), key=lambda i: (abs(times[i] - times[0] - t), i)))
    return found


@pytest.mark.parametrize(
    "times",
    [
        even(25, 40),
        even(30, 60),
        even(24, 40),
        even(50, 80),
        even(Fraction(25, 2), 30),  # every second frame lies half way between two pictures
        even(Fraction(30000, 1001), 60),
        [t + 3 for t in even(60, 70)],
        jittered(60),
        jittered(60, seed=1),
    ],
    ids=["25", "30", "24", "50", "12.5", "29.97", "60 from 3 s on", "variable", "variable too"],
)
def test_a_frame_is_the_nearest_picture(tmp_path, times):
    path = write_film(tmp_path / "a.mov", [numbered(i) for i in range(len(times))], times, chirp(16000, 1))
    on_clock = [Fraction(round(t * CLOCK), CLOCK) for t in times]
    got = [number(picture) for _, picture in frames_25(path, range(10_000))]
    assert got == nearest(on_clock)
    film = survey(path, 97)
    want = [abs(on_clock[i] - on_clock[0] - Fraction(k, 25)) for k, i in enumerate(got)]
    np.testing.assert_allclose(film.away, [float(w) for w in want], atol=1e-9)
    assert film.size == (SIDE, SIDE) and not film.damaged.any()


def test_wanted_frames_alone(tmp_path):
    path = write_film(tmp_path / "a.mov", [numbered(i) for i in range(30)], even(30, 30), chirp(16000, 1))
    whole = dict(frames_25(path, range(99)))
    some = dict(frames_25(path, {3, 4, 20}))
    assert list(some) == [3, 4, 20]
    for k, picture in some.items():
        np.testing.assert_array_equal(picture, whole[k])


def test_change_is_the_difference_of_pictures(tmp_path):
    levels = [60] * 5 + [120] * 5
    pictures = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in levels]
    film = survey(write_film(tmp_path / "a.mov", pictures, even(25, 10), chirp(16000, 1)), 97)
    assert film.change[5] == pytest.approx(60, abs=3) and np.delete(film.change, 5).max() < 2


def test_every_fourth_frame_of_each_clip_is_looked_at(tmp_path):
    path = write_film(tmp_path / "a.mov", [numbered(i) for i in range(24)], even(25, 24), chirp(16000, 1))
    film = survey(path, 9, look=number)
    assert film.looks == {k: k for k in (0, 4, 8, 9, 13, 17, 18, 22)}


def quarters(picture: np.ndarray, clockwise: int) -> np.ndarray:
    for _ in range(clockwise):
        picture = picture[::-1].transpose(1, 0, 2)
    return picture


# Of a track's header (ISO 14496-12): a, b, c, d; the picture's right points to (a, b) and its down to (c, d).
MATRICES = [
    ((1, 0, 0, 1), lambda p: p),
    ((0, 1, -1, 0), lambda p: quarters(p, 1)),  # right becomes down
    ((-1, 0, 0, -1), lambda p: quarters(p, 2)),
    ((0, -1, 1, 0), lambda p: quarters(p, 3)),
    ((-1, 0, 0, 1), lambda p: p[:, ::-1]),  # a mirror
    ((0, 1, 1, 0), lambda p: quarters(p[::-1], 1)),
]


def write_turned(path: Path, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """A film whose header asks for a turn; its picture as it was before."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:16, :24] = 220, 0, 0  # top left: red
    picture[-16:, :24] = 0, 0, 220  # bottom left: blue
    write_film(path, [picture] * 3, even(25, 3), chirp(16000, 1))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    a, b, c, d = matrix
    for place, value in enumerate((a, b, 0, c, d, 0)):
        data[at + 4 * place : at + 4 * place + 4] = (round(value * 65536) & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    return picture


@pytest.mark.parametrize("matrix, turn", MATRICES, ids=lambda value: str(value) if isinstance(value, tuple) else "")
def test_pictures_are_turned_as_the_file_asks(tmp_path, matrix, turn):
    want = turn(write_turned(tmp_path / "a.mov", matrix))
    got = dict(frames_25(tmp_path / "a.mov", {0}))[0]
    assert got.shape == want.shape and survey(tmp_path / "a.mov", 97).size == want.shape[1::-1]
    assert np.abs(got.astype(float) - want).mean() < 8


def test_a_picture_that_stands_askew_is_refused(tmp_path):
    write_turned(tmp_path / "a.mov", (0.6, 0.8, -0.8, 0.6))
    with pytest.raises(Dropped, match="turned by quarters, got the matrix 39322 52429"):
        survey(tmp_path / "a.mov", 97)


def test_pixels_that_are_not_square(tmp_path):
    """A circle is one again: 40 x 80 pixels twice as wide as high."""
    y, x = np.mgrid[0:80, 0:40]
    disc = ((y - 39.5) ** 2 + (2 * x - 39) ** 2 < 30**2)[..., None] * np.array([200, 200, 200])
    path = tmp_path / "a.mov"
    write_film(path, [disc.astype(np.uint8)] * 3, even(25, 3), chirp(16000, 1), aspect=Fraction(2))
    got = dict(frames_25(path, {0}))[0]
    assert got.shape == (80, 80, 3)
    inside = np.argwhere(got.mean(2) > 100)
    np.testing.assert_allclose(inside.max(0) - inside.min(0), [59, 59], atol=3)


# -- sound


@pytest.mark.parametrize("name", ["a.mov", "a.mkv"])
@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2), (48000, 1)])
@pytest.mark.parametrize(
    "video_at, sound_at", [(0, Fraction(0)), (0, Fraction(1, 4)), (Fraction(1, 2), Fraction(1, 5))]
)
def test_sound_stands_at_its_time(tmp_path, name, rate, channels, video_at, sound_at):
    """Against soxr in one go, placed by hand."""
    samples = chirp(rate, 1.5, channels)
    times = [video_at + t for t in even(25, 40)]
    film = survey(write_film(tmp_path / name, [numbered(0)] * 40, times, samples, rate, sound_at), 97)
    mono = (np.round(samples * 32767).astype(np.int16).astype(np.float32) / 32768).mean(1)
    want = soxr.resample(mono, rate, 16000, "HQ")
    at = round((sound_at - video_at) * 16000)
    got = film.sound.window(at - 500, at + len(want) + 700)
    np.testing.assert_array_equal(got[:500], 0)
    np.testing.assert_allclose(got[500 : 500 + len(want)], want, atol=2e-5)
    assert np.abs(got[500 + len(want) + 1 :]).max() == 0


def pieces(*spans: tuple[float, int], rates: Sequence[int] = (16000,) * 99) -> Sound:
    """Constant sound: ``n`` samples at each of the given seconds."""
    track = _SoundTrack()
    for (at, n), rate in zip(spans, rates):
        frame = av.AudioFrame.from_ndarray(np.full((1, n), 0.5, np.float32), "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, round(at * rate), Fraction(1, rate)
        track.add(frame)
    return track.finish(Fraction(0))


def test_a_hole_in_the_sound_is_silence():
    sound = pieces((0, 8000), (0.75, 8000))
    np.testing.assert_allclose(sound.window(0, 8000), 0.5, atol=1e-6)
    np.testing.assert_array_equal(sound.window(8000, 12000), 0)
    np.testing.assert_allclose(sound.window(12000, 20000), 0.5, atol=1e-6)
    assert sound.covered(0, 20000) == 1 and sound.covered(10000, 30000) == 0.5 and sound.covered(20000, 21000) == 0


def test_loose_timestamps_move_nothing():
    """Milliseconds, as Matroska has them: pieces are joined sample by sample."""
    sound = pieces(*((round(i * 1000 / 16000, 3), 1000) for i in range(16)))
    assert len(sound.samples) == 16000 and sound.samples.min() > 0.49


@pytest.mark.parametrize(
    "spans, rates, words",
    [
        ([(0, 8000), (0.3, 8000)], [16000, 16000], "sound in order, got 0.200 s twice at 0.30"),
        ([(0, 8000), (0.5, 8000)], [16000, 8000], "one sample rate, got 16000 and 8000"),
        ([(0, 100), (7300, 100)], [16000, 16000], "at most 7200 s"),
    ],
)
def test_sound_that_cannot_be_joined(spans, rates, words):
    with pytest.raises(Dropped, match=words):
        pieces(*spans, rates=rates)


def test_windows_reach_beyond_the_sound():
    sound = Sound(np.arange(1, 6, dtype=np.float32), -2)
    np.testing.assert_array_equal(sound.window(-4, 5), [0, 0, 1, 2, 3, 4, 5, 0, 0])
    np.testing.assert_array_equal(sound.window(0, 2), [3, 4])
    np.testing.assert_array_equal(sound.window(10, 12), [0, 0])
    np.testing.assert_array_equal(sound.window(-9, -7), [0, 0])


def test_a_single_picture_is_one_frame(tmp_path):
    path = write_film(tmp_path / "a.mov", [photo(48, 64)], [Fraction(0)], chirp(16000, 1))
    assert len(survey(path, 97)) == 1
