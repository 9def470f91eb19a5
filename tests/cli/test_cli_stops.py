"""Runs that end half way: what is left plays and is named as partial, and an older video survives."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rest_fast import cli, media
from rest_fast.cli import terminal
from tests.kit.command import refused, start, wait_for, words, write_inputs, write_wav
from tests.kit.toys import sound


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("in"))
    write_wav(folder / "long.wav", sound(16000, 600.0))
    return folder


@pytest.fixture
def out(tmp_path):
    """With an older video in its place."""
    path = tmp_path / "out.mp4"
    path.write_bytes(b"precious")
    return path


@pytest.mark.parametrize(("number", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_half_way(inputs, out, number, code, word):
    partial = out.with_name("out.partial.mp4")
    process = start(*words(inputs, out, audio="long.wav"))
    wait_for(lambda: (partial.exists() and partial.stat().st_size > 50_000) or process.poll() is not None)
    process.send_signal(number)
    shown, err = process.communicate(timeout=60)
    assert process.returncode == code and not shown
    assert err.count("\n") == 1 and err.startswith(f"rest-fast: {word}; {partial} is partial: it plays the first ")
    frames = len(media.read_video(partial)[0])
    assert (
        abs(frames / 25 - float(err.split("first ")[1].split(" s")[0])) < 0.33 and frames >= 8
    )  # the block in hand may be in
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_during_the_imports(inputs, out, number):
    """The first sign of life is the compiled code of PyTorch, mapped half way through the imports."""
    process = start(*words(inputs, out))
    if not import_is_lazy():
        process.communicate(timeout=60)
        pytest.skip("rest_fast/__init__.py imports PyTorch before the command line runs")
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtorch" in maps.read_text() or process.poll() is not None)
    process.send_signal(number)
    shown, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and not shown
    assert err.count("\n") == 1 and "nothing was written" in err
    assert out.read_bytes() == b"precious" and os.listdir(out.parent) == ["out.mp4"]


def import_is_lazy() -> bool:
    return (
        subprocess.run([sys.executable, "-c", "import rest_fast, sys; sys.exit('torch' in sys.modules)"]).returncode
        == 0
    )


def test_interrupt_before_the_first_frame(inputs, out, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rest_fast.load", interrupt)
    refused(capsys, words(inputs, out), "interrupted; nothing was written", code=130)
    assert out.read_bytes() == b"precious" and os.listdir(out.parent) == ["out.mp4"]


def test_an_interrupt_that_a_library_turns_into_its_own_error(inputs, out, capsys, monkeypatch):
    def load(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            raise ImportError("numpy: cannot load") from None

    monkeypatch.setattr("rest_fast.load", load)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    refused(capsys, words(inputs, out), "terminated; nothing was written", code=143)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_disk_full(inputs, out, capsys):
    """A limit on the size of files stands for a disk that is full: both are an error of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        code = cli.main(words(inputs, out, audio="long.wav"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    partial = out.with_name("out.partial.mp4")
    assert code == 2 and err.count("\n") == 1
    assert "error: " in err and "too large" in err and f"{partial} is partial: it plays the first" in err
    assert len(media.read_video(partial, 8)[0]) == 8
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize(("blocks", "left"), [(0, ["out.mp4"]), (1, ["out.mp4", "out.partial.mp4"])])
@pytest.mark.parametrize(("error", "code"), [(OSError(errno.ENOSPC, "No space left on device"), 2), (KeyError("x"), 1)])
def test_an_error_after_some_blocks(inputs, out, capsys, monkeypatch, blocks, left, error, code):
    whole = media.VideoWriter.write

    def write(writer, frames, audio=None):
        if writer.frames >= 8 * blocks:
            raise error
        whole(writer, frames, audio)

    monkeypatch.setattr(media.VideoWriter, "write", write)
    err = refused(capsys, words(inputs, out), str(error), code=code)
    assert ("partial" in err) == bool(blocks)
    assert sorted(os.listdir(out.parent)) == left and out.read_bytes() == b"precious"


def test_a_link_stays_a_link(inputs, out, tmp_path, capsys):
    link = tmp_path / "link.mp4"
    link.symlink_to(out)
    assert cli.main(words(inputs, link)) == 0
    assert link.is_symlink() and len(media.read_video(out)[0]) == 16


def test_an_earlier_partial_file_is_replaced(inputs, out):
    partial = out.with_name("out.partial.mp4")
    partial.write_bytes(b"old")
    assert cli.main(words(inputs, out)) == 0
    assert not partial.exists() and len(media.read_video(out)[0]) == 16


def test_a_video_that_another_run_writes(inputs, out, capsys):
    partial = out.with_name("out.partial.mp4")
    partial.write_bytes(b"half")
    with open(partial) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(capsys, words(inputs, out), f"output {out}: expected a file that no other run is writing")
        assert partial.read_bytes() == b"half" and out.read_bytes() == b"precious"
    assert cli.main(words(inputs, out)) == 0
    assert os.listdir(out.parent) == ["out.mp4"]


def test_a_second_run_while_the_first_writes(inputs, out, capsys, monkeypatch):
    """The lock survives that the writer opens the file."""
    write, codes = media.VideoWriter.write, []

    def second(writer, frames, audio=None):
        write(writer, frames, audio)
        if not codes:
            codes.append(0)
            codes.append(cli.main(words(inputs, out)))

    monkeypatch.setattr(media.VideoWriter, "write", second)
    assert cli.main(words(inputs, out)) == 0
    assert codes == [0, 2] and "another rest-fast writes" in capsys.readouterr().err
    assert len(media.read_video(out)[0]) == 16 and os.listdir(out.parent) == ["out.mp4"]


def test_a_partial_file_that_is_a_link(inputs, out):
    kept = out.with_name("kept.mp4")
    kept.write_bytes(b"kept")
    out.with_name("out.partial.mp4").symlink_to(kept)
    assert cli.main(words(inputs, out)) == 0
    assert kept.read_bytes() == b"kept" and not out.is_symlink()


def test_an_interrupt_just_after_the_video_is_whole(inputs, out, capsys, monkeypatch):
    replace = os.replace

    def interrupt(*names):
        replace(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    refused(capsys, words(inputs, out), f"interrupted; {out} is complete", code=130)
    assert len(media.read_video(out)[0]) == 16


# -- standard streams


def shell(inputs, out, redirection: str) -> subprocess.CompletedProcess:
    line = f'"$0" -m rest_fast.cli "$@" {redirection}'
    command = ["sh", "-c", line, sys.executable, *words(inputs, out)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_full_disk_behind_standard_output(inputs, out):
    done = shell(inputs, out, "> /dev/full")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "No space left" in done.stderr and "standard output" in done.stderr
    assert done.stderr.endswith(f"; {out} is complete\n") and len(media.read_video(out)[0]) == 16


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams(inputs, out, redirection):
    done = shell(inputs, out, redirection)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(media.read_video(out)[0]) == 16


def test_bar_and_notes_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with terminal.Progress("frames") as progress, terminal.notes(0):
        progress(8, 16)
        logging.getLogger("rest_fast").warning("unheard")
    terminal.say("unheard", None)
    assert progress.done == 8
