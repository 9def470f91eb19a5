"""Checks of files that are made before anything is read. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rest_fast.errors import MediaError

DEMO = Path(__file__).parent / "assets" / "demo"  # the shipped model, portraits and speech


def refuse_input(out: str | Path, *inputs: Any) -> None:
    """MediaError when the output would overwrite one of the inputs."""
    for given in inputs:
        is_path = isinstance(given, str | os.PathLike) and os.path.exists(out) and os.path.exists(given)
        if is_path and os.path.samefile(out, given):
            raise MediaError(f"output {os.fspath(out)!r}: expected another file than the input, got the same")
