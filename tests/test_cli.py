"""The command line: what a user types, on real files."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from rest_fast import cli, media
from tests.kit.toys import photo, sound, toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    toy().save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("in")
    Image.fromarray(photo()).save(path / "face.png")
    write_wav(path / "speech.wav", sound(16000, 1.0))
    return path


def write_wav(path, samples, rate=16000):
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def test_render(folder, files, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    code = cli.main(["render", str(files / "face.png"), str(files / "speech.wav"), "-o", str(out),
                     "--weights", str(folder), "--quiet"])  # fmt: skip
    assert code == 0
    frames, _ = media.read_video(out)
    assert len(frames) == 25
    assert "25 frames, 1.00 s" in capsys.readouterr().out


def test_demo_uses_what_is_shipped(tmp_path):
    out = tmp_path / "talking.mp4"
    assert cli.main(["demo", "-o", str(out), "--quiet"]) == 0
    frames, _ = media.read_video(out)
    speech = media.load_audio(cli.ASSETS / "demo" / "speech.wav")
    assert len(frames) == -(-len(speech.samples) * 25 // speech.rate)
    assert frames.shape[1:] == (128, 128, 3)
    # the mouth moves: the lower face changes more over time than the corners of the picture
    motion = frames.astype(np.float32).std(0).mean(-1)
    assert motion[64:112, 40:88].mean() > 2 * motion[:24, :24].mean()


@pytest.mark.parametrize(("change", "text"), [
    ({"photo": "missing.png"}, "expected a readable file"), ({"audio": "face.png"}, "expected"),
    ({"photo": "speech.wav"}, "expected"), ({"out": "out.avi"}, "mp4"), ({"out": "missing/out.mp4"}, "expected"),
    ({"more": ["--steps", "0"]}, "sampling.steps: expected"), ({"more": ["--guidance", "nan"]}, "guidance: expected"),
    ({"more": ["--crop", "0", "0", "10", "50"]}, "expected"), ({"more": ["--weights", "nowhere"]}, "expected a folder"),
    ({"more": ["--seed", "-1"]}, "seed: expected"),
])  # fmt: skip
def test_bad_input_is_one_line_and_code_2(folder, files, tmp_path, capsys, change, text):
    out = tmp_path / change.get("out", "out.mp4")
    args = ["render", str(files / change.get("photo", "face.png")), str(files / change.get("audio", "speech.wav")),
            "-o", str(out), "--weights", str(folder), "--quiet", *change.get("more", [])]  # fmt: skip
    assert cli.main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("rest-fast: error: ")
    assert err.count("\n") == 1
    assert text in err
    assert not out.exists()


def test_interrupt_says_partial_and_130(folder, files, tmp_path):
    write_wav(tmp_path / "long.wav", sound(16000, 120.0))
    out = tmp_path / "out.mp4"
    args = [sys.executable, "-m", "rest_fast.cli", "render", str(files / "face.png"), str(tmp_path / "long.wav"),
            "-o", str(out), "--weights", str(folder), "--quiet"]  # fmt: skip
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 30
    while time.time() < deadline and not (out.exists() and out.stat().st_size > 100_000):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"{out} is partial" in err
    assert len(media.read_video(out)[0]) >= 24


def test_an_input_is_never_the_output(folder, files, tmp_path, capsys):
    face = tmp_path / "face.mp4"
    face.write_bytes((files / "face.png").read_bytes())
    assert cli.main(["render", str(face), str(files / "speech.wav"), "-o", str(face), "--weights", str(folder)]) == 2
    assert "expected another file than the input" in capsys.readouterr().err
    assert face.read_bytes() == (files / "face.png").read_bytes()


def test_interrupt_before_the_first_frame_says_so(folder, files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "old.mp4"
    out.write_bytes(b"precious")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rest_fast.load", interrupt)
    assert cli.main(["render", str(files / "face.png"), str(files / "speech.wav"), "-o", str(out)]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    assert "qk_norm_rope_cache" in capsys.readouterr().out
