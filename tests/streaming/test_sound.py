"""The caller's samples on the stream's timeline."""

from __future__ import annotations

import numpy as np
import pytest

from rest_fast import media
from rest_fast.streaming.sound import SoundTimeline
from rest_fast.units import RATE
from tests.kit.toys import sound


def timeline(rate: int, samples: np.ndarray) -> SoundTimeline:
    line = SoundTimeline(rate)
    for piece in np.array_split(samples, 7):
        line.append(piece)
    return line


@pytest.mark.parametrize("rate", [8000, 11025, 12345, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("first", [0, 640, 15000, 33333])
def test_a_window_agrees_with_resampling_the_whole_file(rate, first):
    """White noise, the hardest input: soxr HQ's kernel is cut 10 ms outside the window, where it is below 1e-5.

    soxr starts a file at odd ratios with an error of its own in the first samples (3e-3): these are left out.
    """
    samples = sound(rate, 4.0)
    whole = media.resample(samples, rate, RATE)
    got = timeline(rate, samples).window16(first, first + 20000, limit=len(samples))
    own_start = max(0, 160 - first)
    assert np.abs(got - whole[first : first + 20000])[own_start:].max() < 1e-5


def test_own_rate_is_untouched():
    samples = sound(RATE, 1.0)
    assert np.array_equal(timeline(RATE, samples).window16(100, 900, limit=len(samples)), samples[100:900])


@pytest.mark.parametrize("rate", [RATE, 48000])
def test_silence_before_the_start_and_from_the_limit_on(rate):
    samples = sound(rate, 2.0)
    line = timeline(rate, samples)
    cut = samples.copy()
    cut[rate:] = 0
    assert np.array_equal(
        line.window16(-3000, 20000, limit=rate), timeline(rate, cut).window16(-3000, 20000, limit=len(cut))
    )
    window = line.window16(-3000, 20000, limit=rate)
    assert np.abs(window[: 3000 - RATE // 100]).max() < 1e-6  # the resampler rings, below 1e-6 past 10 ms
    assert np.abs(window[3000 + RATE + RATE // 100 :]).max() < 1e-6
    assert np.abs(window[3000:19000]).max() > 0.1


def test_needed_is_enough_and_not_more():
    """Samples from ``needed`` on cannot change a window; the ones just before it can."""
    rate = 44100
    samples = sound(rate, 2.0)
    line = timeline(rate, samples)
    need = line.needed(16000)
    want = line.window16(8000, 16000, limit=len(samples))
    assert np.array_equal(line.window16(8000, 16000, limit=need), want)
    assert not np.array_equal(line.window16(8000, 16000, limit=need - rate // 200), want)


def test_dropping_keeps_what_is_left():
    samples = sound(RATE, 30.0)
    line = timeline(RATE, samples)
    line.drop_before(20 * RATE)
    assert 15 * RATE < line.start <= 20 * RATE  # whole pieces, of which there were seven
    assert line.end == len(samples)
    assert np.array_equal(line.raw(21 * RATE, 22 * RATE), samples[21 * RATE : 22 * RATE])
    with pytest.raises(AssertionError, match="was dropped"):
        line.raw(0, 10)


def test_inserted_silence_moves_what_comes_after():
    samples = sound(RATE, 1.0, dtype=np.int16)
    line = timeline(RATE, samples)
    line.insert_silence(400, 100)
    want = np.concatenate([samples[:400], np.zeros(100, np.int16), samples[400:]])
    assert np.array_equal(line.raw(0, len(want)), want)


def test_silence_takes_the_format_of_the_first_push():
    line = SoundTimeline(48000)
    line.insert_silence(0, 10)
    assert line.raw(0, 10).dtype == np.float32
    line.append(np.ones((5, 2), np.int16))
    assert line.raw(0, 15).shape == (15, 2)
    assert line.raw(0, 15).dtype == np.int16
    assert not line.raw(0, 10).any()


def test_int16_and_stereo_become_mono_floats():
    line = SoundTimeline(RATE)
    line.append(np.array([[16384, 0], [-32768, -32768]], np.int16))
    assert line.mono(0, 2, limit=2).tolist() == [0.25, -1.0]
