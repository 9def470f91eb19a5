"""Many channels as one: levels, an inverted side, and that how sound is cut has no say; the track that is taken."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from rest_fast.media import Audio, check_pcm, downmix, load_audio
from rest_fast.streaming.sound import SoundTimeline
from rest_fast.training.preparation.film import survey
from tests.kit.media_files import LAYOUTS, chirp, encode_sound, film, sine, wav_extensible


def decibels(got: np.ndarray, want: np.ndarray) -> float:
    return float(10 * np.log10((got.astype(np.float64) ** 2).mean() / (want.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize(
    "layout, where, level",
    [  # of one voice in these channels, by ITU-R BS.775 (its table for two channels), half the sum of left and right
        ("stereo", ["FL", "FR"], 0),
        ("stereo", ["FR"], -6.02),
        ("5.1", ["FC"], -3.01),
        ("5.1", ["FL", "FR"], 0),
        ("5.1", ["FL"], -6.02),
        ("5.1", ["BL"], -9.03),
        ("5.1", ["BL", "BR"], -3.01),
        ("5.1(side)", ["SR"], -9.03),
        ("7.1", ["FC"], -3.01),
        ("7.1", ["SL"], -9.03),
        ("quad", ["BL"], -9.03),
        ("4.0", ["BC"], -6.02),
        ("2.1", ["FL", "FR"], 0),
    ],
)
def test_levels(layout, where, level):
    voice = sine(16000, 300, 0.5)[:, 0]
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    samples = np.stack([voice * (name in where) for name in names], 1)
    got = Audio(samples, 16000, tuple(names)).mono
    assert decibels(got, voice) == pytest.approx(level, abs=0.01)
    assert np.corrcoef(got, voice)[0, 1] > 0.999999


def test_the_bass_effects_are_left_out():
    samples = np.zeros((4800, 6), np.float32)
    samples[:, 3] = 0.5
    assert not Audio(samples, 48000).mono.any() and not check_pcm(samples).any()


def test_a_file_names_its_channels(tmp_path):
    """Side channels of FLAC 5.1(side), and a mask by which the third of three channels is no centre."""
    encode_sound(tmp_path / "a.flac", "flac", chirp(48000, 0.2, 6), 48000)
    assert load_audio(tmp_path / "a.flac").layout[:4] == ("FL", "FR", "FC", "LFE")
    values = np.zeros((1600, 3), np.int64)
    values[:, 2] = 8000
    for mask, level in ((0b0111, 8000 / 32768 / 2**0.5), (0b1011, 0), (0, 8000 / 32768 / 2**0.5)):
        got = load_audio(wav_extensible(values, 16000, 16, mask=mask)).mono
        np.testing.assert_allclose(got, level, rtol=1e-6)


def test_unknown_channels_count_alike():
    samples = np.random.default_rng(0).uniform(-1, 1, (500, 12)).astype(np.float32)
    np.testing.assert_allclose(Audio(samples, 16000).mono, samples.mean(1), atol=1e-6)


def test_loud_surround_is_turned_down_in_a_file_and_never_clipped():
    voice = sine(48000, 300, 1.0)
    got = Audio(np.repeat(voice, 6, 1), 48000).mono
    np.testing.assert_allclose(got, voice[:, 0] / np.abs(voice).max(), atol=1e-6)
    live = check_pcm(np.repeat(voice, 6, 1))
    np.testing.assert_allclose(live, voice[:, 0] * (1 + 2**0.5), atol=1e-6)


# -- one side inverted


def inverted(seconds: float = 2.0, rate: int = 16000) -> np.ndarray:
    """[n, 2]: silence, then a voice whose right side is inverted, a little softer and with noise of its own."""
    voice = chirp(rate, seconds)[:, 0] + np.float32(0.2) * sine(rate, 250, 0.5, seconds)[:, 0]
    voice *= np.clip(np.arange(len(voice)) / rate * 20 - 5, 0, 1)  # from 0.25 s on, softly
    noise = np.random.default_rng(3).normal(0, 1e-3, (len(voice), 2))
    return np.float32(np.stack([voice, -0.8 * voice], 1) + noise)


def test_an_inverted_side_is_heard():
    pair = inverted()
    for got in (Audio(pair, 16000).mono, check_pcm(pair)):
        assert decibels(got[4000:], pair[4000:, 0]) == pytest.approx(-0.9, abs=0.2)  # (1 + 0.8) / 2
        assert np.corrcoef(got[4200:], pair[4200:, 0])[0, 1] > 0.999
    assert decibels(pair.mean(1), pair[:, 0]) < -19  # which a plain mean would give


def test_other_stereo_is_half_the_sum():
    """Speech on one side, two voices, a delayed side: sum and difference are alike, and it stays with the sum."""
    a, b = chirp(16000, 2)[:, 0], sine(16000, 333, 0.4, 2)[:, 0]
    for pair in ((a, 0 * a), (0 * a, a), (a, b), (a, np.roll(a, 40)), (a, 0.5 * a), (b, 0.3 * -b)):
        pair = np.stack(pair, 1)
        np.testing.assert_allclose(Audio(pair, 16000).mono, pair.mean(1, dtype=np.float64), atol=1e-6)


@pytest.mark.parametrize("rate, channels", [(8000, 2), (16000, 2), (48000, 2), (11025, 2), (44100, 6)])
def test_how_live_sound_is_cut_does_not_matter(rate, channels):
    """Bit for bit, whatever was dropped: at each place either all of the window before counts, or it never came."""
    pair = inverted(3.0, rate)
    pair[rate : 2 * rate, 1] *= -1  # not inverted for a while
    sound = np.repeat(pair, channels // 2, 1)[:, : channels // 2 * 2]
    whole = SoundTimeline(rate)
    whole.append(sound)
    rng = np.random.default_rng(1)
    for _ in range(4):
        cut, at, pushed = SoundTimeline(rate), 0, 0
        while at < 48000:
            end = min(at + int(rng.integers(1, 9000)), 48000)
            while pushed < min(cut.needed(end), len(sound)):
                count = int(rng.integers(1, 5000))
                cut.append(sound[pushed : pushed + count])
                pushed = min(pushed + count, len(sound))
            want = whole.window16(at, end, len(sound))
            # What comes behind ``needed`` is not asked for: here it never came.
            assert np.array_equal(cut.window16(at, end, len(sound)), want)
            at = end  # the next window begins there, or at the whole second before it
            cut.drop_before(at if rate == 16000 else (at - cut.margin) // 16000 * rate)


def test_live_sound_is_mixed_like_a_file():
    """Also where the sides cancel no more but did, half a second ago."""
    pair = inverted()
    pair[20000:, 1] = pair[20000:, 0]
    pair[20000:] *= 1e-3
    want, line = downmix.mono(pair), SoundTimeline(16000)
    line.append(pair)
    for at in range(19000, 31000, 777):
        assert np.array_equal(line.mono(at, at + 1000, len(pair)), want[at : at + 1000])


@pytest.mark.parametrize("first", [0, 1, 159, 160, 8159, 8160, 20001])
def test_mono_needs_no_more_than_its_reach(first):
    pair = inverted()
    want = downmix.mono(pair)[first:]
    for start in {0, max(0, first - downmix.REACH), max(0, first - downmix.REACH - 77)}:
        assert np.array_equal(downmix.mono(pair[start:], start, first), want)


def test_what_comes_later_has_no_say():
    """Around the voice's beginning, where the decision falls within a block; bit for bit."""
    pair = inverted()[:6000]
    whole = downmix.mono(pair)
    for end in range(3900, 4700):
        assert np.array_equal(downmix.mono(pair[:end]), whole[:end])


