"""The command line: what a user types, on real files."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rest_fast
from rest_fast import cli, media
from rest_fast.cli import terminal
from rest_fast.cli.arguments import build_parser
from rest_fast.cli.parser import join_crop
from rest_fast.files import DEMO
from rest_fast.media import provenance
from tests.kit.command import refused, words, write_inputs

PACKAGE = Path(cli.__file__).parents[1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("in"))


@pytest.fixture
def render_call(monkeypatch):
    """Instead of a render: what it was called with."""
    call = {}

    def fake(model, avatar, speech, out, **options):
        call.update(options, model=model, avatar=avatar, speech=speech)
        out.write_bytes(b"video")
        return rest_fast.rendering.Rendered(out, 16, 0.64)

    monkeypatch.setattr("rest_fast.render", fake)
    return call


class Stdin:
    """What ``rest-fast < file`` reads."""

    def __init__(self, path: Path):
        self.buffer = io.BytesIO(path.read_bytes())

    def isatty(self) -> bool:
        return False


# -- render, demo


def test_render(inputs, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert cli.main(words(inputs, out)) == 0
    frames, rate = media.read_video(out)
    assert len(frames) == 16 and rate == 25
    shown, err = capsys.readouterr()
    assert shown.startswith(f"{out}: 16 frames, 0.64 s, made in ") and shown.endswith("x real time)\n")
    assert not err  # no terminal, no bar
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_demo_uses_what_is_shipped(tmp_path):
    out = tmp_path / "talking.mp4"
    assert cli.main(["demo", "-o", str(out), "--quiet"]) == 0
    frames, _ = media.read_video(out)
    speech = media.load_audio(DEMO / "speech.wav")
    assert len(frames) == -(-len(speech.samples) * 25 // speech.rate)
    assert frames.shape[1:] == (256, 256, 3)
    # the mouth moves: the lower face changes more over time than the corners of the picture
    motion = frames.astype(np.float32).std(0).mean(-1)
    assert motion[128:224, 80:176].mean() > 2 * motion[:48, :48].mean()


def test_demo_takes_a_portrait_that_is_there(inputs, tmp_path, capsys, render_call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "DEMO", tmp_path)
    for name in ("portrait.png", "speech.wav"):
        source = inputs / {"portrait.png": "face.png"}.get(name, name)
        (tmp_path / name).write_bytes(source.read_bytes())
    assert cli.main(["demo", "--portrait", "2", "--weights", str(inputs / "toy")]) == 0
    assert capsys.readouterr().err == "warning: portrait 2 is not installed, using portrait 1\n"
    assert Path("talking.mp4").exists()
    (tmp_path / "portrait_2.png").write_bytes((inputs / "face.png").read_bytes())
    assert cli.main(["demo", "--portrait", "2", "--weights", str(inputs / "toy"), "-o", "b.mp4"]) == 0
    assert not capsys.readouterr().err


def test_paste_back_keeps_the_whole_photo(inputs, tmp_path):
    assert cli.main(words(inputs, tmp_path / "out.mp4", "--paste-back", "--crop", 10, 0, 74, 64)) == 0
    assert media.read_video(tmp_path / "out.mp4")[0].shape == (16, 80, 100, 3)


def test_a_photo_without_a_face_is_noted(inputs, tmp_path, capsys):
    argv = [w for w in words(inputs, tmp_path / "out.mp4") if w not in ("--crop", "center", "--quiet")]
    assert cli.main(argv) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("warning: no face ") and "centre" in err


def test_a_face_that_is_not_found_stops_a_run_where_warnings_are_errors(inputs, tmp_path):
    argv = [w for w in words(inputs, tmp_path / "out.mp4") if w not in ("--crop", "center")]
    command = [sys.executable, "-W", "error::UserWarning", "-m", "rest_fast"]
    done = subprocess.run([*command, *argv], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("rest-fast: error: no face"), done.stderr
    assert done.stderr.count("\n") == 1 and not os.listdir(tmp_path)


@pytest.mark.parametrize("which", ["photo", "audio"])
def test_standard_input(inputs, tmp_path, monkeypatch, render_call, which):
    monkeypatch.setattr(sys, "stdin", Stdin(inputs / {"photo": "face.png", "audio": "speech.wav"}[which]))
    assert cli.main(words(inputs, tmp_path / "out.mp4", **{which: "-"})) == 0
    assert len(render_call["speech"].samples) == 10240
    assert render_call["avatar"].picture.shape == (64, 64, 3)


def test_options_reach_the_library(inputs, tmp_path, render_call):
    more = ["--seed", 3, "--steps", 1, "--guidance", 1.5, "--dtype", "bfloat16", "--device", "cpu", "--paste-back"]
    assert cli.main(words(inputs, tmp_path / "out.mp4", *more)) == 0
    given = {name: render_call[name] for name in ("seed", "steps", "guidance", "paste_back")}
    assert given == {"seed": 3, "steps": 1, "guidance": 1.5, "paste_back": True}
    assert render_call["model"].dtype == torch.bfloat16 and callable(render_call["progress"])


def test_threads_and_the_decoders_dtype_reach_the_model(tmp_path, render_call):
    assert cli.main(["demo", "-o", str(tmp_path / "a.mp4"), "--threads", "3", "--decoder-dtype", "bfloat16"]) == 0
    model = render_call["model"]
    assert (model.threads, model.vae.decoder.dtype, model.dtype) == (3, torch.bfloat16, torch.float32)


def test_a_file_says_that_its_face_is_synthetic_and_shows_a_label(inputs, tmp_path):
    out = [tmp_path / "plain.mp4", tmp_path / "label.mp4", tmp_path / "whole.mp4"]
    for path, more in zip(out, ([], ["--label", "AI"], ["--paste-back"])):
        assert cli.main(words(inputs, path, *more)) == 0
    kinds = ["trainedAlgorithmicMedia", "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
    assert [provenance.read(path) for path in out] == kinds
    plain, labelled = (media.read_video(path)[0].astype(int) for path in out[:2])
    side = plain.shape[1]
    changed = np.abs(labelled - plain).max((0, 3))
    assert changed[side // 2 :, : side // 2].max() > 100 and changed[: side // 2, side // 2 :].max() < 16


def test_crop(inputs, tmp_path, render_call):
    for typed, box in [
        (["10", "0", "50", "40"], (10, 0, 50, 40)),
        (["10,0,50,40"], (10, 0, 50, 40)),
        (["center"], (10, 0, 90, 80)),
    ]:
        _, face, speech, *more = words(inputs, tmp_path / "out.mp4")
        argv = [*more, "--crop", *typed, face, speech]  # before PHOTO, which it must not swallow
        assert cli.main(["render", *argv]) == 0
        assert tuple(render_call["avatar"].box) == box


def test_crop_words():
    assert join_crop(["--crop", "center", "a"]) == ["--crop=center", "a"]
    assert join_crop(["--crop", "1", "-2", "3", "4", "5"]) == ["--crop=1,-2,3,4", "5"]
    assert join_crop(["x", "--crop"]) == ["x", "--crop"]


# -- help, speed of start


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:\n  rest-fast" in text and "usage: rest-fast" in text
    assert not {"None", "False", "[])"} & set(text.split())


def test_without_a_command_comes_the_help(capsys):
    assert cli.main([]) == 0
    assert "examples:" in capsys.readouterr().out


def test_defaults_are_shown(capsys):
    cli.main(["render", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "the same seed gives the same video (default: 0)" in text and "(default: auto)" in text


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(capsys, option):
    assert cli.main([option]) == 0
    assert capsys.readouterr().out == f"rest_fast {rest_fast.__version__}\n"


@pytest.mark.parametrize("module", ["rest_fast", "rest_fast.cli"])
def test_as_a_module(module):
    done = subprocess.run([sys.executable, "-m", module, "-V"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"rest_fast {rest_fast.__version__}\n", "")


def test_help_does_not_wait_for_imports():
    """The command line's own modules import nothing heavy; ``rest_fast/__init__.py`` is left out of this."""
    code = f"""
import sys, types
sys.modules["rest_fast"] = package = types.ModuleType("rest_fast")
package.__path__, package.__version__ = [{str(PACKAGE)!r}], "1.2.3"
from rest_fast import cli
assert cli.main(["--version"]) == cli.main(["render", "--help"]) == 0
print(sorted({{"torch", "numpy", "tqdm", "av", "PIL"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n" and done.returncode == 0


def test_endings_are_those_of_the_library():
    assert tuple(media.CONTAINERS) == cli.ENDINGS


# -- notes, bar, prints


def test_notes_of_the_library(inputs, tmp_path, capsys, monkeypatch):
    logger = logging.getLogger("rest_fast.somewhere")

    def fake(*args, **options):
        logger.debug("detail")
        logger.info("no face detector\ninstalled")
        logger.warning("odd")
        raise ValueError("enough")

    monkeypatch.setattr("rest_fast.load", fake)
    argv = [word for word in words(inputs, tmp_path / "out.mp4") if word != "--quiet"]
    for more, shown in [
        ([], ["note: no face detector installed", "warning: odd"]),
        (["--quiet"], ["warning: odd"]),
        (["--verbose"], ["note: detail", "note: no face detector installed", "warning: odd"]),
    ]:
        assert cli.main([*argv, *more]) == 2
        assert capsys.readouterr().err.splitlines() == [*shown, "rest-fast: error: enough"]
    assert not any(isinstance(h, terminal._Notes) for h in logging.getLogger("rest_fast").handlers)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with terminal.Progress("frames", rate=25) as progress, terminal.notes(logging.INFO):
        progress(0, 200)
        progress._start -= 1.0  # as if a second had passed
        progress._bar.mininterval = 0
        progress(100, 200)
        logging.getLogger("rest_fast").info("hello")
    text = screen.getvalue()
    assert "100/200 frames, 4.0x real time, 00:0" in text and "left" in text
    assert "\rnote: hello\n" in text  # on a line of its own, from its start


def test_an_exception_that_a_server_survives_is_shown_whole(capsys):
    with terminal.notes(logging.INFO):
        try:
            raise ValueError("odd")
        except ValueError:
            logging.getLogger("rest_fast").exception("a session failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: a session failed" and lines[-1] == "ValueError: odd"
    assert any("test_cli.py" in line for line in lines)


@pytest.mark.parametrize("options", [{"quiet": True}, {}])
def test_no_bar_when_quiet_or_in_a_pipe(monkeypatch, options):
    monkeypatch.setattr(sys, "stderr", screen := Terminal() if options else io.StringIO())
    with terminal.Progress("frames", rate=25, **options) as progress:
        progress(100, 200)
    assert progress.done == 100 and not screen.getvalue()


def test_the_library_prints_nothing():
    """Only the command line talks; scripts (``if __name__ == "__main__"``) and ``show_config`` are made to be read."""
    talking = {}
    for path in PACKAGE.rglob("*.py"):
        source = path.read_text()
        calls = [
            n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"
        ]
        if calls and "__main__" not in source:
            talking[path.name] = len(calls)
    assert talking == {"terminal.py": 1, "diagnostics.py": 1}


# -- exit codes


def test_an_error_of_the_program(inputs, tmp_path, capsys, monkeypatch):
    def broken(*args, **options):
        raise KeyError("lost")

    monkeypatch.setattr("rest_fast.load", broken)
    argv = words(inputs, tmp_path / "out.mp4")
    refused(capsys, argv, "internal error: KeyError: 'lost'", "please report", "--debug", code=1)
    assert cli.main([*argv, "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "internal error" in err.splitlines()[-1]


def test_debug_shows_the_traceback_of_bad_input(inputs, tmp_path, capsys):
    assert cli.main(words(inputs, tmp_path / "out.mp4", "--debug", photo="speech.wav")) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "speech.wav" in err.splitlines()[-1]


def test_a_closed_pipe_is_no_error(tmp_path):
    for argv in (["doctor"], ["render", "--help"]):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "rest_fast.cli", *argv]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    assert "qk_norm_rope_cache" in capsys.readouterr().out


def test_doctor_plans_memory(inputs, capsys, monkeypatch):
    """For a preset without weights, for the demo and for a folder, of which only the configuration is read."""
    monkeypatch.setattr("rest_fast.load", lambda *_, **__: pytest.fail("loaded a model"))
    for weights, name in (("rest-512", "rest-512"), ("demo", "demo"), (str(inputs / "toy"), "toy")):
        words = ["--weights", weights, "--sessions", "8", "--lanes", "4", "--device", "cpu", "--dtype", "bfloat16"]
        assert cli.main(["doctor", "--plan", *words]) == 0
        first, *lines = capsys.readouterr().out.splitlines()
        rows = {line[:34].strip(): line[34:].strip() for line in lines}
        assert first == f"{name} in bfloat16, on cpu" and {"fixed", "per session (8)", "per lane (4)"} < set(rows)
        if name == "rest-512":
            assert (rows["cache rows"], rows["decoder states"]) == ("784.0", "825.6")  # 2 x 392.0, 5 x 165.1
    refused(
        capsys, ["doctor", "--plan", "--weights", "nowhere"], "expected a folder, or one of demo, drawn, rest-512, toy"
    )
    refused(capsys, ["doctor", "--plan", "--weights", str(inputs)], "expected a folder with config.json")
    refused(capsys, ["doctor", "--sessions", "8"], "--sessions, --lanes: expected --plan beside them")
    refused(capsys, ["doctor", "--plan", "--sessions", "0"], "--sessions", "expected a whole number")
    refused(capsys, ["doctor", "--plan", "--dtype", "float16", "--device", "cpu"], "float32 or bfloat16 on the CPU")


def test_completion(tmp_path):
    """The script that shtab makes of the parser, as the README says, in a bash."""
    pytest.importorskip("shtab")
    command = [
        sys.executable,
        "-m",
        "shtab",
        "--shell=bash",
        "--prog",
        "rest-fast",
        "rest_fast.cli.arguments.build_parser",
    ]
    script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (tmp_path / "completion").write_text(script)
    typed = (
        "COMP_WORDS=(rest-fast render --d); COMP_CWORD=2; $(complete -p rest-fast | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    )
    shell = ["bash", "-c", f"source completion; {typed}; echo ${{COMPREPLY[*]}}"]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["--device", "--dtype", "--decoder-dtype", "--debug"], done.stderr


def test_every_command_can_be_parsed():
    parser = build_parser()
    train = ["train", "all", "--config", "toy", "--data", "/", "--out", "c"]
    for argv in (["demo"], ["doctor"], ["synth", "x", "--clips", "1"], train, ["render", "-", "-", "-o", "c"]):
        args = parser.parse_args(argv)
        assert args.command in cli.COMMANDS and not args.quiet
