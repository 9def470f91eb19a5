"""Sound files as people have them: wrong headers, joined pieces, damage. Read right, or one line that says why not."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from rest_fast import RestFastWarning
from rest_fast.media import VideoWriter, load_audio, read_video
from rest_fast.training.preparation.film import survey
from tests.kit.media_files import (
    chirp,
    encode_sound,
    film,
    float_wav,
    id3,
    lag,
    refuses,
    riff,
    sine,
    tone,
    wav,
    wav_extensible,
)


def as_pcm(samples: np.ndarray, bits: int = 16) -> np.ndarray:
    return np.int64(np.round(samples * (2 ** (bits - 1) - 1)))


class Pipe:
    """Bytes that come in small pieces and cannot be rewound."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 1000) if size >= 0 else 1000)


@pytest.fixture
def warned(recwarn):
    """The warnings since it was last asked."""

    def lines() -> list[str]:
        said = [str(w.message) for w in recwarn if issubclass(w.category, RestFastWarning)]
        recwarn.clear()
        return said

    return lines


# -- headers of WAV


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits, valid", [(16, 16), (16, 12), (24, 24), (24, 20), (32, 24), (32, 32)])
def test_valid_bits_are_the_upper_ones(order, bits, valid):
    rng = np.random.default_rng(0)
    values = rng.integers(-(2 ** (valid - 1)), 2 ** (valid - 1), (1600, 2)) << (bits - valid)
    got = load_audio(wav_extensible(values, 16000, bits, valid, 0b11, order))
    assert got.rate == 16000 and got.layout == ("FL", "FR")
    np.testing.assert_allclose(got.samples, values / 2.0 ** (bits - 1), rtol=0, atol=2**-24)


