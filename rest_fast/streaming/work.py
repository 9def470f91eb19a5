"""A stream's computation in pieces, so that those of other streams can come between.

A chunk takes these pieces: its features and noise, its evaluations one by one (or all at once, where no other stream
could come between), and its decoding. Nothing here knows of other streams, of locks or of time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from enum import Enum
from typing import Any, Protocol

import torch

from rest_fast.streaming.viewing import Viewing


class Turn(Protocol):
    """One stream's part in an evaluation, of whatever family."""

    @property
    def dt(self) -> float:
        """0 where the evaluation is no sampling step."""


class Sampler(Protocol):
    """A family's sampler: whole chunks, or their evaluations one by one."""

    @property
    def step(self) -> Any:
        """It has ``run(turns)``."""

    @property
    def sigmas(self) -> list[float]:
        """The noise level before each sampling step, from 1 on."""

    def run(self, jobs: Any) -> torch.Tensor:
        """The chunks of some jobs."""

    def turns(self, job: Any) -> Generator[Any, None, torch.Tensor]:
        """The evaluations of a job's chunk; each is to be run before the next is asked for."""


class Piece(Enum):
    """What a stream needs next."""

    DECODE = "decode"
    EVALUATE = "evaluate"
    BEGIN = "begin"  # the job of the next chunk


class Work:
    """One stream's chunks, piece by piece.

    Args:
        whole: all evaluations of a chunk are one piece.
        early: the next chunk may begin when the first block of the latest one was delivered; otherwise when all were.
        fewer: a sampler of fewer steps on the same step, for chunks that are late.
    """

    def __init__(self, stream: Viewing, *, whole: bool, early: bool, fewer: Sampler | None = None):
        self.stream, self.whole, self.early, self.fewer = stream, whole, early, fewer
        self.job: Any = None  # of the chunk that is being made
        self.turn: Turn | None = None  # its next evaluation, where they are pieces of their own
        self.degraded = False  # whether it is made with fewer steps
        self._turns: Iterator[Turn] = iter(())
        self._on_step: Callable[[int, int], None] | None = None
        self._steps = 0  # sampling steps of the chunk that were evaluated
        self._latents: torch.Tensor | None = None  # once the last turn was evaluated
        self._restarts = 0  # of the stream, when the job was made

    def by_step(self, on_step: Callable[[int, int], None]) -> None:
        """Call ``on_step(chunk, step)`` after each sampling step of the chunks that begin from now on: every evaluation
        is a piece of its own then. What it raises is a failure of the piece."""
        self.whole, self._on_step = False, on_step

    def needs(self) -> Piece | None:
        """The next piece; None where nothing is to be done."""
        if self.job is not None and self._restarts != self.stream.restarts:
            self.abandon()
        if self.stream.undecoded:
            return Piece.DECODE
        if self.job is not None:
            return Piece.EVALUATE
        return Piece.BEGIN if self.stream.wants_chunk(self.early) else None

    def begin(self, late: bool = False) -> None:
        """Make the next chunk's job. ``late``: use fewer steps, where that was allowed."""
        self.job, self._restarts, self._steps = self.stream.next_chunk(), self.stream.restarts, 0
        self.degraded = late and self.fewer is not None
        if self.whole and not self.degraded:
            return
        sampler = self.fewer if self.degraded and self.fewer is not None else self.stream.sampler
        with self.stream.watch("denoise", more=True):
            self._turns = self._sampled(sampler, self.job)
            self.turn = next(self._turns)

    def _sampled(self, sampler: Sampler, job: Any) -> Generator[Turn, None, None]:
        self._latents = yield from sampler.turns(job)

    def decode(self) -> None:
        self.stream.decode()

    def evaluate(self) -> None:
        """The next evaluation, or all of them."""
        assert self.job is not None, "work: expected a chunk that was begun"
        if self.turn is None:
            with self.stream.watch("denoise"):
                latents = self.stream.sampler.run([self.job])[0]
            self._accept(self.job, latents)
        else:
            with self.stream.watch("denoise", more=True):
                self.stream.sampler.step.run([self.turn])
            self.advance()

    def advance(self) -> None:
        """:attr:`turn` was evaluated."""
        if self._on_step is not None and self.turn is not None and self.turn.dt:  # others only write context
            self._on_step(self.stream.watch.chunks, self._steps)
            self._steps += 1
        with self.stream.watch("denoise", more=True):
            self.turn = next(self._turns, None)
        if self.turn is None:
            self.stream.watch.finish("denoise")
            assert self.job is not None and self._latents is not None, "work: expected a chunk that was begun"
            self._accept(self.job, self._latents)

    def abandon(self) -> None:
        """Give up the chunk that is being made; the next one begins with a rebuilt context."""
        if self.job is not None:
            self.forget()
            self.stream.drop()

    def forget(self) -> None:
        """There is no chunk any more that is being made."""
        self.job = self.turn = self._latents = None
        self._turns = iter(())
        self.stream.watch.abandon("denoise")

    def _accept(self, job: Any, latents: torch.Tensor) -> None:
        self.forget()
        try:
            self.stream.accept(job, latents, self.degraded)
        except BaseException:
            self.stream.drop()
            raise
