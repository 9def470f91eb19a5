"""Several viewers' scripts on one engine, a step of one at a time, beside sessions that behave badly."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
import torch

from rest_fast.streaming.snapshot import SessionState
from tests.kit.streams import Script
from tests.kit.toys import sound


class Viewer:
    """Performs a script on sessions of an engine as :func:`tests.kit.streams.perform` does, step by step."""

    def __init__(self, engine, avatar, script: Script, **options: Any):
        self.engine, self.avatar, self.script, self.options = engine, avatar, list(script), options
        self.session, self.blocks, self.shown = engine.session(avatar, **options), [], 0.0

    def step(self) -> bool:
        """One step; False behind the last."""
        name, value = self.script.pop(0)
        getattr(self, name)(value)
        return bool(self.script)

    def push(self, samples: np.ndarray) -> None:
        self.session.push_audio(samples)

    def end(self, _: None) -> None:
        self.session.end_segment()

    def take(self, count: int | None, idle: bool = False) -> None:
        taken = list(itertools.islice(self.session.blocks(idle=idle), count))
        self.blocks += taken
        self.shown = taken[-1].pts + 0.32 if taken else self.shown

    def idle(self, count: int | None) -> None:
        self.take(count, idle=True)

    def interrupt(self, back: float | None) -> None:
        self.shown = self.session.interrupt(None if back is None else self.shown - 0.32 * back)
        self.blocks.append(f"goes on at {self.shown:.2f}")

    def move(self, _: None) -> None:
        """On in another session, which may get another place."""
        state = self.session.snapshot().to_bytes()
        self.session.close()
        self.session = self.engine.session(self.avatar, **self.options)
        self.session.restore(SessionState.from_bytes(state))


class Poisoned(Exception):
    """What a rowdy neighbour's computation raises."""


class Rowdy:
    """A neighbour that opens, pushes, interrupts, fails, is poisoned and closes, as a generator says."""

    def __init__(self, engine, avatar, rng: np.random.Generator):
        self.engine, self.avatar, self.rng, self.session = engine, avatar, rng, None

    def act(self) -> None:
        if self.session is None:
            self.session = self.engine.session(self.avatar, seed=int(self.rng.integers(1000)))
            return
        session = self.session
        match int(self.rng.integers(7)):
            case 0 | 1 | 2:
                session.push_audio(sound(16000, float(self.rng.uniform(0.1, 1.5)), seed=int(self.rng.integers(99))))
            case 3:
                with contextlib.suppress(Poisoned):
                    next(session.blocks(idle=True), None)
            case 4:
                session.interrupt()
            case 5:
                self.engine.compute(self._poison)
            case 6:
                session.close()
                self.session = None

    def _poison(self) -> None:
        """Its next piece fails, and its places hold NaN."""
        stream = self.session.stream

        def fails(*_, **__):
            del stream.next_chunk
            raise Poisoned

        stream.next_chunk = fails
        for row in stream.session.rows:
            stream.cache.k[:, row], stream.cache.v[:, row] = torch.nan, torch.nan
        stream.stale = True  # it would be rebuilt
