"""A chunk of the demo beside busy neighbours: this Python's package against those installed in others, taking turns.

    python benchmarks/busy.py --other 5b8d8af=/path/to/other/bin/python --out benchmarks/results/busy_cpu.json

Every measurement is a fresh process that opens one session and makes chunks as fast as it can. Neighbours are processes
that compute without end: ``idle`` has none, ``one`` has one, ``twice`` has two that share a core, ``all`` has one for
each core; ``quota`` is no neighbour, but a control group of one and a half cores (version 1 or 2, for root alone). Left
out: the first four chunks of each process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WARM = 4  # chunks
SCENES = {
    "idle": "none",
    "one": "one",
    "twice": "two that share a core",
    "all": "one for each core",
    "quota": "none, but a quota of 1.5 cores",
}

CHILD = """
import json, os, sys, time
group, chunks = sys.argv[1], int(sys.argv[2])
if group:
    with open(os.path.join(group, "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
import numpy as np
import rest_fast
from rest_fast.model import ASSETS
model = rest_fast.load("demo", device="cpu")
session = model.session(model.prepare(ASSETS / "demo" / "portrait.png", crop="center"))
pcm, times = np.random.default_rng(0).normal(0, 0.05, 15360).astype(np.float32), []
for _ in range(chunks):
    session.push_audio(pcm)
    start = time.perf_counter()
    list(session.blocks())
    times.append(time.perf_counter() - start)
print(json.dumps(times))
"""


def neighbours(scene: str) -> list[list[str]]:
    """Commands of the processes that keep cores busy."""
    spin = [sys.executable, "-c", "while True: pass"]
    last = str(max(os.sched_getaffinity(0)))
    return {
        "idle": [],
        "quota": [],
        "one": [spin],
        "twice": [["taskset", "-c", last, *spin]] * 2,
        "all": [spin] * len(os.sched_getaffinity(0)),
    }[scene]


@contextlib.contextmanager
def control_group(cores: float) -> Iterator[str]:
    """A group of processes that may use so much CPU time; its folder."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    folder = Path("/sys/fs/cgroup", "" if unified else "cpu", f"rest_fast_{os.getpid()}")
    folder.mkdir()
    try:
        if unified:
            (folder / "cpu.max").write_text(f"{int(cores * 1e5)} 100000")
        else:
            (folder / "cpu.cfs_quota_us").write_text(str(int(cores * 1e5)))
        yield str(folder)
    finally:
        folder.rmdir()


def measure(python: str, scene: str, chunks: int) -> list[float]:
    """Seconds of each chunk but the first."""
    busy = [subprocess.Popen(command) for command in neighbours(scene)]
    try:
        with control_group(1.5) if scene == "quota" else contextlib.nullcontext("") as group:
            command = [python, "-c", CHILD, group, str(chunks + WARM)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", timeout=600)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    times: list[float] = json.loads(done.stdout)
    return times[WARM:]


def run(pythons: dict[str, str], scenes: list[str], rounds: int, chunks: int) -> dict[str, Any]:
    results: dict[str, dict[str, list[float]]] = {scene: {name: [] for name in pythons} for scene in scenes}
    for i in range(rounds):
        for scene in scenes:
            names = list(pythons)[:: 1 if i % 2 else -1]
            for name in names:
                results[scene][name] += measure(pythons[name], scene, chunks)
                print(f"round {i}, {scene}, {name}: {1e3 * np.median(results[scene][name]):.0f} ms", flush=True)
    return {scene: {name: _summary(times) for name, times in by_name.items()} for scene, by_name in results.items()}


def _summary(times: list[float]) -> dict[str, float]:
    p50, p95, p99 = (float(v) for v in np.percentile(np.array(times) * 1e3, [50, 95, 99]))
    return {"chunks": len(times), "p50_ms": round(p50, 1), "p95_ms": round(p95, 1), "p99_ms": round(p99, 1)}


def table(stored: dict[str, Any]) -> list[list[str]]:
    """Medians (and 95th percentiles), and the first column's over the last one's idle time; titles first."""
    names, scenes = stored["names"], stored["scenes"]
    base = scenes["idle"][names[-1]]["p50_ms"]
    lines = [["neighbours", *names, f"{names[0]} / {names[-1]} idle"]]
    for scene, found in scenes.items():
        cells = [f"{found[n]['p50_ms']:.0f} ms ({found[n]['p95_ms']:.0f})" for n in names]
        lines.append([SCENES[scene], *cells, f"{found[names[0]]['p50_ms'] / base:.2f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="another installation; the last one's idle time is what ratios are of",
    )
    parser.add_argument("--scenes", nargs="+", default=["idle", "one", "twice", "all"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    import where

    pythons = {"now": sys.executable, **dict(other.split("=", 1) for other in args.other)}
    scenes = run(pythons, args.scenes, args.rounds, args.chunks)
    stored = {
        "names": list(pythons),
        "rounds": args.rounds,
        "scenes": scenes,
        "environment": where.environment(where.commit_info()),
    }
    if args.out:
        args.out.write_text(json.dumps(stored, indent=1) + "\n")
    print(json.dumps(scenes, indent=1))


if __name__ == "__main__":
    main()
