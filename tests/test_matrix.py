"""What pyproject.toml claims of Pythons and versions is what docs/matrix.json says was tried."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("matrix", ROOT / "tools" / "matrix.py")
assert spec is not None and spec.loader is not None
matrix = importlib.util.module_from_spec(spec)
spec.loader.exec_module(matrix)

RESULTS = json.loads((ROOT / "docs" / "matrix.json").read_text())
SERVER = json.loads((ROOT / "docs" / "matrix_server.json").read_text())  # the newest are those of CI
ROWS = {(row["python"].rpartition(".")[0], row["dependencies"]): row for row in RESULTS["environments"]}
PROJECT = (ROOT / "pyproject.toml").read_text()


def parts(version: str) -> tuple[int, ...]:
    """The numbers of a version, without trailing zeros: 4.45 is 4.45.0."""
    numbers = [int(n) for n in re.findall(r"\d+", version.partition("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def claims() -> list[tuple[str, str]]:
    """(package, lowest version) of the dependencies and of the extras that the environments have."""
    found = []
    for key in ("dependencies", *matrix.EXTRAS):
        (block,) = re.findall(rf"^{key} = \[(.*?)\]$", PROJECT, re.MULTILINE | re.DOTALL)
        found += re.findall(r'"([A-Za-z0-9_-]+)>=([0-9.]+)', block)
    return sorted(set(found))


def test_every_claimed_python_was_tried_with_both():
    claimed = re.findall(r"Python :: (3\.\d+)", PROJECT)
    assert claimed == matrix.PYTHONS
    assert set(ROWS) == {(python, dependencies) for python in claimed for dependencies in matrix.DEPENDENCIES}
    assert RESULTS["part"] == matrix.PARTS["stated"]
    for row in ROWS.values():
        assert row.get("failed") == 0 and row["passed"] > 500, row


@pytest.mark.parametrize("package, lowest", claims())
def test_the_lowest_versions_were_tried(package, lowest):
    rows = [*RESULTS["environments"], *SERVER["environments"]]
    tried = [row["versions"][package] for row in rows if row["dependencies"] == "lowest" and package in row["versions"]]
    assert parts(lowest) in map(parts, tried), f"{package}>={lowest} is claimed; tried were {tried}"


def test_the_server_was_tried_on_the_oldest_python_with_the_lowest():
    rows = {(row["python"].rpartition(".")[0], row["dependencies"]): row for row in SERVER["environments"]}
    assert set(rows) == {("3.10", "lowest")}
    assert SERVER["part"] == matrix.PARTS["serving"]
    for row in rows.values():
        assert row.get("failed") == 0 and row["passed"] > 100, row


@pytest.mark.parametrize("name, results", [("matrix", RESULTS), ("matrix_server", SERVER)])
def test_the_page_says_what_is_stored(name, results):
    assert (ROOT / "docs" / f"{name}.md").read_text() == matrix.page(results)
