"""Sound in: containers, formats, rates, what a live session pushes; every bad input."""

from __future__ import annotations

import io
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from rest_fast.media import VideoWriter, check_pcm, load_audio, read_video, resample
from tests.kit.media_files import chirp, encode_sound, float_wav, lag, photo, refuses, wav


@pytest.mark.parametrize("channels", [1, 2, 6, 12])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_integers_are_exact(width, channels):
    top = 1 << (8 * width - 1)
    values = np.random.default_rng(width).integers(-top, top, (1003, channels))
    values[:2] = [[-top], [top - 1]]
    got = load_audio(wav(values, 16000, width))
    assert got.rate == 16000 and got.samples.dtype == np.float32
    np.testing.assert_allclose(got.samples, values / top, rtol=0, atol=2**-24)
    if channels != 6:  # see test_media_channels
        np.testing.assert_allclose(got.mono, (values / top).mean(1), rtol=0, atol=2**-22)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000])
def test_wav_rates(rate):
    values = np.arange(rate // 10)[:, None] % 1000
    got = load_audio(wav(values, rate, 2))
    assert got.rate == rate and got.duration == len(values) / rate
    np.testing.assert_array_equal(got.samples, np.float32(values / 32768))


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_wav_floats_are_exact_and_not_clipped(dtype):
    values = (chirp(22050)[:, 0] * 4).astype(dtype)
    got = load_audio(float_wav(values, 22050))
    np.testing.assert_array_equal(got.samples[:, 0], values.astype(np.float32))


@pytest.mark.parametrize(
    "name, codec, rate, channels, extra",
    [  # extra: samples that a format without an end mark may add
        ("a.mp3", "libmp3lame", 44100, 2, 0),
        ("a.mp3", "libmp3lame", 16000, 1, 0),
        ("a.ogg", "libopus", 48000, 2, 0),
        ("a.flac", "flac", 44100, 1, 0),
        ("a.flac", "flac", 48000, 6, 0),
        ("a.m4a", "aac", 44100, 1, 1023),
        ("a.m4a", "alac", 24000, 2, 0),
        ("a.mkv", "libmp3lame", 24000, 1, 0),
        ("a.webm", "libopus", 48000, 1, 0),
    ],
)
def test_codecs(tmp_path, name, codec, rate, channels, extra):
    want = chirp(rate, 1, channels)
    encode_sound(tmp_path / name, codec, want, rate)
    with open(tmp_path / name, "rb") as file:
        got = load_audio(file)
        assert not file.closed
    assert got.rate == rate and got.samples.shape[1] == channels
    assert len(want) <= len(got.samples) <= len(want) + extra
    for c in range(channels):
        assert lag(got.samples[:, c], want[:, c]) == 0
    assert np.abs(got.samples[: len(want)] - want).mean() < 0.02


def test_sound_of_a_video_and_a_video_without(tmp_path):
    want, path = chirp(24000), tmp_path / "film.mp4"
    with VideoWriter(path, 64, 48, sample_rate=24000) as writer:
        writer.write(np.stack([photo(48, 64)] * 25), want)
    got = load_audio(path)
    assert got.rate == 24000 and lag(got.mono, want[:, 0]) == 0
    with VideoWriter(path, 64, 48) as writer:
        writer.write(photo(48, 64)[None])
    with refuses("film.mp4", "no audio stream"):
        load_audio(path)
    encode_sound(tmp_path / "only.m4a", "aac", want, 24000)
    with refuses("only.m4a", "no video stream"):
        read_video(tmp_path / "only.m4a")


@pytest.mark.parametrize(
    "source, words",
    [
        (b"", ["audio", "an empty file"]),
        (b"words, words, words. " * 99, ["audio", "FFmpeg can read", "Invalid data"]),
        (wav(np.zeros((0, 1), int), 16000, 2), ["empty"]),
        (float_wav(np.array([0.1, np.nan, 0.2]), 16000), ["finite", "NaN"]),
        (float_wav(np.array([0.1, np.inf, 0.2], "<f4"), 16000), ["finite", "infinity"]),
        (io.StringIO("text"), ["audio", "StringIO"]),
        (7, ["audio", "int"]),
    ],
)
def test_bad_sound(source, words):
    with refuses(*words):
        load_audio(source)


def test_broken_sound_says_how_much_could_be_read(tmp_path):
    encode_sound(tmp_path / "a.flac", "flac", chirp(44100, 3), 44100)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) * 2 // 3])
    with refuses("cut.flac", "to its end") as caught:
        load_audio(tmp_path / "cut.flac")
    promised, held = map(float, re.findall(r"(\d\.\d+) s", str(caught.value)))
    assert promised == 3 and 1 < held < 2.5


