"""What type checkers see of an install, by a wheel and editable: right uses pass, and each wrong one is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Without PyTorch in the environment a Model has a base of unknown type, so that its attributes are no test: calls are.
PROGRAM = """
from typing import Any
import rest_fast

pcm: Any = None
model = rest_fast.load("demo", device="cpu")
avatar = model.prepare("face.png", crop="center")
rest_fast.render(model, avatar, "speech.wav", "talking.mp4", seed=0, progress=True)
with model.session(avatar, sample_rate=48000, seed=0) as session:
    session.push_audio(pcm)
    for block in session.blocks(idle=True):
        seconds: float = block.pts
        print(seconds, block.video.shape, len(block.audio), block.epoch)
    session.interrupt(shown_pts=1.0)
    state: rest_fast.SessionState = session.snapshot()
    session.restore(state)

rest_fast.load("demo", devise="cpu")  # wrong
rest_fast.render(model, "face.png", "speech.wav", "talking.mp4")  # wrong
model.session("face.png", sample_rate=48000)  # wrong
session.push_sound(pcm)  # wrong
for block in session.blocks():
    print(block.frames)  # wrong
    words: str = block.pts  # wrong
"""
WRONG = [n for n, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# wrong")]


def program(name: str) -> str | None:
    """A program of this environment, else one on PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, tmp_path_factory) -> Path:
    """The interpreter of a new environment that holds this package and nothing else. No compiler: in seconds."""
    pytest.importorskip("scikit_build_core", reason="builds without isolation")
    where = tmp_path_factory.mktemp(request.param)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True)
    python = where / "bin" / "python"
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    site = Path(purelib.strip())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    command += [
        "--no-compile",
        "--target",
        str(site),
        *(["--editable"] if request.param == "editable" else []),
        str(ROOT),
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REST_FAST_")}
    environment |= dict.fromkeys(("CXX", "CC", "CUDACXX"), "/nonexistent")
    done = subprocess.run(command, env=environment, cwd=where, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # With a compiler, an editable install has the compiled modules here: a folder of the package's name, without
    # __init__.py, which hides the package from a checker that stops at the first folder it finds.
    (site / "rest_fast").mkdir(exist_ok=True)
    return python


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


def test_mypy(installed, source):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(installed), "--config-file=", source.name]
    environment = {k: v for k, v in os.environ.items() if k != "MYPYPATH"}
    done = subprocess.run(command, cwd=source.parent, env=environment, text=True, capture_output=True)
    assert sorted({int(n) for n in re.findall(r"^program\.py:(\d+): error", done.stdout, re.M)}) == WRONG, done.stdout


def test_pyright(installed, source):
    pyright = program("pyright") or program("basedpyright")
    if pyright is None:
        pytest.skip("no pyright on this machine")
    if subprocess.run([pyright, "--version"], capture_output=True).returncode != 0:
        pytest.skip("pyright is installed, but it does not start (it needs Node.js and, once, the npm registry)")
    command = [pyright, "--pythonpath", str(installed), "--outputjson", source.name]
    done = subprocess.run(command, cwd=source.parent, text=True, capture_output=True)
    found = [d for d in json.loads(done.stdout)["generalDiagnostics"] if d["severity"] == "error"]
    assert sorted({d["range"]["start"]["line"] + 1 for d in found}) == WRONG, done.stdout


def test_no_other_name_is_importable(installed, tmp_path):
    """Neither what lies in the repository (``kernels`` is another project's package) nor what lies beside it."""
    names = {path.stem for path in ROOT.iterdir() if path.stem.isidentifier()} | {ROOT.name}
    names -= {"rest_fast", *sys.stdlib_module_names}
    code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    shown = subprocess.check_output([installed, "-c", code, "rest_fast", *sorted(names)], cwd=tmp_path, text=True)
    assert "kernels" in names and shown.strip() == "['rest_fast']"
    code = "import rest_fast.kernels as k; print(k.__file__)"
    assert (
        subprocess.check_output([installed, "-c", code], cwd=tmp_path, text=True)
        .strip()
        .endswith("kernels/__init__.py")
    )
