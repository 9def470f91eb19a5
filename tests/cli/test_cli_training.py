"""``rest-fast synth`` and ``rest-fast train``: what is passed on. The work itself is tested where it is written."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from rest_fast import cli
from rest_fast.cli.arguments_training import TRAINING_PRESETS
from rest_fast.training import chain
from rest_fast.training.config import PRESETS, training_preset
from rest_fast.training.stages import ABOUT
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
    """Instead of the chain: what it was called with."""
    calls = []

    def run(stage, config, data, out, **options):
        calls.append((stage, config, data, out, options))
        return out / ("asd" if stage == "all" else stage)

    monkeypatch.setattr("rest_fast.training.chain.run", run)
    monkeypatch.delenv("RANK", raising=False)
    return calls


def test_synth(clips, capsys, tmp_path):
    assert cli.main(["synth", str(tmp_path), "--clips", "5"]) == 0
    wanted = {"out": tmp_path, "count": 5, "split": "train", "first": 0, "size": 128, "workers": 0, "videos": 2}
    assert clips == wanted | {"voices": "espeak"}
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path}: 5 clips (train 0 to 4), made in ") and not err


def test_synth_options(clips, capsys):
    words = "synth held --clips 2 --split test --first 7 --size 64 --workers 2 --videos 9 --voices mixed"
    assert cli.main(words.split()) == 0
    wanted = {"out": Path("held"), "count": 2, "split": "test", "first": 7, "size": 64, "workers": 2, "videos": 2}
    assert clips == wanted | {"voices": "mixed"}
    assert "(test 7 to 8)" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "says"), [
    (["out"], "--clips"), (["out", "--clips", "0"], "at least 1, got 0"), (["--clips", "1"], "OUT"),
    (["out", "--clips", "1", "--split", "all"], "expected one of train, validation, test, got 'all'"),
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


ALL = ["all", "--config", "toy", "--data", "/", "--out", "o"]
PLAIN = {"init": None, "vae": None, "resume": False, "device": "auto"}


def test_train(training, capsys):
    assert cli.main(["train", *ALL]) == 0
    assert training == [("all", training_preset("toy"), Path("/"), Path("o"), PLAIN)]
    out, err = capsys.readouterr()
    assert out == f"train all: done; {Path('o', 'asd')} is a checkpoint\n" and not err


def test_train_options(training, capsys, tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    config = training_preset("toy").replace(seed=4)
    (tmp_path / "c.json").write_text(config.to_json())
    words = (
        "--data / --out o --resume --vae demo --device cpu --threads 3 --set asd.smooth=0 --set model.stream.sink=false"
    )
    assert cli.main(["train", "asd", "--config", str(tmp_path / "c.json"), *words.split()]) == 0
    changed = config.replace(asd__smooth=0, model__stream__sink=False)
    options = {"init": None, "vae": "demo", "resume": True, "device": "cpu"}
    assert training == [("asd", changed, Path("/"), Path("o"), options)] and threads == [3]
    assert (
        cli.main(["train", "vae", "--config", "demo", "--data", "/", "--out", "o", "--init", "some/where", "--quiet"])
        == 0
    )
    assert training[1] == ("vae", training_preset("demo"), Path("/"), Path("o"), PLAIN | {"init": "some/where"})
    assert threads == [3]


def test_one_process_of_many_speaks(training, capsys, monkeypatch):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["train", *ALL]) == 0
        assert capsys.readouterr().out.count("\n") == lines


@pytest.mark.parametrize(("argv", "says"), [
    ([], "rest-fast train: error: the following arguments are required: STAGE, --config, --data, --out"),
    (["asd", "--config", "toy", "--data", "/"], "required: --out"),
    (["dance"], "argument STAGE: expected one of vae, speech, teacher"), (["techer"], "; did you mean teacher?"),
    ([*ALL, "--threads", "-1"], "at least 0, got -1"),
    ([*ALL, "--device", "tpu"], "expected one of auto, cpu, cuda, got 'tpu'"),
    ([*ALL, "--config", "tiny"], "expected a file or one of ['demo', 'drawn', 'rest-512', 'toy']"),
    ([*ALL, "--set", "asd.smoth=1"], "got 'smoth'"),
    ([*ALL, "--set", "seed=-1"], "seed: expected at least 0, got -1"),
    ([*ALL, "--data", "nowhere"], "--data: expected a folder that can be read, got nowhere: No such file"),
])  # fmt: skip
def test_train_bad_usage(training, capsys, argv, says):
    refused(capsys, ["train", *argv], says)
    assert not training


def test_train_refusals_of_the_chain_are_one_line(capsys, tmp_path):
    words = ["train", "all", "--config", "toy", "--out", str(tmp_path / "o"), "--data"]
    refused(capsys, [*words, str(tmp_path)], "expected prepared clips with manifest.json", str(tmp_path))
    refused(capsys, [*words, str(tmp_path), "--vae", "demo", "--init", "demo"], "expected one of them, got both")
    assert not (tmp_path / "o").exists()


def test_the_words_are_those_of_the_training():
    """Named again in arguments.py, which imports nothing heavy."""
    assert set(TRAINING_PRESETS) == set(PRESETS)
    assert list(ABOUT) == [*chain.STAGES, "all", "causal-decoder"]


def test_train_help_names_every_stage(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {stage} " in text for stage in ABOUT)
