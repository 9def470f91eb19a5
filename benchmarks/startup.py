"""How long a user waits before anything happens: imports, load and prepare, and whole commands, in fresh processes.

    python benchmarks/startup.py --out benchmarks/results/startup.json

The first process of each kind fills the disk's cache and is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = {"python": 7, "help": 7, "demo": 5}
# Seconds of each step, one after the other, as they are in a user's program.
PROGRAM = """
import json, time
seconds, last = {}, time.perf_counter()

def step(name):
    global last
    now = time.perf_counter()
    seconds[name], last = now - last, now

import torch
step("import torch")
import rest_fast
rest_fast.load
step("import rest_fast")
model = rest_fast.load("demo")
step("load")
from rest_fast.model import ASSETS
model.prepare(ASSETS / "demo" / "portrait.png")
step("prepare")
print(json.dumps(seconds))
"""


def steps(folder: Path) -> dict[str, float]:
    """Of one process. It runs in ``folder``: in the repository Python would import the sources beside it."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def command(folder: Path, *words: str) -> float:
    """Seconds of a whole process of the command line."""
    program = str(Path(sys.executable).parent / "rest-fast")
    start = time.perf_counter()
    subprocess.run([program, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def measure(rounds: dict[str, int]) -> dict[str, list[float]]:
    """Step -> seconds of each process but the first."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(rounds["python"] + 1):
            for step, took in steps(folder).items():
                seconds.setdefault(step, []).extend([took] if i else [])
        for i in range(rounds["help"] + 1):
            took = command(folder, "--help")
            seconds.setdefault("--help", []).extend([took] if i else [])
        for i in range(rounds["demo"] + 1):
            took = command(folder, "demo", "-o", str(folder / "talking.mp4"))
            seconds.setdefault("demo", []).extend([took] if i else [])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    quick = int(os.environ.get("BENCH_ROUNDS") or 0)
    seconds = measure(dict.fromkeys(ROUNDS, quick) if quick else ROUNDS)

    from cpu_tables import startup_table  # now: what is timed above is not to share a process with torch
    from where import commit_info, environment

    found: dict[str, Any] = {"seconds": {name: [round(s, 4) for s in each] for name, each in seconds.items()}}
    found["environment"] = environment(commit_info())
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(startup_table(found))


if __name__ == "__main__":
    main()
