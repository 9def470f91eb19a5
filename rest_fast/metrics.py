"""Times of a stream's stages, over a bounded number of the latest."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

KEPT = 1000  # latest durations of a stage


class Stopwatch:
    """Durations per stage. A denoised chunk slower than its video is an underrun of a live stream."""

    def __init__(self, chunk_seconds: float):
        self.chunk_seconds = chunk_seconds
        self.stages: dict[str, deque[float]] = {}
        self.counts: dict[str, int] = {}
        self.underruns = 0

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.stages.setdefault(stage, deque(maxlen=KEPT)).append(seconds)
        self.underruns += stage == "denoise" and seconds > self.chunk_seconds
        self.counts[stage] = self.counts.get(stage, 0) + 1

    def report(self) -> dict[str, Any]:
        stages = {}
        for name, seconds in self.stages.items():
            p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
            stages[name] = {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}
        return {
            "chunks": self.counts.get("denoise", 0),
            "blocks": self.counts.get("decode", 0),
            "underruns": self.underruns,
            "stages": stages,
        }
