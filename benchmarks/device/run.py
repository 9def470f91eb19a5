"""Run one step of the GPU suite's short part: ``run.py NAME [--tiny] [--workers N]``, NAME a file beside this one.

Such a file has ``jobs(tiny)``: names, and functions whose results become lines of evidence. ``--tiny`` is a rehearsal:
small shapes, on whatever device there is. With workers, so many processes share the jobs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_suite.evidence import Evidence

Jobs = dict[str, Callable[[], dict[str, Any]]]
CLAIMS = "GPU_SUITE_CLAIMS"  # names, to a worker, the folder in which jobs are claimed


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    chosen = parser.parse_args(words)
    if not (chosen.tiny or torch.cuda.is_available()):
        parser.error("expected a CUDA device, got none; --tiny rehearses without one")
    evidence, claims = Evidence.here(), os.environ.get(CLAIMS)
    if chosen.workers and claims is None:
        return shared(chosen.workers)
    without_pyav()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
    jobs: Jobs = importlib.import_module(f"benchmarks.device.{chosen.name}").jobs(chosen.tiny)
    with torch.no_grad():
        if claims is None:
            return evidence.run(jobs)
        return claimed(evidence, jobs, Path(claims))


def without_pyav() -> None:
    """A stand-in where it is missing, since it is too large to carry: no job reads or writes a file of sound or video,
    but sessions import what does."""
    if importlib.util.find_spec("av") is None:
        sys.modules["av"] = types.ModuleType("av")
        sys.modules["av"].__version__ = "19.0"  # media asks for it


def shared(workers: int) -> int:
    """Start this command once for each worker, and wait. The worst of their exit codes."""
    with tempfile.TemporaryDirectory() as folder:
        command, environment = [sys.executable, *sys.orig_argv[1:]], os.environ | {CLAIMS: folder}
        running = [subprocess.Popen(command, env=environment) for _ in range(workers)]
        return max(abs(process.wait()) for process in running)


def claimed(evidence: Evidence, jobs: Jobs, folder: Path) -> int:
    """Run those jobs that no other worker has begun."""
    codes = [evidence.do(name, jobs[name]) for name in evidence.left(jobs) if mine(folder, list(jobs).index(name))]
    return max(codes, default=0)


def mine(folder: Path, number: int) -> bool:
    try:
        (folder / str(number)).mkdir()
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
