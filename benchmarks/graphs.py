"""Times of calls inside CUDA graphs, so that neither Python nor the launches of single kernels are measured.

A graph holds many calls of one variant, each on the next copy of its buffers, so that none finds in the cache what the
last one left; events stand around its replay. On a CPU, where there are no graphs, a loop by the clock.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import torch

from benchmarks import kit

COLD = 256 << 20  # bytes of all copies together: several times a GPU's L2
MOST = 16  # copies
LENGTH = 1500.0  # microseconds of a replay: a few hundred times what an event is off
Replay = Callable[[], float]  # microseconds of a call


def copies(moved: int) -> int:
    """How many copies of buffers a variant needs that moves so many bytes; on a CPU two, to see that it runs."""
    if kit.device().type == "cpu":
        return 2
    return max(2, min(math.ceil(COLD / max(moved, 1)), MOST))


def interleaved(
    variants: dict[str, kit.Call], copies: int, *, rounds: int = 15
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Microseconds of a call in every round, the variants taking turns; and those that cannot be captured, with why."""
    prepare = captured if kit.device().type == "cuda" else looped
    runs: dict[str, Replay] = {}
    left_out: dict[str, str] = {}
    for name, call in variants.items():
        try:
            runs[name] = prepare(call, copies)
        except Exception as e:  # a library that waits, or allocates where it may not
            left_out[name] = f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0]}"[:300]
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffled = list(runs), random.Random(0)
    for i in range(rounds + 1):
        shuffled.shuffle(order)
        for name in order:
            us = runs[name]()
            if i > 0:  # the first one warms up
                times[name].append(us)
    return times, left_out


def captured(call: kit.Call, copies: int) -> Replay:
    """A graph of the call on each copy in turn, often enough for its events."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(copies):  # kernels are loaded and workspaces taken before a capture
        call(i)
    torch.cuda.synchronize()
    start.record()
    call(0)
    stop.record()
    stop.synchronize()
    turns = max(1, min(math.ceil(LENGTH / max(1e3 * start.elapsed_time(stop), 1) / copies), 20))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(turns * copies):
            call(i % copies)

    def replay() -> float:
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        return 1e3 * start.elapsed_time(stop) / (turns * copies)

    return replay


def looped(call: kit.Call, copies: int) -> Replay:
    def run() -> float:
        start = time.perf_counter_ns()
        for i in range(copies):
            call(i)
        return (time.perf_counter_ns() - start) / 1e3 / copies

    return run
