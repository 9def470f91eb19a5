"""Counts and times of a stream, over a bounded number of the latest."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEPT = 1000  # latest durations of a stage that are kept


@dataclass(frozen=True)
class Percentiles:
    """Of durations, in milliseconds."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Percentiles:
        """Those of at least one duration."""
        p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
        return cls(len(seconds), float(p50), float(p95), float(p99))


@dataclass(frozen=True)
class Metrics:
    """Of one session since it was opened.

    Stages are "features" (all that a chunk's job takes: sound, features, codes, noise), "denoise" and "decode", each of
    a whole chunk, and "response": from when a chunk was wanted until its blocks were there, what others took included.
    """

    chunks: int  #: generated
    blocks: int  #: handed out, those of silence included
    idle: int  #: of these, made from silence
    degraded: int  #: of these, made with fewer sampling steps
    slow: int  #: blocks that took longer to make than they last, others' computation left out
    held: int  #: frames that were repeated because a block was late
    starved: int  #: blocks of silence that were handed out inside a segment, since its sound was missing
    refused: int  #: pushes that were refused because too much was queued
    interrupts: int
    queued: float  #: seconds of sound that were pushed and are not in a block that was handed out
    ready: float  #: seconds of video that are decoded and wait to be taken
    stages: dict[str, Percentiles] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class Stopwatch:
    """Durations per stage, and slow blocks, which took longer to make than they last.

    A block's time is its share of its chunk's. On an accelerator the times of stages are those of their launches.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.stages: dict[str, deque[float]] = {}
        self.chunks = self.blocks = self.slow = 0
        self.since = 0.0  # seconds of stages that no block has been charged with yet
        self._parts: dict[str, float] = {}  # of stages that go on
        self._share = 0.0  # seconds of its chunk that each block is charged with

    @contextlib.contextmanager
    def __call__(self, stage: str, *, more: bool = False) -> Iterator[None]:
        """Time what is done inside. ``more``: the stage goes on later."""
        start = self.clock()
        yield
        seconds = self.clock() - start
        self.since += seconds
        self._parts[stage] = self._parts.get(stage, 0.0) + seconds
        if not more:
            self.finish(stage)

    def finish(self, stage: str) -> None:
        """The stage does not go on."""
        self.record(stage, self._parts.pop(stage))

    def record(self, stage: str, seconds: float) -> None:
        self.stages.setdefault(stage, deque(maxlen=KEPT)).append(seconds)

    def abandon(self, stage: str) -> None:
        """Forget what was timed of a stage that does not go on."""
        self._parts.pop(stage, None)

    def chunk(self, blocks: int) -> None:
        """Record that a chunk was generated, of which this many blocks are kept."""
        self.chunks += 1
        self.share(blocks)

    def share(self, blocks: int, more: bool = False) -> None:
        """Charge what was done since to this many blocks; ``more``: on top of what they share already."""
        self._share, self.since = self.since / max(blocks, 1) + (self._share if more else 0), 0.0

    def block(self, duration: float) -> None:
        """Record that a block of this duration was handed out."""
        self.blocks += 1
        self.slow += self._share > duration  # what was done since is the next chunk's

    def percentiles(self) -> dict[str, Percentiles]:
        return {name: Percentiles.of(list(seconds)) for name, seconds in list(self.stages.items())}
