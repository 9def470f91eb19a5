"""Bad input on the command line: exit code 2, one line that names it, no traceback, and no file that was not there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest

from rest_fast import cli
from tests.kit.command import refused, words, write_inputs, write_wav


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("in"))
    (folder / "text.png").write_text("not a picture")
    (folder / "folder").mkdir()
    (folder / "empty.wav").write_bytes(b"")
    write_wav(folder / "zero.wav", np.zeros(0))
    (folder / "text.wav").write_text("not a sound")
    write_nan(folder / "nan.wav")
    return folder


def write_nan(path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_f32le", 16000, layout="mono")
        samples = np.full((1, 8000), np.nan, np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "flt", "mono")
        frame.sample_rate = 16000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.mark.parametrize(("given", "more", "says"), [
    ({"photo": "none.png"}, [], ["none.png", "No such file"]),
    ({"photo": "text.png"}, [], ["text.png", "expected a picture"]),
    ({"photo": "folder"}, [], ["folder", "directory"]),
    ({"photo": "speech.wav"}, [], ["speech.wav", "expected a picture"]),
    ({"audio": "none.wav"}, [], ["none.wav", "No such file"]),
    ({"audio": "folder"}, [], ["folder", "directory"]),
    ({"audio": "face.png"}, [], ["face.png", "no audio stream"]),
    ({"audio": "empty.wav"}, [], ["empty.wav", "which is an empty file"]),
    ({"audio": "zero.wav"}, [], ["zero.wav", "expected some audio"]),
    ({"audio": "text.wav"}, [], ["text.wav", "expected audio"]),
    ({"audio": "nan.wav"}, [], ["nan.wav", "NaN"]),
    ({"photo": "-", "audio": "-"}, [], ["PHOTO and AUDIO", "expected one of them"]),
    ({}, ["--steps", "0"], ["--steps", "expected a whole number of at least 1, got 0"]),
    ({}, ["--steps", "many"], ["--steps", "expected a whole number", "many"]),
    ({}, ["--steps", "99999999999"], ["error: --steps: expected at most 1000, got 99999999999"]),
    ({}, ["--guidance", "1e39"], ["error: --guidance: expected a number in -100..100, got 1e+39"]),
    ({}, ["--guidance", "nan"], ["--guidance", "expected a finite number, got nan"]),
    ({}, ["--guidance", "inf"], ["--guidance", "expected a finite number, got inf"]),
    ({}, ["--guidance=-inf"], ["--guidance", "expected a finite number, got -inf"]),
    ({}, ["--seed", "-1"], ["--seed", "-1"]),
    ({}, ["--seed", "1.5"], ["--seed", "1.5"]),
    ({}, ["--seed", str(1 << 64)], ["--seed", "expected a whole number in 0..18446744073709551615"]),
    ({}, ["--crop", "0", "0", "10", "50"], ["--crop", "expected a square", "10 x 50"]),
    ({}, ["--crop", "60", "40", "120", "100"], ["crop", "inside 100 x 80"]),
    ({}, ["--crop", "-5", "0", "40", "45"], ["--crop", "0 <= left < right", "got -5 0 40 45"]),
    ({}, ["--crop", "40", "0", "10", "30"], ["--crop", "0 <= left < right", "got 40 0 10 30"]),
    ({}, ["--crop", "nan", "0", "40", "40"], ["--crop", "0 <= left < right", "got nan 0 40 40"]),
    ({}, ["--crop", "1", "2", "3"], ["--crop", "expected L T R B (four numbers, in pixels) or center, got 1 2 3"]),
    ({}, ["--crop", "left"], ["--crop", "expected L T R B (four numbers, in pixels) or center, got left"]),
    ({}, ["--device", "tpu"], ["--device", "expected auto, cpu, cuda", "tpu"]),
    ({}, ["--dtype", "int8"], ["--dtype", "int8", "float32"]),
    ({}, ["--dtype", "float16", "--device", "cpu"], ["--dtype float16", "expected float32 or bfloat16"]),
    ({}, ["--weights", "nowhere"], ["nowhere", "expected a folder"]),
    ({}, ["--c2pa-key", "none.pem"], ["--c2pa-key", "No such file"]),
    ({}, ["--c2pa-key", __file__], ["expected both --c2pa-cert and --c2pa-key"]),
    ({}, ["--c2pa-timestamp", "http://localhost"], ["expected both --c2pa-cert and --c2pa-key"]),
    ({}, ["--colour", "red"], ["rest-fast render: error: expected an option of rest-fast render, got --colour"]),
    ({}, ["--guidnace", "2"], ["got --guidnace; did you mean --guidance?"]),
    ({}, ["--paste-bakc"], ["; did you mean --paste-back?"]),
    ({}, ["--dtype", "bflaot16"], ["; did you mean bfloat16?"]),
])  # fmt: skip
def test_bad_input(inputs, tmp_path, capsys, given, more, says):
    refused(capsys, words(inputs, tmp_path / "out.mp4", *more, **given), *says)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("argv", [["render"], ["render", "face.png"], ["sing"], ["demo", "extra"], ["--debug"]])
def test_bad_usage(capsys, argv):
    refused(capsys, argv, "error", "--help")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_not_permitted(inputs, tmp_path, capsys):
    secret, closed = tmp_path / "secret.png", tmp_path / "closed"
    shutil.copy(inputs / "face.png", secret)
    secret.chmod(0)
    closed.mkdir(mode=0o500)
    refused(capsys, words(inputs, tmp_path / "out.mp4", photo=secret), "secret.png", "Permission denied")
    refused(capsys, words(inputs, closed / "out.mp4"), "closed", "expected permission to write there")


@pytest.mark.parametrize("which", ["photo", "audio"])
def test_rubbish_on_standard_input(inputs, tmp_path, capsys, monkeypatch, which):
    with open(inputs / "text.png") as rubbish:
        monkeypatch.setattr("sys.stdin", rubbish)
        refused(capsys, words(inputs, tmp_path / "out.mp4", **{which: "-"}), "standard input", "expected")


def test_a_terminal_as_standard_input(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    refused(capsys, words(inputs, tmp_path / "out.mp4", audio="-"), "AUDIO -", "expected", "got a terminal")


def test_a_closed_standard_input(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    refused(capsys, words(inputs, tmp_path / "out.mp4", audio="-"), "AUDIO -", "expected", "got a closed one")


@pytest.mark.parametrize("which", ["photo", "audio"])
def test_endless_standard_input(inputs, tmp_path, capsys, monkeypatch, which):
    monkeypatch.setitem(cli.LIMITS, which.upper(), 3 << 20)
    with open("/dev/zero") as endless:
        monkeypatch.setattr("sys.stdin", endless)
        says = f"{which.upper()} -: expected at most 3 MiB on standard input"
        refused(capsys, words(inputs, tmp_path / "out.mp4", **{which: "-"}), says)


@pytest.mark.parametrize(("argv", "says"), [
    (["rendr"], "argument COMMAND: expected one of render, demo, doctor, bench, serve, synth"),
    (["rendr"], "got 'rendr'; did you mean render?"), (["Doctor"], "; did you mean doctor?"),
    (["prepare_data"], "; did you mean prepare-data?"), (["--verison"], "; did you mean --version?"),
    (["render", "--otu", "x.mp4"], "rest-fast render: error: expected an option of rest-fast render, got --otu; did"),
    (["train", "--stage=vae"], "got --stage"), (["convert", "ltx-vae", "--relaese", "0.9.1"], "mean --release?"),
    (["demo", "--portrait", "3"], "expected one of 1, 2, got '3'"),
])  # fmt: skip
def test_what_was_probably_meant(capsys, argv, says):
    refused(capsys, argv, says)


def test_nothing_is_guessed_where_nothing_is_near(capsys):
    assert "mean" not in refused(capsys, ["sing"], "got 'sing'") + refused(capsys, ["demo", "--colour"], "--colour")


def test_help_wins_over_what_is_wrong(capsys):
    assert cli.main(["render", "--colour", "--help"]) == 0
    assert "usage: rest-fast render" in capsys.readouterr().out


# -- before anything slow


@pytest.mark.parametrize(("given", "more", "says"), [
    ({"photo": "none.png"}, [], "No such file"), ({"audio": "none.wav"}, [], "No such file"),
    ({"audio": "empty.wav"}, [], "an empty file"), ({"photo": "folder"}, [], "directory"),
    ({}, ["--crop", "0", "0", "10", "50"], "square"), ({}, ["--steps", "1001"], "at most 1000"),
    ({}, ["--guidance", "101"], "-100..100"), ({}, ["--dtype", "float16", "--device", "cpu"], "float16"),
    ({"photo": "-", "audio": "-"}, [], "expected one of them"),
])  # fmt: skip
def test_what_is_refused_before_pytorch_is_imported(inputs, tmp_path, given, more, says):
    """Its import takes more than a second. The words are those of a terminal: ``rest-fast`` and no test around it."""
    argv = words(inputs, tmp_path / "out.mp4", *more, **given)
    code = (
        "import sys; from rest_fast import cli; code = cli.main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'numpy', 'av', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.stdout == "2 []\n" and says in done.stderr and done.stderr.count("\n") == 1, done


def test_what_is_refused_before_a_model_is_loaded(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rest_fast.load", lambda *_, **__: pytest.fail("loaded a model"))
    out = tmp_path / "out.mp4"
    refused(capsys, words(inputs, out, "--crop", "60", "40", "120", "100"), "inside 100 x 80")
    refused(capsys, words(inputs, out, audio="text.wav"), "text.wav")
    refused(capsys, words(inputs, out, photo="text.png"), "text.png")
    monkeypatch.setattr("rest_fast.media.load_audio", lambda *_: pytest.fail("decoded the sound"))
    refused(capsys, words(inputs, out, "--weights", "nowhere"), "nowhere")
    refused(capsys, ["evaluate", str(inputs), "--out", str(tmp_path), "--weights", "nowhere"], "nowhere")
    refused(capsys, ["evaluate", "nowhere", "--out", str(tmp_path)], "argument DATA", "nowhere: No such file")
    embedder = ["--embedder", "nowhere.pt2"]
    refused(capsys, ["evaluate", str(inputs), "--out", str(tmp_path), *embedder], "--embedder", "No such file")


# -- weights


def test_truncated_weights(inputs, tmp_path, capsys):
    weights = shutil.copytree(inputs / "toy", tmp_path / "short")
    data = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(
        capsys, words(inputs, tmp_path / "out.mp4", "--weights", weights), "short", "expected a complete safetensors"
    )
    assert os.listdir(tmp_path) == ["short"]


def test_weights_of_another_configuration(inputs, tmp_path, capsys):
    weights = shutil.copytree(inputs / "toy", tmp_path / "other")
    config = json.loads((weights / "config.json").read_text())
    config["dit"]["layers"] += 1
    (weights / "config.json").write_text(json.dumps(config))
    refused(capsys, words(inputs, tmp_path / "out.mp4", "--weights", weights), "other", "expected the", "missing")


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_pickles(inputs, tmp_path, capsys, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps({"weight": 1}))
    refused(capsys, words(inputs, tmp_path / "out.mp4", "--weights", file), file.name, "pickle", "expected a folder")


def test_a_hub_id_that_does_not_download(inputs, tmp_path, capsys, monkeypatch):
    class NetworkError(Exception):
        """Of no kind that this package knows."""

    def fail(*_, **__):
        raise NetworkError("Name or service\nnot known")

    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    argv = words(inputs, tmp_path / "out.mp4", "--weights", "nobody/nothing")
    refused(capsys, argv, "load: nobody/nothing: expected a folder, or a Hugging Face id", "Name or service not known")


# -- device


@pytest.mark.parametrize(("more", "says"), [
    (["--device", "cuda:7"], "--device cuda:7: expected cuda:0 to cuda:1"),
    (["--device", "cuda", "--dtype", "bfloat16"], "--dtype bfloat16: expected float16 or float32 on this GPU"),
    (["--dtype", "bfloat16"], "--dtype bfloat16: expected float16 or float32 on this GPU"),
])  # fmt: skip
def test_what_a_gpu_cannot(inputs, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    refused(capsys, words(inputs, tmp_path / "out.mp4", *more), says)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_gpu(inputs, tmp_path, capsys, monkeypatch, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    says = f"--device {device}: no CUDA device found"
    refused(capsys, words(inputs, tmp_path / "out.mp4", "--device", device), says)
    refused(capsys, ["evaluate", "/", "--out", str(tmp_path / "report"), "--device", device], says)
    refused(capsys, ["prepare-data", "/", str(tmp_path / "data"), "--device", device], says)
    if device == "cuda":
        train = ["train", "all", "--config", "toy", "--data", "/", "--out", str(tmp_path / "run")]
        refused(capsys, [*train, "--device", device], says)


# -- output


@pytest.mark.parametrize(("out", "says"), [
    ("none/out.mp4", "expected a folder that exists"),
    ("folder.mp4", "expected a file, got a folder"),
    ("out.avi", "expected a file name that ends in .mp4"),
    ("out", "expected a file name that ends in .mp4"),
])  # fmt: skip
def test_output_that_cannot_be(inputs, tmp_path, capsys, out, says):
    (tmp_path / "folder.mp4").mkdir()
    refused(capsys, words(inputs, tmp_path / out), str(tmp_path / out), says)
    assert os.listdir(tmp_path) == ["folder.mp4"]


def test_a_folder_where_the_partial_file_goes(inputs, tmp_path, capsys):
    (tmp_path / "out.partial.mp4").mkdir()
    out = tmp_path / "out.mp4"
    refused(capsys, words(inputs, out), f"output {out}: expected a file or nothing at", "partial.mp4, got a folder")
    assert os.listdir(tmp_path) == ["out.partial.mp4"]


def test_standard_output_is_no_place_for_a_video(inputs, capsys):
    refused(capsys, words(inputs, "-"), "output -: expected a file name", "standard output")


@pytest.mark.parametrize("name", ["out.mp4", "out.partial.mp4"])
@pytest.mark.parametrize("which", ["photo", "audio"])
def test_an_input_is_never_the_output(inputs, tmp_path, capsys, which, name):
    source = tmp_path / name
    shutil.copy(inputs / {"photo": "face.png", "audio": "speech.wav"}[which], source)
    before = source.read_bytes()
    refused(capsys, words(inputs, tmp_path / "out.mp4", **{which: source}), name, "expected another file")
    assert source.read_bytes() == before and os.listdir(tmp_path) == [name]


def test_an_older_video_survives_bad_input(inputs, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    for more in (["--crop", "0", "0", "500", "500"], ["--weights", "nowhere"], ["--seed", str(1 << 64)]):
        refused(capsys, words(inputs, out, *more), "expected")
    assert out.read_bytes() == b"precious" and os.listdir(tmp_path) == ["out.mp4"]


def test_warnings_of_other_packages_are_no_lines(inputs, tmp_path, capsys, recwarn):
    """Pillow warns of a picture of 100 megapixels before this package refuses it."""
    from tests.kit.media_files import png_header

    (tmp_path / "huge.png").write_bytes(png_header(10_000, 10_000))
    refused(capsys, words(inputs, tmp_path / "out.mp4", photo=tmp_path / "huge.png"), "huge.png", "megapixels")
    assert not len(recwarn)
