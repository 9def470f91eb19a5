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
    """Durations per stage, and underruns: blocks that took longer to make than they last.

    "features" is all that makes a chunk's job: sound, features, codes, noise. A block's time is its decode and its
    share of the chunk's job and denoising. On an accelerator the stages' own times are those of their launches; a
    block's time is right, since its pictures are waited for. A decoder that looks ahead decodes a chunk at once: that
    is one duration of "decode", and the chunk's blocks share it.
    """

    def __init__(self) -> None:
        self.stages: dict[str, deque[float]] = {}
        self.chunks = self.blocks = self.underruns = 0
        self.since, self._share = 0.0, 0.0  # seconds of stages not yet booked; a block's share of its chunk

    @contextlib.contextmanager
    def __call__(self, stage: str, counts: bool = True) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if not counts:
            return
        seconds = time.perf_counter() - start
        self.stages.setdefault(stage, deque(maxlen=KEPT)).append(seconds)
        self.since += seconds

    def chunk(self, blocks: int) -> None:
        """A chunk is generated, of which this many blocks are kept."""
        self.chunks += 1
        self.share(blocks)

    def share(self, blocks: int, more: bool = False) -> None:
        """What was done since is for this many blocks; ``more``: beside what they share already."""
        self._share, self.since = self.since / max(blocks, 1) + (self._share if more else 0), 0.0

    def block(self, duration: float) -> None:
        """A block of this duration is decoded."""
        self.blocks += 1
        self.underruns += self._share + self.since > duration
        self.since = 0.0

    def report(self) -> dict[str, Any]:
        stages = {}
        for name, seconds in list(self.stages.items()):
            p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
            stages[name] = {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}
        return {"chunks": self.chunks, "blocks": self.blocks, "underruns": self.underruns, "stages": stages}
