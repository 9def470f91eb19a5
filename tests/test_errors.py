"""One base for all errors, all of them at the top of the package, and a warning that names the line to change."""

from __future__ import annotations

import ast
import builtins
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import rest_fast
from rest_fast import errors, media

PACKAGE = Path(rest_fast.__file__).parent
# Stopped is a KeyboardInterrupt; Dropped is what a rule answers, and Unknown why a measure of photos is null: neither
# leaves its module. InputError is the command line's own.
NOT_PUBLIC = {"Stopped", "Dropped", "Unknown", "InputError"}


def exceptions_in_sources() -> dict[str, str]:
    """Class names whose bases lead to a builtin exception, with their modules: read, so that no extra is needed."""
    classes = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(["rest_fast", *path.relative_to(PACKAGE).with_suffix("").parts])
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
                classes[node.name] = (module, bases)
    known = {n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)}
    found: dict[str, str] = {}
    while new := {n: m for n, (m, bases) in classes.items() if n not in found and bases & (known | set(found))}:
        found |= new
    return found


def test_every_exception_of_the_package_is_public_and_has_the_one_base():
    found = exceptions_in_sources()
    assert {"MediaError", "NoFace", "Stopped", "RestFastWarning"} <= set(found)
    for name, module in found.items():
        kind = getattr(importlib.import_module(module), name)
        assert issubclass(kind, errors.RestFastError | UserWarning) or name in ("Stopped", "Dropped", "Unknown"), name
        assert (name in rest_fast.__all__) == (name not in NOT_PUBLIC), name
        if name not in NOT_PUBLIC:
            assert getattr(rest_fast, name) is kind


def test_a_handler_for_value_errors_still_works():
    for name in set(rest_fast.__all__) & set(exceptions_in_sources()) - {"RestFastError", "RestFastWarning"}:
        assert issubclass(getattr(rest_fast, name), ValueError | RuntimeError), name


@pytest.mark.parametrize(("module", "name"), [
    ("media", "MediaError"), ("avatar", "AvatarError"), ("streaming.session", "SessionClosed"),
    ("streaming.snapshot", "StateError"),
    ("checkpoint", "CheckpointError"), ("config", "ConfigError"), ("ops.dispatch", "OpError"),
])  # fmt: skip
def test_the_modules_that_raise_them_have_them_too(module, name):
    assert getattr(importlib.import_module(f"rest_fast.{module}"), name) is getattr(rest_fast, name)


def test_errors_can_be_named_before_pytorch_is_imported():
    code = "import sys, rest_fast; rest_fast.RestFastError, rest_fast.MediaError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_warning_names_the_line_of_the_caller():
    """Outside of the package and of PyTorch, whose decorators stand between."""
    source = (
        "from rest_fast.errors import warn\n@no_grad()\ndef inner():\n    warn('careful')\ndef outer():\n    inner()\n"
    )
    import torch

    package = {"__name__": "rest_fast.somewhere", "no_grad": torch.no_grad}
    exec(compile(source, "somewhere.py", "exec"), package)
    with pytest.warns(rest_fast.RestFastWarning, match="careful") as caught:
        package["outer"]()
    assert caught[0].filename == __file__


def test_the_same_line_is_told_once():
    import torch

    package = {"__name__": "rest_fast.somewhere", "no_grad": torch.no_grad}
    exec("from rest_fast.errors import warn\ndef call():\n    warn('careful')\n", package)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            package["call"]()
    assert len(caught) == 1


def test_the_first_mistakes_with_a_session(model, avatar, tmp_path):
    """Each in one line that says what belongs there, and all of them errors of this package."""
    out, sound = tmp_path / "out.mp4", media.Audio(np.zeros((1600, 1), np.float32), 16000)
    with model.session(avatar) as session:
        calls = {
            "avatar: expected what model.prepare": lambda: model.session("face.png"),
            "render: avatar: expected what model.prepare": lambda: rest_fast.render(model, "face.png", sound, out),
            "render: speech: expected a path": lambda: rest_fast.render(model, avatar, sound.samples, out),
            "render: model: expected what load": lambda: rest_fast.render("demo", avatar, sound, out),
            "expected a name that ends in": lambda: rest_fast.render(model, avatar, sound, tmp_path / "out.avi"),
            "seed: expected": lambda: model.session(avatar, seed=-1),
            "sample_rate: expected": lambda: model.session(avatar, sample_rate=4000),
            "shown_pts: expected": lambda: session.interrupt(shown_pts="now"),
            "expected a SessionState .SessionState.from_bytes": lambda: session.restore(session.snapshot().to_bytes()),
        }
        for message, call in calls.items():
            with pytest.raises(rest_fast.RestFastError, match=message):
                call()
    assert not list(tmp_path.iterdir())
