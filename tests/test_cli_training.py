"""``rest-fast synth`` and ``rest-fast train``: what is passed on. The work itself is tested where it is written."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from rest_fast import cli
from rest_fast.arguments import STAGES
from tests.kit.command import refused


@pytest.fixture
def clips(monkeypatch):
    """Instead of the writer of clips: what it was called with."""
    call = {}

    def write_clips(out, count, *, progress, **options):
        call.update(options, out=out, count=count)
        for done in range(count):
            if done == call.get("stop"):
                raise call["by"]
            progress(done + 1, count)

    module = types.ModuleType("clips")
    module.write_clips = write_clips
    monkeypatch.setitem(sys.modules, "rest_fast.training.synthetic.clips", module)
    return call


@pytest.fixture
def training(monkeypatch):
    calls = []
    module = types.ModuleType("demo_weights")
    module.run = lambda stage, work, out, **options: calls.append((stage, work, out, options))
    monkeypatch.setitem(sys.modules, "rest_fast.training.demo_weights", module)
    monkeypatch.setattr("rest_fast.training.demo_weights", module, raising=False)
    return calls


def test_synth(clips, capsys, tmp_path):
    assert cli.main(["synth", str(tmp_path), "--clips", "5"]) == 0
    assert clips == {"out": tmp_path, "count": 5, "split": "train", "first": 0, "size": 128, "workers": 0, "videos": 2}
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path}: 5 clips (train 0 to 4), made in ") and not err


def test_synth_options(clips, capsys):
    words = "synth held --clips 2 --split test --first 7 --size 64 --workers 2 --videos 9"
    assert cli.main(words.split()) == 0
    wanted = {"out": Path("held"), "count": 2, "split": "test", "first": 7, "size": 64, "workers": 2, "videos": 2}
    assert clips == wanted
    assert "(test 7 to 8)" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "says"), [
    (["out"], "--clips"), (["out", "--clips", "0"], "at least 1, got 0"), (["--clips", "1"], "OUT"),
    (["out", "--clips", "1", "--split", "all"], "invalid choice: 'all'"),
    (["out", "--clips", "1", "--first", "-1"], "at least 0, got -1"),
])  # fmt: skip
def test_synth_bad_usage(clips, capsys, argv, says):
    refused(capsys, ["synth", *argv], says)
    assert not clips


def test_synth_stopped(clips, capsys):
    clips.update(stop=3, by=KeyboardInterrupt())
    refused(capsys, ["synth", "out", "--clips", "5"], "interrupted; out is partial: it holds 3 of 5 clips", code=130)
    clips.update(stop=0)
    refused(capsys, ["synth", "out", "--clips", "5"], "interrupted; nothing was written", code=130)
    clips.update(by=FileExistsError("out: holds clips already"))
    refused(capsys, ["synth", "out", "--clips", "5"], "error: out: holds clips already")


def test_a_missing_package_is_named_with_its_cure(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rest_fast.training.synthetic.clips", None)
    refused(
        capsys, ["synth", "out", "--clips", "5"], "rest_fast.training.synthetic.clips", "pip install 'rest_fast[synth]'"
    )


def test_train(training, capsys):
    words = "train dit --work w --clips 10 --dit-steps 20 --mixer-steps 25 --decoder-steps 30 --workers 1 --threads 2"
    assert cli.main(words.split()) == 0
    options = {"clips": 10, "dit_steps": 20, "mixer_steps": 25, "decoder_steps": 30, "workers": 1, "threads": 2}
    assert training == [("dit", Path("w"), None, options)]
    assert cli.main(["train", "all", "--work", "w", "--out", "o"]) == 0
    assert training[1][:3] == ("all", Path("w"), Path("o"))
    assert capsys.readouterr().out.splitlines() == ["train dit: done; results in w", "train all: done; o"]


@pytest.mark.parametrize(("argv", "says"), [
    (["dit"], "expected --work DIR"), (["all", "--work", "w"], "expected --out DIR"),
    (["pack", "--work", "w"], "expected --out DIR"), (["dance", "--work", "w"], "invalid choice: 'dance'"),
    (["dit", "--work", "w", "--threads", "0"], "at least 1, got 0"),
])  # fmt: skip
def test_train_bad_usage(training, capsys, argv, says):
    refused(capsys, ["train", *argv], says)
    assert not training


def test_train_help_names_every_stage(capsys):
    assert cli.main(["train"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {stage} " in text for stage in STAGES)
