"""``rest-fast bench``: what it prints and writes, and what it refuses before anything is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from rest_fast import cli
from rest_fast.latency import suite
from tests.kit.command import refused, write_inputs

WAITS = [0.1, 0.2, 0.3]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(write_inputs(tmp_path_factory.mktemp("in")) / "toy")


@pytest.fixture
def called(monkeypatch):
    """In place of the measures: what they were called with. A run takes no time."""
    seen: list[tuple] = []

    def steps(kind):
        def chosen(sessions, peers=False):
            seen.append((kind, sessions, peers))
            viewers = {"way": "engine", "sessions": 3, "seconds": 2.0, "deadlines_met": 1.0, "underruns": 0}
            if kind == "realtime":
                return {"viewers": lambda model, avatar, options: seen.append(options) or viewers | {"p95_ms": 50.0}}
            return {"chunk": lambda model, avatar, options: seen.append(options) or {"engine": WAITS}}

        return chosen

    for kind in ("quick", "realtime"):
        monkeypatch.setattr(suite, kind, steps(kind))
    return seen


def test_a_quick_run(weights, called, tmp_path, capsys):
    out = tmp_path / "a.json"
    more = ["--quiet", "--lanes", "4", "--threads", "1", "--json", str(out)]
    assert cli.main(["bench", "--weights", weights, *more]) == 0
    shown, err = capsys.readouterr()
    assert shown.startswith("toy in float32 on cpu, 1 thread, ") and not err
    assert "\nnot counted: opening of engines and sessions" in shown
    assert "chunk, engine      3  200  290  298      90\n" in shown
    (_, sessions, peers), options = called
    assert (sessions, peers, options.lanes) == ((1,), False, 4)
    found = json.loads(out.read_text())
    assert found["measured"]["chunk"]["engine"]["count"] == 3 and found["about"]["threads"] == 1
    assert cli.main(["bench", "--compare", str(out), str(out)]) == 0
    assert "chunk, engine, p50_ms     200  200   1.00\n" in capsys.readouterr().out


def test_viewers_in_real_time(weights, called, tmp_path, capsys):
    out = tmp_path / "a.png"
    more = ["--realtime", "--sessions", "3", "3", "1", "--seconds", "2", "--peers", "--plot", str(out)]
    assert cli.main(["bench", "--weights", weights, "--quiet", *more]) == 0
    assert "viewers, 2 s each\n" in capsys.readouterr().out and Image.open(out).size == (920, 280)
    assert called[0] == ("realtime", (3, 1), True) and called[1].seconds == 2.0


@pytest.mark.parametrize(("more", "says"), [
    (["--json", "no/a.json"], "output no/a.json: expected a folder that exists, got "),
    (["--json", "."], "output .: expected a file name that ends in .json"),
    (["--json", "folder.json"], "output folder.json: expected a file, got a folder"),
    (["--plot", "a.png"], "--plot: expected --realtime beside it"),
    (["--realtime", "--plot", "a.jpg"], "output a.jpg: expected a file name that ends in .png"),
    (["--sessions", "0"], "--sessions: expected a whole number in 1..256, got 0"),
    (["--seconds", "0"], "--seconds: expected a number above 0, got 0"),
    (["--realtime", "--seconds", "1"], "--seconds: expected at least 2, in which a first block can come, got 1"),
    (["--lanes", "1"], "--lanes: expected a whole number in 2..512, got 1"),
    (["--weights", "nowhere"], "expected a folder, 'demo' or a hub id owner/name, got 'nowhere'"),
    (["--compare", "a.json", "none.json"], "--compare: expected a file that can be read, got none.json"),
    (["--compare", "a.json", "a.json"], "a.json: expected a file that rest-fast bench --json has written"),
    (["--compare", "a.json", "a.json", "--realtime"], "--compare: expected two files and no measure or output"),
], ids=lambda value: value if isinstance(value, str) else " ".join(value))  # fmt: skip
def test_what_is_refused_before_a_model_is_loaded(more, says, tmp_path, capsys, monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rest_fast.load", loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "a.json").write_text("{}")
    refused(capsys, ["bench", *more], says)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "folder.json"]


@pytest.mark.slow
def test_the_demo_in_half_a_minute(tmp_path):
    """The whole command, as a process."""
    out = tmp_path / "a.json"
    command = [sys.executable, "-m", "rest_fast", "bench", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["measured"]
    assert set(found) == set(suite.quick()) and found["first frame"]["from its sound"]["count"] == 3
