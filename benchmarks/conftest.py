"""Collects ``bench_*.py``, records where a number comes from, and writes compact JSON."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import rest_fast

KEPT = ("name", "params", "extra_info")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect ``bench_*.py`` in this folder; pytest collects a file named outright by itself."""
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def accelerator() -> dict:
    """Nothing without a GPU."""
    if not torch.cuda.is_available():
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False) if shutil.which(query[0]) else None
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability_cuda": "sm_{}{}".format(*torch.cuda.get_device_capability()),
        "driver": driver.stdout.split("\n")[0].strip() if driver else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
    }


def environment(commit: dict) -> dict:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rest_fast": rest_fast.__version__,
        **accelerator(),
        "commit": commit.get("id"),
        "uncommitted_changes": commit.get("dirty"),
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Keep what a reader of a stored result needs; every result carries its environment, so it can be cited alone."""
    where = environment(output_json.get("commit_info") or {})
    results = []
    for result in output_json["benchmarks"]:
        result["extra_info"]["environment"] = where
        results.append({key: result[key] for key in KEPT})
    kept = {"datetime": output_json["datetime"], "version": output_json["version"], "benchmarks": results}
    output_json.clear()
    output_json.update(kept)
