"""Video out and in: sync, colours, survival of a killed process."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from rest_fast import media
from rest_fast.media import Audio, VideoWriter, load_audio, read_video, resample
from tests.kit.media_files import chirp, film, lag, psnr, refuses


@pytest.mark.parametrize(
    "name, rate, channels, audio_rate",
    [
        ("a.mp4", 16000, 1, 16000),
        ("a.MP4", 48000, 2, 48000),
        ("a.m4v", 24000, 1, 24000),
        ("a.mov", 44100, 2, 44100),
        ("a.mp4", 8000, 1, 8000),
        ("a.mp4", 96000, 1, 96000),
        ("a.mp4", 23000, 1, 22050),
        ("a.mp4", 50000, 2, 48000),
        ("a.mp4", 192000, 1, 96000),
    ],
)
def test_round_trip(tmp_path, name, rate, channels, audio_rate):
    frames, seconds = film(60), 60 / 25
    sound = chirp(rate, seconds, channels)
    with VideoWriter(tmp_path / name, 64, 48, sample_rate=rate, channels=channels) as writer:
        for at in range(0, 60, 8):
            cut = slice(round(at * rate / 25), round(min(at + 8, 60) * rate / 25))
            writer.write(frames[at : at + 8], sound[cut])
        assert writer.frames == 60 and writer.samples == len(sound)
        assert writer.audio_rate == audio_rate
    got, fps = read_video(tmp_path / name)
    assert got.shape == frames.shape and fps == 25
    assert psnr(got, frames) > 30
    back, length = load_audio(tmp_path / name), round(seconds * audio_rate)
    assert back.rate == audio_rate and back.samples.shape[1] == channels
    assert length <= len(back.samples) < length + 1024  # AAC comes in blocks of 1024
    for c in range(channels):
        want = resample(np.ascontiguousarray(sound[:, c]), rate, audio_rate)
        assert abs(lag(back.samples[:, c], want)) <= audio_rate // 1000
        assert np.corrcoef(back.samples[:length, c], want)[0, 1] > 0.99
    with av.open(str(tmp_path / name)) as file:
        assert next(file.decode(video=0)).pts == 0
        assert 0 <= file.duration / 1e6 - seconds < 1024 / audio_rate + 0.001
    with av.open(str(tmp_path / name)) as file:
        assert next(file.decode(audio=0)).pts == 0


def test_long_sound_stays_in_sync(tmp_path):
    """A click every second of 20 s, through the streaming resampler, is found where it was put."""
    rate, path = 23456, tmp_path / "long.mp4"
    sound = np.zeros(20 * rate, np.float32)
    sound[rate // 2 :: rate] = 0.9
    with VideoWriter(path, 16, 16, sample_rate=rate) as writer:
        for at in range(20):
            writer.write(np.zeros((25, 16, 16, 3), np.uint8), sound[at * rate : (at + 1) * rate])
    got = np.abs(load_audio(path).mono[: 20 * writer.audio_rate]).reshape(20, -1)
    assert np.abs(got.argmax(1) / writer.audio_rate - 0.5).max() < 0.001
    assert read_video(path)[0].shape[0] == 500


def test_how_the_input_is_cut_does_not_matter(tmp_path):
    frames, sound = film(30), chirp(22000, 1.2)
    with VideoWriter(tmp_path / "whole.mp4", 64, 48, sample_rate=22000) as writer:
        writer.write(frames, sound[:, 0])
    rng, done = np.random.default_rng(0), 0
    with VideoWriter(tmp_path / "cut.mp4", 64, 48, sample_rate=22000) as writer:
        for frame in frames:
            n = int(rng.integers(0, 1700))
            writer.write(torch.as_tensor(frame[None]), torch.as_tensor(sound[done : done + n]))
            done += n
        writer.write(frames[:0], sound[done:])
    whole, cut = (load_audio(tmp_path / name).mono for name in ("whole.mp4", "cut.mp4"))
    np.testing.assert_allclose(whole, cut, atol=1e-5)
    for name in ("whole.mp4", "cut.mp4"):  # x264 itself may differ in a block from run to run
        assert psnr(read_video(tmp_path / name)[0], frames) > 30


def test_int16_mono_fills_both_channels(tmp_path):
    want = chirp(16000)[:, 0]
    with VideoWriter(tmp_path / "a.mp4", 64, 48, sample_rate=16000, channels=2) as writer:
        writer.write(film(25), np.int16(want * 32767))
    got = load_audio(tmp_path / "a.mp4").samples[:16000]
    assert np.abs(got - want[:, None]).max() < 0.05


@pytest.mark.parametrize("fps", [25, 30, 12.5, 29.97, Fraction(30000, 1001), 1])
def test_frame_rates_and_key_frames(tmp_path, fps):
    count = 70 if fps > 1 else 3
    with VideoWriter(tmp_path / "a.mp4", 64, 48, fps=fps) as writer:
        writer.write(film(count))
    got, rate = read_video(tmp_path / "a.mp4")
    assert len(got) == count and rate == pytest.approx(float(fps), rel=1e-3)
    with av.open(str(tmp_path / "a.mp4")) as file:
        times = [p.pts * p.time_base for p in file.demux(video=0) if p.pts is not None and p.is_keyframe]
    assert np.diff([*map(float, times), count / float(fps)]).max() <= 1.001


def test_colours_are_bt709_and_say_so(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 64, 48) as writer:
        writer.write(np.broadcast_to(np.uint8([255, 0, 0]), (5, 48, 64, 3)))
    with av.open(str(tmp_path / "a.mp4")) as file:
        frame = next(file.decode(video=0))
    luma = np.frombuffer(bytes(frame.planes[0]), np.uint8)[:64]
    assert frame.colorspace == frame.color_range == 1  # BT.709, 16..235
    assert abs(luma.mean() - (16 + 219 * 0.2126)) < 3  # BT.601 would give 81
    assert np.abs(frame.to_ndarray(format="rgb24") - np.array([255, 0, 0])).max() < 12


def test_max_frames(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 64, 48) as writer:
        writer.write(film(9))
    assert len(read_video(tmp_path / "a.mp4", 4)[0]) == 4
    assert len(read_video((tmp_path / "a.mp4").read_bytes(), 99)[0]) == 9
    with refuses("max_frames", "0"):
        read_video(tmp_path / "a.mp4", 0)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"path": "a.avi"}, ["a.avi", ".mp4, .m4v, .mov", "'.avi'"]),
        ({"path": "noending"}, [".mp4, .m4v, .mov", "''"]),
        ({"path": "nowhere/a.mp4"}, ["nowhere/a.mp4", "written", "No such file"]),
        ({"path": "folder.mp4"}, ["folder.mp4", "written", "irectory"]),
        ({"width": 63}, ["even", "63 x 48"]),
        ({"height": 47}, ["even", "64 x 47"]),
        ({"width": 0}, ["width", "0"]),
        ({"width": 64.0}, ["width", "whole", "64.0"]),
        ({"fps": 0}, ["fps", "0"]),
        ({"fps": float("nan")}, ["fps", "nan"]),
        ({"fps": "25"}, ["fps", "'25'"]),
        ({"sample_rate": 0}, ["sample_rate", "0"]),
        ({"sample_rate": 44100.5}, ["sample_rate", "44100.5"]),
        ({"channels": 3}, ["channels", "3"]),
        ({"crf": 52}, ["crf", "52"]),
        ({"crf": "18"}, ["crf", "'18'"]),
        ({"preset": "quick"}, ["preset", "veryfast", "'quick'"]),
    ],
)
def test_bad_writers(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("folder.mp4").mkdir()
    Path("a.mp4").write_bytes(b"precious")
    with refuses(*words):
        VideoWriter(**{"path": "a.mp4", "width": 64, "height": 48, **arguments})
    assert Path("a.mp4").read_bytes() == b"precious"  # the old file outlives a refusal


def test_bad_writes_write_nothing(tmp_path):
    path, frames = tmp_path / "a.mp4", film(5)
    with VideoWriter(path, 64, 48, sample_rate=16000) as writer:
        writer.write(frames, np.zeros(3200, np.float32))
        for bad in (frames[0], frames[:, :, 1:], frames / 255, frames.transpose(0, 3, 1, 2), None):
            with refuses("frames"):
                writer.write(bad)
        for bad in (np.zeros((9, 2)), np.zeros(9, np.int32), np.array([np.nan]), np.array([900.0])):
            with refuses("audio"):
                writer.write(frames, bad)
        assert writer.frames == 5 and writer.samples == 3200
    with refuses("open writer"):
        writer.write(frames)
    writer.close()
    assert len(read_video(path)[0]) == 5
    with VideoWriter(path, 64, 48) as writer, refuses("audio", "sample_rate"):
        writer.write(frames, np.zeros(3200, np.float32))


def test_nothing_written(tmp_path):
    VideoWriter(tmp_path / "a.mp4", 64, 48, sample_rate=16000).close()
    with refuses("a.mp4", "video"):
        read_video(tmp_path / "a.mp4")


def test_an_exception_leaves_a_whole_file(tmp_path):
    path, frames, sound = tmp_path / "a.mp4", film(33), chirp(16000, 33 / 25)

    def work() -> None:
        with VideoWriter(path, 64, 48, sample_rate=16000) as writer:
            writer.write(frames, sound)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert psnr(read_video(path)[0], frames) > 30
    assert len(load_audio(path).samples) >= len(sound)


@pytest.mark.parametrize("sounds", [True, False])
def test_the_file_grows_while_it_is_written(tmp_path, sounds):
    """What is readable after each write, from the disk, trails by less than half a second."""
    path, frames = tmp_path / "a.mp4", film(75)
    with VideoWriter(path, 64, 48, sample_rate=16000 if sounds else None) as writer:
        for at in range(0, 75, 5):
            writer.write(frames[at : at + 5], chirp(16000, 0.2)[:, 0] if sounds else None)
            if at >= 15:
                assert len(read_video(path.read_bytes())[0]) >= at + 5 - 12


KILLED = """
import sys, numpy as np
from rest_fast.media import VideoWriter
frames, sound = np.load(sys.argv[2]), np.load(sys.argv[3])
writer = VideoWriter(sys.argv[1], 64, 48, sample_rate=16000)
for at in range(0, 100, 5):
    writer.write(frames[at:at + 5], sound[at * 640:(at + 5) * 640])
