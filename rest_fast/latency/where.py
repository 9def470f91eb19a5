"""Where a number comes from: machine, software and commit of this process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import rest_fast

ROOT = Path(__file__).parents[2]


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def accelerator() -> dict[str, Any]:
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


def commit_info() -> dict[str, Any]:
    """As pytest-benchmark has it; empty where the sources are no clone of their own."""
    top, commit = (asked(ROOT, "rev-parse", word) for word in ("--show-toplevel", "HEAD"))
    if top is None or commit is None or Path(top) != ROOT:  # installed, maybe below a folder that is another's clone
        return {}
    changes = asked(ROOT, "status", "--porcelain", "--untracked-files=no")
    return {"id": commit, "dirty": bool(changes)}


def asked(root: Path, *words: str) -> str | None:
    """What git says; None where it says no, or is not there."""
    try:
        git = ["git", "--no-optional-locks", "-C", str(root), *words]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment(commit: dict[str, Any]) -> dict[str, Any]:
    """``commit``: id and dirty."""
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
