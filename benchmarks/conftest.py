"""Collects ``bench_*.py``, records where a number comes from, and leaves out of the JSON what nobody reads again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.where import cpu_name, environment

# Of a result, for ``pytest-benchmark compare`` and for stored.py; not its single times and its options.
KEPT = ("group", "name", "fullname", "params", "param", "stats", "extra_info")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect ``bench_*.py`` in this folder; pytest collects a file named outright by itself."""
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Names of hosts are nobody's business, and two hundred flags of a processor no use."""
    machine_info.pop("node", None)
    machine_info["cpu"] = {"name": cpu_name(), "count": os.cpu_count()}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Every result carries its environment, so it can be cited alone."""
    where = environment(output_json.get("commit_info") or {})
    results = []
    for result in output_json["benchmarks"]:
        result["extra_info"]["environment"] = where
        result["stats"].pop("data", None)
        results.append({key: result[key] for key in KEPT})
    output_json["benchmarks"] = results
