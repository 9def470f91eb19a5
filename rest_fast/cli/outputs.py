"""Files that commands write, refused before any work is done. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from rest_fast.cli.terminal import InputError


def writable(name: str) -> Path:
    """Where an output goes; InputError if no file can be written there."""
    out = Path(os.path.realpath(name))  # a link stays one
    if not out.parent.is_dir():
        raise InputError(f"output {name}: expected a folder that exists, got {out.parent}, which does not")
    if out.exists() and not out.is_file():
        raise InputError(f"output {name}: expected a file, got {'a folder' if out.is_dir() else 'a device'}")
    if not os.access(out.parent, os.W_OK) or (out.exists() and not os.access(out, os.W_OK)):
        raise InputError(f"output {name}: expected permission to write there, got none")
    return out
