"""``python -m tests.mutants [part of a name or path]``: plant each fault in a copy of the tree, and see a test find it.

Nothing here touches the tree. The copy is what Python imports: the environment's editable install is left out by
starting without ``site``, and the compiled modules are copied beside the sources.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants import ROOT
from tests.mutants.session import MUTANTS

PATIENCE = 600  # seconds; a fault may make a loop endless
AT_FIRST = 3600  # without a fault: what the tests compile is compiled here
PASSED, FAILED = 0, 1  # of pytest; anything else is an error of ours


def copy_tree(target: Path) -> None:
    """What the tests need, with ``rest_fast`` complete: kernels and compiled modules included."""
    skip = shutil.ignore_patterns("__pycache__", "*.so", ".*")
    for name in ("rest_fast", "tests", "benchmarks", "docs", "csrc"):
        shutil.copytree(ROOT / name, target / name, ignore=skip, symlinks=True)
    for name in ("pyproject.toml", "README.md", "Makefile", "CMakeLists.txt"):
        shutil.copy(ROOT / name, target / name)
    shutil.copytree(ROOT / "kernels", target / "kernels", ignore=skip)
    kernels = target / "rest_fast" / "kernels"
    if not kernels.exists():
        kernels.symlink_to("../kernels")
    for module in ("_cpu", "_cuda", "_build_info"):
        found = importlib.util.find_spec(f"rest_fast.{module}")
        if found and found.origin:
            shutil.copy(found.origin, target / "rest_fast")


def run(tree: Path, tests: str, patience: int = PATIENCE) -> int:
    """pytest's exit code; FAILED also where it takes too long."""
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    paths = os.pathsep.join([str(tree), *packages])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired:
        return FAILED
    if done.returncode < 0:  # a signal: the fault ended the process
        return FAILED
    if done.returncode not in (PASSED, FAILED):
        print(done.stdout[-2000:], done.stderr[-2000:])
    return done.returncode


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(word in f"{m.name} {m.file}" for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        everything = " ".join(dict.fromkeys(m.tests for m in chosen))
        if run(tree, everything, AT_FIRST) != PASSED:
            print("the tests must pass before a fault is planted")
            return 2
        for mutant in chosen:
            file, begin = tree / mutant.file, time.monotonic()
            whole = file.read_text()
            file.write_text(mutant.planted(tree))
            code = run(tree, mutant.tests)
            file.write_text(whole)
            word = {PASSED: "SURVIVES", FAILED: "found"}.get(code, f"ERROR {code}")
            print(f"{word:8}  {mutant.name}  ({mutant.file}, {time.monotonic() - begin:.0f} s)", flush=True)
            if code != FAILED:
                survivors.append(mutant.name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} found" + "".join(f"\n  not: {name}" for name in survivors))
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
