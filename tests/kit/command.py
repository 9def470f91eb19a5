"""For tests of the command line: its inputs on disk, a toy model's weights, and what a refusal has to look like."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from rest_fast import cli
from tests.kit.toys import photo, sound, toy


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def write_inputs(folder: Path) -> Path:
    """``face.png`` (100 x 80), ``speech.wav`` (0.64 s) and ``toy``, the weights."""
    Image.fromarray(photo()).save(folder / "face.png")
    write_wav(folder / "speech.wav", sound(16000, 0.64))
    toy().save(folder / "toy")
    return folder


def words(
    inputs: Path, out: object, *more: object, photo: object = "face.png", audio: object = "speech.wav"
) -> list[str]:
    """The words of a render; names without a folder are of ``inputs``. The photo is noise: no face is looked for."""
    source = [str(name) if name == "-" else str(inputs / str(name)) for name in (photo, audio)]
    return [
        "render",
        *source,
        "-o",
        str(out),
        "--weights",
        str(inputs / "toy"),
        "--crop",
        "center",
        "--quiet",
        *map(str, more),
    ]


def refused(capsys, argv: list[str], *says: str, code: int = 2) -> str:
    """``main(argv)`` ends with ``code`` and one line on stderr, which says all of ``says``."""
    assert cli.main(argv) == code
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("rest-fast") and "Traceback" not in err, err
    assert all(text in err for text in says), err
    assert not out
    return err


def start(*argv: str) -> subprocess.Popen:
    """The command as a process of its own, in which Ctrl-C works also where this one ignores it."""
    return subprocess.Popen(
        [sys.executable, "-m", "rest_fast.cli", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
