"""Modules of benchmarks/, which is no package that is installed."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def module(name: str) -> ModuleType:
    """``benchmarks.NAME``, without the repository on the path, where its ``rest_fast`` would come first."""
    package = types.ModuleType("benchmarks")
    package.__path__ = [str(BENCHMARKS)]
    sys.modules.setdefault("benchmarks", package)
    return importlib.import_module(f"benchmarks.{name}")


def script(name: str) -> ModuleType:
    """A file that is run as one: it finds those beside it by their names alone."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
