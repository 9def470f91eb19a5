"""Where a number comes from: machine, software and commit of this process."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

import rest_fast


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


def commit_info() -> dict:
    """As pytest-benchmark has it; empty where the sources are no clone."""
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    found = [
        subprocess.run([*git, *words], capture_output=True, text=True, check=False)
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    return {} if found[0].returncode else {"id": found[0].stdout.strip(), "dirty": bool(found[1].stdout.strip())}


def environment(commit: dict) -> dict:
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
