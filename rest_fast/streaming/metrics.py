"""Times of a stream's stages, over a bounded number of the latest."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

KEPT = 1000  # latest durations of a stage that are kept


class Stopwatch:
    """Durations per stage, and underruns: blocks that took longer to make than they last.

    The stage "features" is all that a chunk's job takes: sound, features, codes, noise; "decode" is that of a whole
    chunk. A block's time is its share of its chunk's. On an accelerator the times of stages are those of their
    launches, but a block's time is right, because its pictures are waited for.
    """

    def __init__(self) -> None:
        self.stages: dict[str, deque[float]] = {}
        self.chunks = self.blocks = self.underruns = 0
        self.since = 0.0  # seconds of stages that no block has been charged with yet
        self._share = 0.0  # seconds of its chunk that each block is charged with

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.stages.setdefault(stage, deque(maxlen=KEPT)).append(seconds)
        self.since += seconds

    def chunk(self, blocks: int) -> None:
        """Record that a chunk was generated, of which this many blocks are kept."""
        self.chunks += 1
        self.share(blocks)

    def share(self, blocks: int, more: bool = False) -> None:
        """Charge what was done since to this many blocks; ``more``: on top of what they share already."""
        self._share, self.since = self.since / max(blocks, 1) + (self._share if more else 0), 0.0

    def block(self, duration: float) -> None:
        """Record that a block of this duration was made."""
        self.blocks += 1
        self.underruns += self._share + self.since > duration
        self.since = 0.0

    def report(self) -> dict[str, Any]:
        stages = {}
        for name, seconds in list(self.stages.items()):
            p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
            stages[name] = {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}
        return {"chunks": self.chunks, "blocks": self.blocks, "underruns": self.underruns, "stages": stages}
