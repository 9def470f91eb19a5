"""``rest-fast evaluate``: clips or photos, what is passed on, and options that belong to the other one."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from rest_fast import cli
from rest_fast.evaluation.evaluate import EvaluationError
from rest_fast.files import DEMO
from tests.kit.command import refused


@pytest.fixture
def calls(monkeypatch):
    """Instead of the studies: what they were called with; a report is written."""
    made = []

    def stand_in(name, report):
        def call(model, *given, progress, **options):
            (out,) = (path for path in given if isinstance(path, Path) and path.name == "out")
            out.mkdir()
            (out / report).write_text(f"# {name}\n")
            made.append((name, given, options))

        return call

    monkeypatch.setattr("rest_fast.load", lambda *_, **__: "a model")
    monkeypatch.setattr("rest_fast.evaluation.evaluate.evaluate", stand_in("clips", "evaluation.md"))
    monkeypatch.setattr("rest_fast.evaluation.photos.study.evaluate_photos", stand_in("photos", "photos.md"))
    return made


@pytest.fixture
def face(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "face.png")
    return tmp_path / "face.png"


def test_photos_with_their_defaults(calls, face, tmp_path, capsys):
    assert cli.main(["evaluate", "--photos", str(face), str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    ((name, given, options),) = calls
    assert name == "photos" and given == ([face, tmp_path], [DEMO / "speech.wav"], tmp_path / "out")
    assert options == {"interpreter": None, "seed": 0, "guidance": None}
    assert capsys.readouterr().out == "# photos\n"


def test_photos_with_options(calls, face, tmp_path):
    words = f"evaluate --out {tmp_path / 'out'} --sounds {face} {face} --instruments py --seed 7 --guidance 2 --photos"
    assert cli.main([*words.split(), str(face)]) == 0
    ((_, given, options),) = calls
    assert given == ([face], [face, face], tmp_path / "out")
    assert options == {"interpreter": "py", "seed": 7, "guidance": 2.0}


def test_clips_as_before(calls, tmp_path):
    assert cli.main(["evaluate", str(tmp_path), "--out", str(tmp_path / "out"), "--clips", "3"]) == 0
    ((name, given, options),) = calls
    assert name == "clips" and given == (tmp_path, tmp_path / "out") and options["clips"] == 3


@pytest.mark.parametrize(("words", "says"), [
    ("", "expected DATA or --photos, got neither"),
    ("DATA --photos FACE", "expected DATA or --photos, got both"),
    ("--photos FACE --clips 3", "--clips: expected it with DATA, got it without"),
    ("--photos FACE --landmark-command x", "--landmark-command: expected it with DATA, got it without"),
    ("DATA --sounds FACE", "--sounds: expected it with --photos, got it without"),
    ("DATA --seed 1", "--seed: expected it with --photos, got it without"),
    ("--photos", "--photos: expected at least one argument"),
    ("--photos nowhere", "argument --photos: expected a picture or a folder that can be read, got nowhere"),
    ("--photos FACE --sounds nowhere", "argument --sounds: expected a file that can be read, got nowhere"),
    ("--photos FACE --seed -1", "expected a whole number"),
])  # fmt: skip
def test_combinations_that_are_refused(calls, face, tmp_path, capsys, words, says):
    given = words.replace("DATA", str(tmp_path)).replace("FACE", str(face))
    refused(capsys, ["evaluate", "--out", str(tmp_path / "out"), *given.split()], says)
    assert not calls


def test_a_report_is_not_overwritten(calls, face, tmp_path, capsys):
    (tmp_path / "photos.md").write_text("# older\n")
    refused(capsys, ["evaluate", "--photos", str(face), "--out", str(tmp_path)], "without a report", "photos.md")
    assert not calls


def test_a_stop_says_what_is_left(calls, face, tmp_path, capsys, monkeypatch):
    def stop(*_, progress, **__):
        progress(1, 3)
        raise KeyboardInterrupt

    monkeypatch.setattr("rest_fast.evaluation.photos.study.evaluate_photos", stop)
    assert cli.main(["evaluate", "--photos", str(face), "--out", str(tmp_path / "out")]) == 130
    assert "out is partial: it holds 1 of 3 videos and no report" in capsys.readouterr().err.splitlines()[-1]


def test_refusals_of_the_study_are_one_line(calls, face, tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise EvaluationError("photos: expected a photo that can be measured, got none")

    monkeypatch.setattr("rest_fast.evaluation.photos.study.evaluate_photos", refuse)
    refused(capsys, ["evaluate", "--photos", str(face), "--out", str(tmp_path / "out")], "error: photos: expected")
