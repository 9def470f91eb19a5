"""The programs of ``examples/``: each is run with a small model, and does what it says."""

from __future__ import annotations

import re
import runpy
import socket
from pathlib import Path

import numpy as np
import pytest

from rest_fast import media
from tests.kit.command import write_inputs, write_wav
from tests.kit.serving import Served, fake_service
from tests.kit.toys import sound

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = 80


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("in"))
    write_wav(folder / "speech.wav", sound(16000, 1.6))
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example in this process; what it printed."""

    def call(name, *words):
        monkeypatch.setattr("sys.argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_all_are_short_and_listed():
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < LINES and f"[{path.name}]({path.name})" in listed


def test_render_file(run, inputs, tmp_path):
    run("render_file", inputs / "face.png", inputs / "speech.wav", tmp_path / "a.mp4", "--model", inputs / "toy")
    assert len(media.read_video(tmp_path / "a.mp4")[0]) == 40


def test_live_sound(run, inputs):
    words = run("live_sound", inputs / "face.png", inputs / "speech.wav", "--seconds", 3, "--model", inputs / "toy")
    said = [line.partition("the face ")[2].split(",")[0] for line in words.splitlines()]
    assert len(said) == 4 and "speaks" in said and said[0] == "idles"  # at 0, 1, 2 and 3 s


def test_asyncio_service(run, inputs):
    more = ["--seconds", 2, "--model", inputs / "toy"]
    words = run("asyncio_service", inputs / "face.png", inputs / "speech.wav", *more)
    assert "interrupted; the picture goes on at" in words and "Finished(id='greeting'" in words
    assert "interrupted=True" in words and "'interrupts': 1" in words


def test_many_sessions(run, inputs):
    more = ["--viewers", 3, "--seconds", 1, "--model", inputs / "toy"]
    words = run("many_sessions", inputs / "face.png", inputs / "speech.wav", *more)
    assert words.count("1.0 s, ") + words.count("1.3 s, ") + words.count("refused: ") == 3


def test_websocket_client(run, inputs, tmp_path):
    service = fake_service(sessions=2)
    with Served(service, page=False) as served:
        where = served.url("", "ws")
        words = run("websocket_client", where, inputs / "speech.wav", tmp_path / "b.mp4", "--avatar", "fake")
        with pytest.raises(SystemExit, match="NO_SUCH_AVATAR: avatar: expected"):
            run("websocket_client", where, inputs / "speech.wav", tmp_path / "c.mp4", "--avatar", "nobody")
    assert '"id": "all"' in words and '"interrupted": false' in words
    video = media.read_video(tmp_path / "b.mp4")[0]
    assert 40 <= len(video) < 100 and np.ptp(video) > 200


def test_websocket_client_says_in_a_line_that_nobody_answers(run, inputs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"ws://127.0.0.1:{free.getsockname()[1]}"  # bound, and not listening
        with pytest.raises(SystemExit, match=f"{where}: expected a server"):
            run("websocket_client", where, inputs / "speech.wav", tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()


def test_webrtc_server(run, inputs):
    assert run("webrtc_server", "--check", "--model", inputs / "toy") == "['portrait', 'portrait_2']\n"


def test_livekit_agent(run, inputs):
    pytest.importorskip("livekit.agents", reason="livekit-agents is not installed: make front-ends")
    words = run("livekit_agent", inputs / "face.png", inputs / "speech.wav", "--model", inputs / "toy")
    frames, heard = re.search(r"(\d+) frames, ([\d.]+) s of sound", words).groups()
    assert int(frames) > 35 and float(heard) == pytest.approx(1.6, abs=0.15)


def test_pipecat_bot(run, inputs):
    pytest.importorskip("pipecat", reason="pipecat-ai is not installed: make front-ends")
    words = run("pipecat_bot", inputs / "face.png", inputs / "speech.wav", "--model", inputs / "toy")
    pictures, heard = re.search(r"(\d+) pictures, ([\d.]+) s of sound", words).groups()
    assert int(pictures) > 35 and float(heard) == pytest.approx(1.6, abs=0.15)