def test_a_script_cannot_open_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("secret.wav").write_bytes(wav(np.ones((100, 1), int), 8000, 2))
    Path("script.txt").write_text("ffconcat version 1.0\nfile secret.wav\n")
    Path("list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n")
    with av.open("script.txt") as allowed:  # the library alone would do it
        assert next(allowed.decode(audio=0)).samples
    for name in ("script.txt", "list.m3u8"):
        with refuses(name):
            load_audio(name)


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_check_pcm(make):
    mono = np.array([0, 1, -1, 32767, -32768], np.int16)
    got = check_pcm(make(mono))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, mono / 32768)
    stereo = np.array([[0.5, -0.25], [1.5, 0.5]])
    for dtype in (np.float32, np.float64):
        got = check_pcm(make(stereo.astype(dtype)), channels=2)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, [0.125, 1.0])
    extremes = np.array([[32767, 32767], [-32768, -32768]], np.int16)  # no wrap in the mean
    np.testing.assert_array_equal(check_pcm(make(extremes)), [32767 / 32768, -1])
    assert check_pcm(make(np.zeros(0, np.int16))).shape == (0,)
    assert check_pcm(make(np.zeros((0, 2), np.float32)), channels=2).shape == (0,)
    loud = np.array([8.0, -8.0], np.float32)
    np.testing.assert_array_equal(check_pcm(make(loud)), loud)


def test_check_pcm_copies():
    samples = np.zeros(4, np.float32)
    check_pcm(samples)[:] = 1
    assert not samples.any()


@pytest.mark.parametrize(
    "pcm, channels, words",
    [
        *((np.zeros(4, t), None, ["int16, float32", t]) for t in
          ("int32", "uint8", "int64", "bool", "complex64", "float16")),
        (torch.zeros(4, dtype=torch.int32), None, ["tensor of", "int32"]),
        (torch.zeros(4, dtype=torch.bfloat16), None, ["tensor of", "bfloat16"]),
        ([0.0, 0.1], None, ["list"]),
        (np.array([0, np.nan]), None, ["finite", "nan"]),
        (np.array([0, -np.inf], np.float32), None, ["finite", "inf"]),
        (np.array([0, -8.1]), None, ["-1..1", "8.1", "integers"]),
        (np.array([0, 20000.0]), None, ["-1..1", "20000", "integers"]),
        (np.zeros((2, 2, 2)), None, ["[n, 1..8 channels]", "[2, 2, 2]"]),
        (np.zeros((2, 1600)), None, ["[n, 1..8 channels]", "[2, 1600]"]),
        (np.array(0.5), None, ["shape []"]),
        (np.zeros((4, 0)), None, ["[4, 0]"]),
        (np.zeros((4, 2)), 1, ["1..1 channels", "[4, 2]"]),
        (np.zeros(4), 2, ["2..2 channels", "[4, 1]"]),
    ],
)  # fmt: skip
def test_bad_pcm(pcm, channels, words):
    with refuses("pcm", *words):
        check_pcm(pcm, channels)


def test_resample():
    def tone(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)

    for rate_in, rate_out in ((48000, 16000), (8000, 16000), (22050, 16000), (16000, 44100)):
        got = resample(tone(rate_in), rate_in, rate_out)
        assert got.dtype == np.float32 and got.shape == (rate_out,)
        middle = slice(rate_out // 10, -rate_out // 10)
        np.testing.assert_allclose(got[middle], tone(rate_out)[middle], atol=2e-4)
    np.testing.assert_array_equal(resample(tone(16000), 16000, 16000), tone(16000))
    assert resample(np.zeros(0, np.float32), 8000, 16000).shape == (0,)
    for bad in (np.zeros((4, 2), np.float32), np.zeros(4, np.int32), None):
        with refuses("samples"):
            resample(bad, 8000, 16000)
    for rate in (0, -8000, 16000.5, True, None):
        with refuses("sample rate", repr(rate)):
            resample(np.zeros(4, np.float32), rate, 16000)
