"""What a session's callers and the worker share: what has come, the blocks that are ready, and who waits.

Everything here takes one lock, which is held for microseconds. A block is handed out without waiting for the worker,
but only where what came before it has been read as far as it could change that block: the end of a segment, or sound
before a block of silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rest_fast.errors import SessionClosed
from rest_fast.streaming.block import Made
from rest_fast.worker import hold_over_fork


@dataclass(frozen=True, eq=False)
class Pushed:
    """Samples were pushed."""

    samples: np.ndarray


@dataclass(frozen=True)
class SegmentEnd:
    """What was pushed is complete."""


@dataclass(frozen=True)
class IdleRequest:
    """Nothing is due, and the viewer is to see something."""


@dataclass(frozen=True)
class Delivered:
    """A consumer has taken the first of the blocks that were ready."""


@dataclass(frozen=True)
class Interrupt:
    """Latents from ``shown`` on are taken back."""

    shown: int


@dataclass(frozen=True)
class Retry:
    """The consumer knows of the failure."""


Message = Pushed | SegmentEnd | IdleRequest | Delivered | Interrupt | Retry


class Mailbox:
    """Of one session. Counts are of latents from the start of the stream.

    Args:
        clock: seconds.
        lead: delivered latents that an interrupt can take back.
        duration: seconds of a latent.
    """

    def __init__(self, clock: Callable[[], float], lead: int, duration: float):
        self.clock, self.lead, self.duration = clock, lead, duration
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        hold_over_fork(self.lock)
        self.messages: deque[Message] = deque()
        self.reading: list[Message] = []  # read, but what follows from them for the blocks is not offered yet
        self.ready: deque[Made] = deque()
        self.quiet = False  # whether the worker had nothing to do when it had read everything
        self.error: BaseException | None = None  # of a piece that failed; a consumer is to be told
        self.closed = False
        self.format: tuple[np.dtype[Any], tuple[int, ...]] | None = None  # of the samples, once some were pushed
        self.queued = 0  # samples that were pushed and are not in a block that was handed out
        self.delivered = self.floor = 0  # latents that were handed out, and that no interrupt takes back
        self.epoch = 0  # interrupts so far
        self.plays_until = 0.0  # when all that was handed out has been played, held frames included
        self.runs_out = 0.0  # the same without the frames held since the latest block: whoever waits longest is first
        self.changes = 0  # how often waiting consumers were woken
        self.loops: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    # -- callers

    def put(self, message: Message, call: str) -> None:
        """Raises: SessionClosed, in the name of ``call``."""
        with self.lock:
            self.require_open(call)
            self.messages.append(message)

    def require_open(self, call: str) -> None:
        if self.closed:
            raise SessionClosed(f"{call}: expected an open session, got a closed one")

    def interrupt(self, shown: int | None) -> tuple[int, int]:
        """Take back the latents from ``shown`` on, as far as that is possible; None: what was handed out was shown.

        Returns: where the stream goes on, and the new epoch.
        """
        with self.lock:
            self.require_open("interrupt")
            shown = self.delivered if shown is None else min(max(shown, self.floor), self.delivered)
            self.delivered, self.queued = shown, 0
            self.ready.clear()
            self.epoch += 1
            self.plays_until = self.runs_out = min(self.plays_until, self.clock())  # the rest is not played
            self.messages.append(Interrupt(shown))
            return shown, self.epoch

    def close(self) -> bool:
        """Returns: whether it was open."""
        with self.lock:
            closed, self.closed = self.closed, True
            self.messages.clear()
            self.ready.clear()
        self.wake()
        return not closed

    def peek(self) -> Made | None:
        """The first block that is ready, unless something that came before its delivery may change it."""
        with self.lock:
            return self._first()

    def _first(self) -> Made | None:
        if self.closed or not self.ready:
            return None
        first = self.ready[0]
        for message in (*self.reading, *self.messages):
            if isinstance(message, SegmentEnd) or (first.idle and isinstance(message, Pushed)):
                return None
        return first

    def take(self) -> Made | None:
        """Hand out the first block that is ready. Raises what a failed computation raised, when there is none."""
        with self.lock:
            made = self._first()
            if made is None:
                self._raise_error()
                return None
            self.ready.popleft()
            self.delivered += 1
            self.floor = max(self.floor, self.delivered - self.lead)
            if not made.idle:  # silence was not pushed
                self.queued = max(0, self.queued - len(made.about["audio"]))
            self.plays_until = self.runs_out = max(self.plays_until, self.clock()) + self.duration
            self.messages.append(Delivered())
            return made

    def hold(self, seconds: float) -> tuple[float, int] | None:
        """Where the stream stands and its epoch, if the next block is not ready; the viewer sees the last frame for so
        many seconds. Raises what a failed computation raised."""
        with self.lock:
            if self.closed or self._first() is not None:
                return None
            self._raise_error()
            self.plays_until = max(self.plays_until, self.clock()) + seconds
            return self.delivered * self.duration, self.epoch

    @property
    def failure_is_next(self) -> bool:
        """Whether a consumer for whom no block can be taken is to be told of a failure. Blocks that only wait for
        messages to be read come before it."""
        return self.error is not None and not self.closed and not (self.ready and (self.messages or self.reading))

    def _raise_error(self) -> None:
        error = self.error
        if error is not None and self.failure_is_next:
            self.error = None
            self.messages.append(Retry())
            raise error

    @property
    def settled(self) -> bool:
        """Whether nothing comes until something is put in."""
        with self.lock:
            return self._settled()

    def _settled(self) -> bool:
        return self.closed or (self.quiet and not self.messages and self.error is None)

    def ask_for_idle(self) -> bool:
        """Put in a request for silence if nothing else is to come. Returns: whether nothing else is to come."""
        with self.lock:
            if self._first() is not None or not self._settled() or self.closed:
                return False
            self.messages.append(IdleRequest())
            return True

    def wait(self, seen: int) -> None:
        """Until something has changed since ``changes`` was ``seen``."""
        with self.changed:
            self.changed.wait_for(lambda: self.changes != seen)

    @contextlib.contextmanager
    def woken(self) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set whenever something has changed."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        self.loops.add(entry)
        try:
            yield entry[1]
        finally:
            self.loops.discard(entry)

    def wake(self) -> None:
        with self.changed:
            self.changes += 1
            self.changed.notify_all()
        for entry in list(self.loops):
            try:
                entry[0].call_soon_threadsafe(entry[1].set)
            except RuntimeError:  # that consumer's loop is closed
                self.loops.discard(entry)

    # -- the worker

    def read(self) -> Message | None:
        """The next message; None where there is none."""
        with self.lock:
            if not self.messages:
                return None
            self.quiet = False  # until it is known what follows from it
            message = self.messages.popleft()
            self.reading.append(message)
            return message

    def offer(self, made: Iterable[Made], queued: int) -> None:
        """The blocks that are decoded, all messages having been read; the lock is held."""
        self.ready, self.queued = deque(made), queued
        self.reading.clear()
