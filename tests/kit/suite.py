"""The GPU suite (``benchmarks/gpu_suite``) as a package, and a place for it to run in."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


SUITE = ROOT / "benchmarks" / "gpu_suite"


def package() -> list[ModuleType]:
    """``benchmarks/gpu_suite`` under the name that its own entry gives it."""
    if "gpu_suite" not in sys.modules:
        where = {"submodule_search_locations": [str(SUITE)]}
        spec = importlib.util.spec_from_file_location("gpu_suite", SUITE / "__init__.py", **where)
        sys.modules["gpu_suite"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["gpu_suite"])
    names = ("command", "compiled", "evidence", "exhaustive", "judges", "machine")
    names += ("parts", "place", "report", "short", "steps", "wheels")
    return [importlib.import_module(f"gpu_suite.{name}") for name in names]


command, compiled, evidence, exhaustive, judges, machine, parts, places, reports, short, steps, wheels = package()


FOUND = {
    "source": {"digest": "0" * 16, "commit": "abc", "uncommitted_changes": False},
    "nvidia_smi": [],
    "python": "3.12.3",
    "torch": "2.11.0+cu130",
    "problem": "",
}


def place(tmp_path: Path, **more) -> places.Place:
    return places.Place(ROOT, tmp_path / "work", tmp_path / "out", FOUND | more)


def gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()
