"""More viewers of the demo than the machine can serve: who is refused, what is held, and whether all fare alike.

    python benchmarks/overload.py --seconds 60 --out benchmarks/results/overload_cpu.json

Viewers speak without a pause and watch in real time (``ablocks(idle=True)``), at phases spread over a chunk. First as
many as ``capacity()`` says when the engine is opened, then one more, and twice as many, are asked for; those who are
let in are served. Then twice as many are let in without admission, beside a process that keeps a core busy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import rest_fast
from rest_fast.avatar import Avatar
from rest_fast.errors import CapacityExhausted
from rest_fast.evaluation.streams import own_memory
from rest_fast.latency import where
from rest_fast.latency.viewers import Viewer, phases, recorded
from rest_fast.model import ASSETS, Model

SPIN = [sys.executable, "-c", "while True: pass"]
CHUNK = 0.96  # seconds
PLACES = 24


def scenario(model: Model, avatar: Avatar, asked: str, seconds: float, admission: bool, busy: bool) -> dict[str, Any]:
    """``asked``: "capacity", "capacity + 1" or "2 x capacity", of the engine as it says when it is opened."""
    with model.engine(sessions=PLACES, admission=admission) as engine:
        if not engine.costs.chunks:  # without admission nothing is timed
            engine.measure()
        capacity = engine.capacity()
        count = {"capacity": capacity, "capacity + 1": capacity + 1, "2 x capacity": 2 * capacity}[asked]
        sessions, refusals = [], []
        for i in range(count):
            try:
                sessions.append(engine.session(avatar, seed=i))
            except CapacityExhausted as refused:
                refusals.append(str(refused))
        neighbour = subprocess.Popen(SPIN) if busy else None
        try:
            memory = asyncio.run(
                watched(viewers := [Viewer(s, recorded(seconds), idle=True) for s in sessions], seconds)
            )
        finally:
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
        served = engine.metrics()
    return {
        "asked": asked,
        "admission": admission,
        "busy neighbour": busy,
        "seconds": seconds,
        "capacity before": capacity,
        "capacity after": served.capacity,
        "sessions": len(sessions),
        "refused": len(refusals),
        "reason": refusals[0] if refusals else None,
        "chunk_ms": round(served.chunk_ms, 1),
        "memory_mb": [round(mb, 1) for mb in memory],
        "viewers": [seen(viewer) for viewer in viewers],
    }


async def watched(viewers: list[Viewer], seconds: float) -> list[float]:
    """Returns: the process's own MB every tenth of the time, from the second on."""
    start, memory = time.monotonic() + 0.2, []

    async def look() -> None:
        for i in range(1, 10):
            await asyncio.sleep(max(0.0, start + seconds * i / 10 - time.monotonic()))
            memory.extend(own_memory())

    begin = phases(len(viewers), CHUNK)
    await asyncio.gather(look(), *(viewer.watch(start + at, seconds) for viewer, at in zip(viewers, begin)))
    return memory


def seen(viewer: Viewer) -> dict[str, Any]:
    blocks = [one for one in viewer.seen if not one.held]
    responses = [one.response for one in blocks if one.response is not None]
    p50, p95 = (round(1e3 * float(p)) for p in np.percentile(responses, [50, 95])) if responses else (None, None)
    return {
        "blocks": len(blocks),
        "silence": sum(one.idle for one in blocks),
        "held": len(viewer.seen) - len(blocks),
        "underruns": viewer.player.underruns,
        "response_p50_ms": p50,
        "response_p95_ms": p95,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, help="of the model; default: as many as others leave free")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model = rest_fast.load("demo", device="cpu", threads=args.threads)
    avatar = model.prepare(ASSETS / "demo" / "portrait.png", crop="center")
    runs = []
    for asked, admission, busy in (
        ("capacity", True, False),
        ("capacity + 1", True, False),
        ("2 x capacity", True, False),
        ("2 x capacity", False, True),
    ):
        runs.append(scenario(model, avatar, asked, args.seconds, admission, busy))
        print(json.dumps(runs[-1]), flush=True)
    stored = {"runs": runs, "threads": args.threads, "environment": where.environment(where.commit_info())}
    if args.out:
        args.out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
