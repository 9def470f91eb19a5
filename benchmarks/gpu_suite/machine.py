"""What this machine is, and which source runs on it: the record that every result carries."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COMPILED = ("CMakeLists.txt", "csrc")  # what the extension modules are made of
PACKAGE = (*COMPILED, "pyproject.toml", "kernels", "rest_fast")
SOURCES = (*PACKAGE, "tests", "benchmarks")
SUFFIXES = {".py", ".cpp", ".cu", ".h", ".txt"}
CUDA = Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda")
SMI_FIELDS = (
    "name,driver_version,memory.total,power.limit,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu"
)

# PyTorch is asked in a process of its own: it may be missing, hang, or not fit the driver.
PROBE = """
import importlib.metadata, json, platform
import torch
found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
for name in ("triton", "numpy"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
if torch.cuda.is_available():
    gpu = torch.cuda.get_device_properties(0)
    found["cudnn"] = torch.backends.cudnn.version()
    found["gpu"] = {
        "name": gpu.name, "count": torch.cuda.device_count(), "capability": [gpu.major, gpu.minor],
        "memory_gib": round(gpu.total_memory / 2**30, 1), "multiprocessors": gpu.multi_processor_count,
        "l2_mib": round(getattr(gpu, "L2_cache_size", 0) / 2**20, 1),
    }
print(json.dumps(found))
"""


def asked(command: list[str], seconds: float = 30.0, **options: Any) -> tuple[int, str]:
    """Exit code and standard output of a command; (-1, why) where it could not be run or did not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, **options)
    except (OSError, subprocess.TimeoutExpired) as e:
        return -1, str(e)
    return done.returncode, done.stdout.strip() if done.returncode == 0 else (done.stderr or done.stdout).strip()


def tool(name: str) -> str | None:
    """Where a program of the CUDA toolkit is, on PATH or not."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join((str(CUDA / "bin"), str(CUDA / name))))


def version(name: str) -> str | None:
    """The line in which a tool says its version; None where there is no such tool."""
    path = tool(name)
    if path is None:
        return None
    lines = [line for line in asked([path, "--version"])[1].splitlines() if "elease" in line or "ersion" in line]
    return lines[0].strip() if lines else "of unknown version"


def graphics() -> list[dict[str, str]]:
    """What nvidia-smi says of every GPU, the clocks of this moment included."""
    if shutil.which("nvidia-smi") is None:
        return []
    code, text = asked(["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"])
    if code:
        return []
    names = SMI_FIELDS.split(",")
    return [dict(zip(names, (value.strip() for value in line.split(",")))) for line in text.splitlines()]


def digest(root: Path, names: Iterable[str], *more: str) -> str:
    """Of files, of folders with all sources in them, and of some words."""
    files: set[Path] = set()
    for name in names:
        path = root / name
        files |= {p for p in path.rglob("*") if p.suffix in SUFFIXES and "__pycache__" not in p.parts}
        files |= {path} if path.is_file() else set()
    found = hashlib.sha256("\0".join(more).encode())
    for path in sorted(filter(Path.is_file, files)):
        found.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def source(root: Path) -> dict[str, Any]:
    """``digest`` of everything that is built and run, and the ``commit`` it came from, where that is known."""
    found: dict[str, Any] = {"digest": digest(root, SOURCES), "commit": None, "uncommitted_changes": None}
    quiet = ("git", "--no-optional-locks")  # somebody may be committing
    code, answer = asked([*quiet, "rev-parse", "--show-toplevel", "HEAD"], cwd=root)
    top, _, commit = answer.partition("\n")
    if code == 0 and Path(top) == root:  # and not that of a repository around this folder
        found |= {"commit": commit, "uncommitted_changes": bool(asked([*quiet, "status", "--porcelain"], cwd=root)[1])}
        return found
    try:
        noted = json.loads((root / "build" / "gpu-wheels" / "source.json").read_text())
    except (OSError, ValueError):
        return found
    return noted if noted.get("digest") == found["digest"] else found


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def record(root: Path) -> dict[str, Any]:
    """The environment. ``problem``: why the suite cannot go on, or empty; ``gpu`` is there where PyTorch sees one."""
    found: dict[str, Any] = {
        "source": source(root),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "nvidia_smi": graphics(),
        "nvcc": version("nvcc"),
        "compute_sanitizer": version("compute-sanitizer"),
        "problem": "",
    }
    with tempfile.TemporaryDirectory() as neutral:  # not here, where `kernels` and `rest_fast` are folders
        code, text = asked([sys.executable, "-c", PROBE], seconds=120, cwd=neutral)
    if code:
        last = text.splitlines()[-1] if text else f"exit code {code}"
        return found | {"problem": f"PyTorch cannot be imported by {sys.executable}: {last}"}
    found |= json.loads(text.splitlines()[-1])
    if found["nvidia_smi"] and "gpu" not in found:
        name = found["nvidia_smi"][0]["name"]
        found["problem"] = f"nvidia-smi shows {name}, but PyTorch {found['torch']} sees no CUDA device"
    return found


def identity(environment: Mapping[str, Any]) -> list[str]:
    """What of a machine must be the same for a result to stand: GPU, driver and libraries."""
    shown = environment["nvidia_smi"]
    found = {"gpu": environment.get("gpu", {}).get("name"), "driver": shown[0]["driver_version"] if shown else None}
    found |= {name: environment.get(name) for name in ("python", "torch", "triton", "nvcc")}
    return [f"{name} {value}" for name, value in found.items()]