def test_24_bits_in_32_without_the_extension():
    values = as_pcm(chirp(16000, 0.1), 24)
    form = struct.pack("<HHIIHH", 1, 1, 16000, 64000, 4, 24)
    got = load_audio(riff(form, (values << 8).astype("<i4").tobytes()))
    np.testing.assert_allclose(got.samples, values / 2**23, rtol=0, atol=2**-24)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_big_endian_wav(bits):
    top = 2 ** (bits - 1)
    values = np.random.default_rng(bits).integers(-top, top, (1000, 1))
    form = struct.pack(">HHIIHH", 1, 1, 22050, 22050 * bits // 8, bits // 8, bits)
    shifted = values + (128 if bits == 8 else 0)
    data = shifted.astype(">i8").reshape(-1, 1).view(np.uint8)[:, -(bits // 8) :].tobytes()
    for source in (riff(form, data, ">"), Pipe(riff(form, data, ">"))):
        got = load_audio(source)
        assert got.rate == 22050
        np.testing.assert_allclose(got.samples, values / top, rtol=0, atol=2**-24)
    floats = chirp(22050, 0.1)[:, 0]
    form = struct.pack(">HHIIHH", 3, 1, 22050, 22050 * 4, 4, 32)
    np.testing.assert_array_equal(load_audio(riff(form, floats.astype(">f4").tobytes(), ">")).samples[:, 0], floats)


@pytest.mark.parametrize("rate_of_bytes", [0, 2, 4, 16000, 0xFFFFFFFF])
def test_a_wrong_byte_rate_is_not_believed(rate_of_bytes):
    """32000 bytes at 2 bytes a second would be 16000 s, at four thousand million a cut file would look whole."""
    data = wav(as_pcm(chirp(16000)), 16000, 2)
    data = data[:28] + struct.pack("<I", rate_of_bytes) + data[32:]
    assert load_audio(data).duration == 1
    with refuses("truncated", "promises 1.00 s", "holds 0.50 s"):
        load_audio(data[: 44 + 16000])


def test_a_long_wav_of_64_bits():
    """RF64, whose sizes stand in a chunk of their own."""
    values = as_pcm(chirp(16000))
    long = b"ds64" + struct.pack("<IQQQI", 28, 0, 32000, 16000, 0)
    data = wav(values, 16000, 2)
    data = b"RF64\xff\xff\xff\xffWAVE" + long + data[12:40] + b"\xff\xff\xff\xff" + data[44:]
    np.testing.assert_array_equal(load_audio(data).samples, np.float32(values / 32768))
    with refuses("truncated", "promises 1.00 s", "holds 0.50 s"):
        load_audio(data[:-16000])


@pytest.mark.parametrize("tags", [id3(20), id3(300_000), id3(20) + id3(30, 4)])
@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_mulaw"])
def test_an_id3_tag_before_a_wav_is_taken(tmp_path, tags, codec):
    encode_sound(tmp_path / "a.wav", codec, chirp(16000), 16000)
    data = (tmp_path / "a.wav").read_bytes()
    want = load_audio(data).samples
    (tmp_path / "a.wav").write_bytes(tags + data)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav").samples, want)
    if len(tags) < 1000:
        np.testing.assert_array_equal(load_audio(Pipe(tags + data)).samples, want)


def test_a_file_is_read_from_where_it_stands(tmp_path):
    for name, codec in (("a.wav", "pcm_s16le"), ("a.wav", "pcm_mulaw"), ("a.flac", "flac")):
        encode_sound(tmp_path / name, codec, chirp(16000), 16000)
        data = (tmp_path / name).read_bytes()
        file = io.BytesIO(b"a header of somebody's own" + data)
        file.seek(26)
        np.testing.assert_array_equal(load_audio(file).samples, load_audio(data).samples)


@pytest.mark.parametrize("cut", [False, True])
def test_other_codecs_in_a_wav(tmp_path, cut):
    encode_sound(tmp_path / "a.wav", "pcm_mulaw", chirp(8000), 8000)
    data = (tmp_path / "a.wav").read_bytes()
    if cut:
        with refuses("truncated: the header promises 8000 bytes of sound, the file holds 4000"):
            load_audio(data[:-4000])
    else:
        assert np.abs(load_audio(Pipe(data)).samples - chirp(8000)).max() < 0.02


def test_a_cut_pipe_is_noticed():
    data = wav(as_pcm(chirp(16000)), 16000, 2)
    assert load_audio(Pipe(data)).duration == 1
    with refuses("Pipe", "truncated", "promises 1.00 s", "holds 0.50 s"):
        load_audio(Pipe(data[:-16000]))


@pytest.mark.parametrize("scale, cure", [(32767, "divide them by 32768"), (2**31 - 1, "scale them"), (9, "32768")])
def test_floats_out_of_scale_name_the_file(tmp_path, scale, cure):
    for name, data in (("a.wav", float_wav(sine(16000, peak=scale)[:, 0], 16000)), ("a.mka", None)):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        else:
            encode_sound(tmp_path / name, "pcm_f32le", sine(16000, peak=scale), 16000)
        with refuses(name, "float samples in -1..1", "a peak of", cure):
            load_audio(tmp_path / name)


@pytest.mark.parametrize("rate", [100, 10_000_000])
def test_odd_rates_name_the_file(tmp_path, rate):
    (tmp_path / "a.wav").write_bytes(wav(np.zeros((100, 1), int), rate, 2))
    with refuses("a.wav", "a sample rate in 1000..768000 Hz", f"{rate} Hz"):
        load_audio(tmp_path / "a.wav")


# -- joined pieces


@pytest.mark.parametrize("sizes", [(10, 10, 10), (10, 5000, 200_000)])
def test_an_mp3_joined_of_tagged_pieces_is_whole(tmp_path, warned, sizes):
    """As speech services give it: each piece with a tag. Bit for bit as without the tags, and nothing to report."""
    pieces = []
    for k in range(3):
        encode_sound(tmp_path / "a.mp3", "libmp3lame", sine(24000, 300 * (k + 1), seconds=1.5), 24000)
        data = (tmp_path / "a.mp3").read_bytes()
        pieces.append(data[data.index(b"\xff\xfb") if b"\xff\xfb" in data else data.index(b"\xff\xf3") :])
    (tmp_path / "joined.mp3").write_bytes(b"".join(id3(n) + p for n, p in zip(sizes, pieces, strict=True)))
    got = load_audio(tmp_path / "joined.mp3")
    np.testing.assert_array_equal(got.samples, load_audio(b"".join(pieces)).samples)
    assert got.duration >= 4.5 and warned() == []
    for k in range(3):
        part = got.mono[len(got.mono) * k // 3 :][: len(got.mono) // 3]
        assert tone(part, 24000) == pytest.approx((300 * (k + 1), 0.5), rel=0.06)


@pytest.mark.parametrize("codec", ["libopus", "flac"])
def test_a_chain_of_ogg_streams_is_whole(tmp_path, warned, codec):
    encode_sound(tmp_path / "a.ogg", codec, chirp(48000), 48000)
    data = (tmp_path / "a.ogg").read_bytes()
    one, two = (load_audio(d).samples for d in (data, data + data))
    assert len(two) == 2 * len(one) and warned() == []
    assert lag(two[len(one) :, 0], one[:, 0]) == 0


def one_after_another(tmp_path: Path, name: str, codec: str, forms: list[tuple[int, int]]) -> Path:
    path, data = tmp_path / name, b""
    for rate, channels in forms:
        encode_sound(path, codec, chirp(rate, 1, channels), rate)
        data += path.read_bytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name, codec, forms, words",
    [
        ("a.aac", "aac", [(44100, 1), (22050, 1)], ["(44100 Hz with 1 channel), got 22050 Hz with 1 channel after 1."]),
        (
            "a.mp3",
            "libmp3lame",
            [(44100, 1), (24000, 1)],
            ["44100 Hz with 1 channel", "24000 Hz", "after"],
        ),  # FFmpeg's first
        ("a.ogg", "flac", [(48000, 1), (24000, 1)], ["(48000 Hz with 1 channel), got 24000 Hz", "after 1.00 s"]),
        ("a.ogg", "flac", [(48000, 1), (48000, 2)], ["(48000 Hz with 1 channel), got 48000 Hz with 2 channels"]),
        ("a.ogg", "libopus", [(48000, 1), (48000, 2)], ["one format of sound throughout, got another one after 1.00"]),
    ],
)
def test_a_format_that_changes_part_way_is_refused_in_a_line(tmp_path, name, codec, forms, words):
    with refuses(name, "one format", *words):
        load_audio(one_after_another(tmp_path, name, codec, forms))


# -- damage


def spoiled(data: bytes, share: float, size: int = 200, seed: int = 0) -> bytes:
    """The bytes with noise written over ``size`` of them."""
    at = int(len(data) * share)
    return data[:at] + np.random.default_rng(seed).bytes(size) + data[at + size :]


@pytest.mark.parametrize(
    "name, codec, lost",
    [  # s of sound that may go with 800 bytes: a few frames, of an Ogg file a page of a second
        ("a.flac", "flac", 0.6),
        ("a.mp3", "libmp3lame", 0.3),
        ("a.m4a", "aac", 0.3),
        ("a.mka", "flac", 0.25),
        ("a.ogg", "libopus", 1.1),
    ],
)
def test_damage_in_the_middle_is_skipped_and_reported_once(tmp_path, warned, name, codec, lost):
    rate, path = 48000, tmp_path / name
    encode_sound(path, codec, chirp(rate, 4), rate)
    data = path.read_bytes()
    whole = load_audio(data)
    assert warned() == []
    path.write_bytes(spoiled(data, 0.5, 800))
    got = load_audio(path)
    assert 0 <= whole.duration - got.duration < lost
    (line,) = warned()
    assert line.startswith(f"audio {str(path)!r}: skipped 1 damaged place") and "the first after " in line
    at = float(line.split("the first after ")[1].split(" s")[0])
    assert 1.5 < at < 2.5
    count = int(at * rate) - 4800
    np.testing.assert_array_equal(got.samples[:count], whole.samples[:count])  # before the damage
    behind = slice(
        -rate * 3 // 4, -rate // 4
    )  # and well behind it, counted from the end; where FFmpeg trims that of an
    late = lag(got.samples[behind, 0], whole.samples[behind, 0])  # MP3 by what it counted, half a frame off
    assert abs(late) < 600 and (name == "a.mp3" or not late)
    middle = got.samples[behind][1000:-1000], whole.samples[behind][1000 - late : -1000 - late]
    assert np.abs(middle[0] - middle[1]).max() < 1e-3


def test_all_damaged_places_are_one_line(tmp_path, warned):
    encode_sound(tmp_path / "a.flac", "flac", chirp(48000, 6), 48000)
    data = (tmp_path / "a.flac").read_bytes()
    for share in (0.3, 0.5, 0.7):
        data = spoiled(data, share, 100)
    got = load_audio(data)
    (line,) = warned()
    assert "skipped 3 damaged places" in line
    missing = float(line.split(", ")[1].split(" s")[0])
    assert 6 - got.duration == pytest.approx(missing, abs=0.006) and missing > 0.2


def test_clusters_of_matroska_that_are_lost_are_reported(tmp_path, warned):
    """FFmpeg goes on with the next cluster without a word."""
    encode_long(tmp_path / "a.mka", 20)
    data = (tmp_path / "a.mka").read_bytes()
    mark, clusters = bytes.fromhex("1f43b675"), []
    while (at := data.find(mark, clusters[-1] + 4 if clusters else 0)) >= 0:
        clusters.append(at)
    assert len(clusters) >= 4
    spot = clusters[1] + 40
    got = load_audio(data[:spot] + bytes(3000) + data[spot + 3000 :])
    (line,) = warned()
    missing = float(line.split(", ")[1].split(" s")[0])
    assert 20 - got.duration == pytest.approx(missing, abs=0.05) and missing > 0.05


def encode_long(path: Path, seconds: int) -> None:
    """A file written second by second, so that Matroska closes its clusters."""
    with av.open(str(path), "w", container_options={"cluster_time_limit": "1000"}) as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        for k in range(seconds):
            part = np.ascontiguousarray(chirp(16000)[:, 0][None])
            frame = av.AudioFrame.from_ndarray(part, "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, k * 16000
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.mark.parametrize(
    "name, codec",
    [("a.flac", "flac"), ("a.mka", "aac"), ("a.mka", "flac"), ("a.webm", "libopus"), ("a.mka", "libmp3lame"),
     ("a.aiff", "pcm_s16be"), ("a.au", "pcm_s16be"), ("a.tta", "tta")],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_ends_early_is_refused(tmp_path, name, codec, share):
    encode_sound(tmp_path / name, codec, chirp(48000, 4), 48000)
    data = (tmp_path / name).read_bytes()
    assert load_audio(data).duration == pytest.approx(4, abs=0.02)
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with refuses(name, "to its end", "truncated: the header promises 4.0"):
        load_audio(tmp_path / name)


def test_sound_shorter_than_its_film_is_whole(tmp_path, warned):
    """A Matroska file lasts as long as its longest stream."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = file.add_stream("flac", rate=16000, layout="mono")
        for _ in range(100):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        file.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(as_pcm(chirp(16000))[:, 0].astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        file.mux(audio.encode(frame))
        file.mux(audio.encode(None))
    assert load_audio(path).duration == 1 and warned() == []


def test_words_in_no_known_encoding_do_no_harm(tmp_path):
    path = tmp_path / "a.mkv"
    with VideoWriter(tmp_path / "a.mp4", 64, 48, sample_rate=16000) as writer:
        writer.write(film(25), chirp(16000))
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(path), "w") as file:
        file.metadata["title"] = "title of a film"
        copies = {s.index: file.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                file.mux(packet)
    data = path.read_bytes()
    assert data.count(b"title of a film") == 1
    path.write_bytes(data.replace(b"title of a film", b"\xfftle \xfe\x80 a \xc3ilm"))
    assert load_audio(path).duration >= 1 and len(read_video(path)[0]) == 25
    assert len(survey(path, 97)) == 25