def test_long_sound_is_mixed_in_pieces(monkeypatch):
    pair = inverted(3.0)
    want = downmix.mono(pair)
    monkeypatch.setattr(downmix, "PIECE", 1000)
    assert np.array_equal(downmix.mono(pair), want)


def test_training_hears_an_inverted_side_too(tmp_path):
    path, pair = tmp_path / "a.mkv", np.clip(inverted(), -1, 1)
    write_tracks(path, [pair], picture=True)
    got = survey(path, 97).sound.window(0, len(pair))
    want = Audio(np.round(pair * 32767).astype(np.int16).astype(np.float32) / 32768, 16000).mono
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert decibels(got[4000:], pair[4000:, 0]) > -1.5


# -- which track


def write_tracks(path: Path, tracks: list[np.ndarray], default: int = 0, picture: bool = False) -> None:
    """Tracks of PCM [n, channels] at 16 kHz, of which one is flagged as default."""
    with av.open(str(path), "w") as file:
        if picture:
            video = file.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        streams = []
        for k, samples in enumerate(tracks):
            streams.append(file.add_stream("pcm_s16le", rate=16000, layout=LAYOUTS[samples.shape[1]]))
            streams[-1].disposition = av.stream.Disposition.default if k == default else av.stream.Disposition(0)
        if picture:
            for pixels in film(50):
                file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            file.mux(video.encode(None))
        for stream, samples in zip(streams, tracks, strict=True):
            data = np.round(samples * 32767).astype(np.int16).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(data, "s16", LAYOUTS[samples.shape[1]])
            frame.sample_rate, frame.pts = 16000, 0
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))


@pytest.mark.parametrize("default, first", [(0, 0), (1, 1), (2, 2), (9, 0)])
def test_the_default_track_is_taken(tmp_path, default, first):
    tracks = [np.full((16000, 1), level, np.float32) for level in (0.1, 0.2, 0.3)]
    write_tracks(tmp_path / "a.mkv", tracks, default, picture=True)
    level = 0.1 * (first + 1)
    np.testing.assert_allclose(load_audio(tmp_path / "a.mkv").mono, level, atol=1e-4)
    np.testing.assert_allclose(survey(tmp_path / "a.mkv", 97).sound.window(4000, 8000), level, atol=1e-4)
