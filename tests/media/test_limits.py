"""Sound that is odd but good, cut off, or too long: what it sounds like, or the one error."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from rest_fast import media
from rest_fast.media import load_audio, sound_files
from rest_fast.media.sound_files import join
from rest_fast.media.wav import open_wav as wav_header
from rest_fast.rendering import playable
from tests.kit.media_files import chirp, encode_sound, float_wav, refuses, sine, tone, wav

SIZES = {"data": 40, "riff": 4}  # where the plain header of wave keeps them


@pytest.mark.parametrize(
    "name, codec, rate",
    [
        ("a.mp3", "libmp3lame", 8000),
        ("a.mp3", "libmp3lame", 48000),
        ("a.ogg", "flac", 22050),
        ("a.ogg", "libopus", 24000),
        ("a.ogg", "libopus", 16000),
        ("a.m4a", "aac", 8000),
        ("a.m4a", "aac", 96000),
        ("a.flac", "flac", 96000),
        ("a.mkv", "pcm_s24le", 44100),
        ("a.mkv", "aac", 11025),
        ("a.wav", "pcm_u8", 8000),
        ("a.wav", "pcm_s24le", 96000),
        ("a.wav", "pcm_f32le", 48000),
        ("a.wav", "pcm_mulaw", 8000),
        ("a.wav", "adpcm_ms", 22050),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_keeps_its_pitch_and_loudness(tmp_path, name, codec, rate, channels):
    encode_sound(tmp_path / name, codec, np.repeat(sine(rate), channels, 1), rate)
    got = load_audio(tmp_path / name)
    assert got.rate == (48000 if codec == "libopus" else rate)  # Opus always decodes to 48 kHz
    assert got.samples.shape[1] == channels and got.duration == pytest.approx(1, abs=0.3)
    for samples in (*got.samples.T, got.mono):
        pitch, peak = tone(samples, got.rate)
        assert pitch == pytest.approx(440, abs=0.5) and peak == pytest.approx(0.5, rel=0.06)  # LAME encodes at 0.95


def test_surround_mixes_down_without_overflow(tmp_path):
    loud = np.full((4800, 6), 32767)
    got = load_audio(wav(loud, 48000, 2))
    np.testing.assert_allclose(got.mono, 1, rtol=1e-6)  # 2.4 times as loud, turned down
    one = np.zeros((48000, 6), np.float32)
    one[:, 4:5] = sine(48000, 600, 0.9)  # a tone behind to the left: 3 dB quieter, and half of that
    encode_sound(tmp_path / "a.flac", "flac", one, 48000)
    samples, rate = playable(load_audio(tmp_path / "a.flac"))
    assert samples.shape == (48000, 1) and rate == 48000
    assert tone(samples[:, 0], rate) == pytest.approx((600, 0.9 / 8**0.5), rel=1e-3)


def test_clipped_sound_is_taken_as_it_is(tmp_path):
    square = np.clip(sine(16000, 200, 20), -1, 1)
    integers = np.int64(np.clip(square * 32768, -32768, 32767))
    got = load_audio(wav(integers, 16000, 2)).samples
    np.testing.assert_array_equal(got, np.float32(integers / 32768))
    encode_sound(tmp_path / "a.mp3", "libmp3lame", square, 16000)
    back = load_audio(tmp_path / "a.mp3").mono
    assert np.corrcoef(back, square[:, 0])[0, 1] > 0.99 and np.abs(back).max() < 2  # overshoots, never wraps


@pytest.mark.parametrize("name, codec", [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac")])
def test_silence_is_silent(tmp_path, name, codec):
    encode_sound(tmp_path / name, codec, np.zeros((16000, 1), np.float32), 16000)
    got = load_audio(tmp_path / name)
    assert 16000 <= len(got.samples) < 16000 + 1024 and np.abs(got.samples).max() < 1e-4


# -- cut off


def with_size(data: bytes, where: str, size: int) -> bytes:
    at = SIZES[where]
    return data[:at] + struct.pack("<I", size) + data[at + 4 :]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_cut_wav_says_what_is_missing(tmp_path, width):
    data = wav(np.zeros((48000, 2), int), 16000, width)
    path = tmp_path / "cut.wav"
    path.write_bytes(data[: 44 + 16000 * 2 * width])
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        with refuses("audio", "truncated: the header promises 3.00 s, the file holds 1.00 s"):
            load_audio(source)
    path.write_bytes(data[:44])
    with refuses("cut.wav", "promises 3.00 s, the file holds 0.00 s"):
        load_audio(path)


def test_a_cut_wav_with_other_chunks_before_its_samples():
    data = float_wav(chirp(16000)[:, 0], 16000)
    odd = data[:12] + b"LIST" + struct.pack("<I", 5) + b"words\0" + data[12:]
    assert len(load_audio(odd).samples) == 16000
    with refuses("truncated", "promises 1.00 s", "holds 0.50 s"):
        load_audio(odd[:-32000])


def test_a_wav_of_a_million_empty_chunks_is_left(monkeypatch):
    class Counted(io.BytesIO):
        reads = 0

        def read(self, *size):
            self.reads += 1
            return super().read(*size)

    source = Counted(wav(np.zeros((0, 1), int), 8000, 2)[:36] + bytes(8_000_000))
    assert wav_header("audio", source) == (None, source)
    assert source.reads < 300 and source.tell() == 0


def test_pieces_that_do_not_fit_together_are_refused(tmp_path):
    for name, channels in (("1.mp3", 1), ("2.mp3", 2)):
        encode_sound(tmp_path / name, "libmp3lame", chirp(16000, 1, channels), 16000)
    with refuses("audio", "one format (16000 Hz with 1 channel), got 16000 Hz with 2 channels after 1."):
        load_audio((tmp_path / "1.mp3").read_bytes() + (tmp_path / "2.mp3").read_bytes())
    with pytest.raises(ValueError, match="change part way"):
        join([np.zeros((1, 2)), np.zeros((1, 1))])


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF - 36])
def test_a_streamed_wav_does_not_know_its_size(size):
    values = np.int64(chirp(16000) * 32767)
    data = with_size(with_size(wav(values, 16000, 2), "data", size), "riff", size)
    np.testing.assert_array_equal(load_audio(data).samples, np.float32(values / 32768))


def test_a_header_that_counts_a_few_bytes_too_many_passes():
    data = wav(np.zeros((16000, 1), int), 16000, 2)
    assert len(load_audio(with_size(data, "data", 32008)).samples) == 16000


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_m4a_is_refused(tmp_path, options, share):
    encode_sound(tmp_path / "a.m4a", "aac", chirp(44100, 5), 44100, **options)
    data = (tmp_path / "a.m4a").read_bytes()
    assert load_audio(data).duration >= 5
    with refuses(
        "audio", "FFmpeg can read to its end", "Invalid data" if not options else "the header promises 5.00 s"
    ):
        load_audio(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore::rest_fast.RestFastWarning")  # of the last frame, which is cut in two
@pytest.mark.parametrize("name, codec", [("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.aac", "aac")])
def test_a_cut_stream_is_a_shorter_one(tmp_path, name, codec):
    """These play from anywhere to anywhere; FFmpeg reports nothing. What is there is right."""
    encode_sound(tmp_path / name, codec, sine(48000, seconds=4), 48000)
    data = (tmp_path / name).read_bytes()
    got = load_audio(data[: len(data) * 3 // 4])
    assert 1 < got.duration < 3.5 and tone(got.mono, 48000) == pytest.approx((440, 0.5), rel=0.06)


# -- too long


def test_a_long_file_is_refused_by_its_header(tmp_path, monkeypatch):
    with open(tmp_path / "long.wav", "wb") as file:  # three hours, of which the disk holds 44 bytes
        file.write(with_size(wav(np.zeros((0, 1), int), 8000, 1), "data", 3 * 3600 * 8000))
        file.truncate(44 + 3 * 3600 * 8000)
    with refuses("long.wav", "at most 7200 s", "got 10800.00 s"):
        load_audio(tmp_path / "long.wav")
    monkeypatch.setattr(sound_files, "MAX_SECONDS", 2)
    for name, codec in (("a.flac", "flac"), ("a.m4a", "aac"), ("a.mkv", "aac"), ("a.ogg", "libopus")):
        encode_sound(tmp_path / name, codec, chirp(16000, 3), 16000)
        with refuses(name, "at most 2 s") as caught:
            load_audio(tmp_path / name)
        assert "stopped" not in str(caught.value)


def test_a_length_that_is_not_known_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_files, "MAX_SECONDS", 2)
    encode_sound(tmp_path / "a.mp3", "libmp3lame", chirp(16000, 3), 16000)
    with refuses("a.mp3", "at most 2 s", "more, stopped at 2.0"):
        load_audio(tmp_path / "a.mp3")
    encode_sound(tmp_path / "a.mp3", "libmp3lame", chirp(16000, 1.9), 16000)
    assert load_audio(tmp_path / "a.mp3").duration == pytest.approx(1.9, abs=0.1)


def test_a_stream_without_end_is_left(monkeypatch):
    class Endless:
        """A WAV that goes on for ever and cannot be rewound."""

        def __init__(self) -> None:
            self.head, self.given = with_size(wav(np.zeros((0, 1), int), 16000, 2), "data", 0xFFFFFFFF), 0

        def read(self, size: int) -> bytes:
            head, self.head = self.head[:size], self.head[size:]
            self.given += size
            return head + bytes(size - len(head))

    monkeypatch.setattr(sound_files, "MAX_SECONDS", 2)
    source = Endless()
    with refuses("Endless", "at most 2 s", "more, stopped at 2."):
        load_audio(source)
    assert source.given < 1_000_000


def test_many_channels_at_a_high_rate_are_bounded_too(monkeypatch):
    data = wav(np.zeros((16000, 6), int), 16000, 2)
    assert load_audio(data).duration == 1
    monkeypatch.setattr(sound_files, "MAX_SAMPLES", 50_000)
    with refuses("audio", "at most 50000 samples, all channels together", "stopped at"):
        load_audio(data)


@pytest.mark.parametrize("read", [media.load_audio, media.read_video])
@pytest.mark.parametrize("given", ["path", "bytes", "file"])
def test_an_empty_file_is_called_one(tmp_path, read, given):
    path = tmp_path / "nothing.mp4"
    path.touch()
    source = {"path": path, "bytes": b"", "file": io.BytesIO()}[given]
    with pytest.raises(media.MediaError, match="got an empty file"):
        read(source)
