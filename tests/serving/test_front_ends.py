"""What pyproject.toml claims of LiveKit Agents and pipecat is what docs/front_ends.json says was tried."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads((ROOT / "docs" / "front_ends.json").read_text())
spec = importlib.util.spec_from_file_location("front_ends", ROOT / "tools" / "front_ends.py")
assert spec is not None and spec.loader is not None
front_ends = importlib.util.module_from_spec(spec)
spec.loader.exec_module(front_ends)


def numbers(version):
    return [int(n) for n in version.split(".")]


@pytest.mark.parametrize("name", front_ends.NAMED)
def test_the_lowest_and_the_newest_were_tried(name):
    rows = [row for row in ROWS if row["front_end"] == name]
    if not rows:
        pytest.skip(f"no results of {name} are stored: make {name}")
    package, lowest, bound = re.fullmatch(
        r"([\w-]+)(?:\[\w+\])?>=([\d.]+),<([\d.]+)", front_ends.requirement(name)
    ).groups()
    found = [numbers(row["versions"][package]) for row in rows]
    assert min(found)[: len(numbers(lowest))] == numbers(lowest)
    assert all(version < numbers(bound) for version in found)
    assert " and ".join(row["dependencies"] for row in rows) == "lowest and newest"
    for row in rows:
        assert row["failed"] == 0 and row["passed"] >= 15, row


@pytest.mark.parametrize("name", front_ends.NAMED)
def test_the_libraries_are_asked_for_by_extras_alone(name):
    """Nothing else of the package imports them, and its modules do not take their names."""
    for path in (ROOT / "rest_fast").rglob("*.py"):
        text = path.read_text()
        if not path.stem.startswith(f"{name}_"):
            assert not re.search(rf"^(?:from|import) {name}\b", text, re.M), path
            assert not re.search(rf"^(?:from|import) rest_fast\.serving\.{name}_", text, re.M), path
        assert path.stem != name