print("written", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_a_playable_file(tmp_path):
    path, frames, sound = tmp_path / "a.mp4", film(100), chirp(16000, 4)
    np.save(tmp_path / "frames.npy", frames)
    np.save(tmp_path / "sound.npy", sound)
    root = str(Path(media.__file__).parents[2])
    command = [sys.executable, "-c", KILLED, path, tmp_path / "frames.npy", tmp_path / "sound.npy"]
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout.readline().strip() == b"written"
        finally:
            process.kill()
    got, fps = read_video(path)
    assert len(got) >= 75 and fps == 25  # all but the last second
    assert psnr(got, frames[: len(got)]) > 30
    back = load_audio(path)
    assert back.duration >= 3 and lag(back.mono, sound[:, 0]) == 0


def test_audio_is_a_plain_value():
    sound = Audio(np.float32([[1, 0], [0, 1]]), 2)
    assert sound.duration == 1 and sound.mono.tolist() == [0.5, 0.5]
    with pytest.raises(AttributeError):
        sound.rate = 3


ENCODE = """
import os, sys
cores = sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]
os.sched_setaffinity(0, cores)
import numpy as np
from rest_fast.media import VideoWriter
x = np.arange(240)
frames = np.stack([np.stack([(x[:, None] * 3 + x * (i + 1)) % 251] * 3, -1) for i in range(30)]).astype(np.uint8)
with VideoWriter(sys.argv[2], 240, 240, sample_rate=16000) as writer:
    writer.write(frames, np.zeros(19200, np.float32))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_bytes_do_not_depend_on_the_number_of_cores(tmp_path):
    """x264 cuts a picture into as many slices as it finds cores, unless it is told how many."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one core")
    files = []
    for cores in (1, 1000):
        file = tmp_path / f"{cores}.mp4"
        subprocess.run([sys.executable, "-c", ENCODE, str(cores), str(file)], check=True, timeout=120)
        files.append(file.read_bytes())
    assert files[0] == files[1]
