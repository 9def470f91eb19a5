"""Session: one viewer. Push sound, take blocks of 8 frames with exactly their sound.

Frames do not depend on a clock: the same seed and the same order of samples, segment ends, idle requests, deliveries
and interrupts give the same frames, bit for bit, however the samples were cut, whatever other sessions do and however
far generation has run ahead. What callers do goes into a :class:`~rest_fast.streaming.mailbox.Mailbox`; the session's
:class:`~rest_fast.streaming.engine.Engine` computes, piece by piece, in the model's worker. So pushing never waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from numbers import Real
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from rest_fast import media
from rest_fast.errors import ArgumentError, BacklogFull, StateError
from rest_fast.errors import SessionClosed as SessionClosed
from rest_fast.streaming import events
from rest_fast.streaming.block import Block, Made
from rest_fast.streaming.live import HELD, live_blocks
from rest_fast.streaming.mailbox import Pushed, SegmentEnd
from rest_fast.streaming.metrics import Metrics
from rest_fast.streaming.seat import Seat
from rest_fast.streaming.snapshot import SessionState
from rest_fast.streaming.viewing import Viewing

T = TypeVar("T")
LOG = logging.getLogger(__name__)


class Host(Protocol):
    """What a session asks of its engine."""

    eager: bool  # generates when sound comes; otherwise when a block is asked for

    @property
    def executor(self) -> Executor:
        """For waits."""

    def kick(self) -> None:
        """Something has come: go on computing."""

    def compute(self, job: Callable[..., T], *args: Any) -> T:
        """Between two pieces of computation."""

    def leave(self, seat: Seat) -> None:
        """The session was closed."""


class Session:
    """Open with :meth:`rest_fast.Model.session` or :meth:`rest_fast.Engine.session`, in an event loop with their
    ``asession``; use as a context manager, ``async with`` included, or call :meth:`close`. Safe to use from several
    threads. ``lookahead_ms``: milliseconds of sound that must follow a chunk before all of it is shown. ``lead``:
    blocks that an interrupt can take back after delivery.
    """

    def __init__(self, engine: Host, seat: Seat, backlog: float | None = None):
        """
        Args:
            backlog: seconds of sound that may be queued; None: any.
        """
        self.engine, self.seat, self.mailbox, self.backlog = engine, seat, seat.mailbox, backlog
        stream = seat.stream
        self.model, self.avatar, self.seed, self.lead = stream.model, stream.avatar, stream.seed, stream.lead
        self.sampling, self.watch = stream.sampler.sampling, stream.watch
        self.rate, self.lookahead_ms = stream.timeline.sound.rate, stream.lookahead_ms
        self._listeners: list[Callable[[events.Event], None]] = []
        self._speaking: tuple[int, int] | None = None  # epoch and segment that the latest block speaks in
        self._counts = dict.fromkeys(("blocks", "idle", "degraded", "held", "starved", "refused", "interrupts"), 0)
        # pts and last frame of the latest blocks, as many as an interrupt can take back and one more
        self._lasts: deque[tuple[float, np.ndarray]] = deque(maxlen=self.lead + 1)

    @property
    def stream(self) -> Viewing:
        """What computes, as long as the session is open."""
        return self.seat.stream

    @property
    def epoch(self) -> int:
        """Interrupts so far."""
        return self.mailbox.epoch

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called, here or by the engine."""
        return self.mailbox.closed

    # -- input

    def push_audio(self, pcm: np.ndarray | torch.Tensor) -> None:
        """Append sound: int16 or float, [n] or [n, channels], any length; all pushes share one format.

        Raises: :class:`rest_fast.MediaError` for anything else or for NaN; :class:`rest_fast.BacklogFull` for
        more than the engine lets a session queue; :class:`SessionClosed`. Then nothing of it was taken.
        """
        samples = media.own_pcm(pcm)  # a copy: the caller may reuse the array
        form = (samples.dtype, samples.shape[1:])
        with self.mailbox.lock:
            self.mailbox.require_open("push_audio")
            expected = self.mailbox.format
            if expected not in (None, form):
                raise media.MediaError(f"push_audio: expected samples like the first push {expected}, got {form}")
            self._require_room(len(samples))
            self.mailbox.format = form
            self.mailbox.queued += len(samples)
            self.mailbox.messages.append(Pushed(samples))
        self._came()

    def end_segment(self) -> None:
        """What was pushed is complete: it is padded with silence to the next latent border and generated to the end."""
        self.mailbox.put(SegmentEnd(), "end_segment")
        self._came()

    def interrupt(self, shown_pts: float | None = None) -> float:
        """Call on barge-in: discards queued audio and unseen video, and ``block.epoch`` increases.

        Args:
            shown_pts: stream time in seconds up to which video was shown; all delivered blocks when None. It is moved
                to the next end of a block, and into what can be taken back: at most ``lead`` blocks of delivered video,
                once.
        Returns: stream time in seconds where the new epoch continues, which is the ``pts`` of its first block.
        Raises: :class:`rest_fast.ArgumentError` for what is no time; :class:`SessionClosed`.
        """
        seconds, shown = self.mailbox.duration, None
        if shown_pts is not None:
            if not isinstance(shown_pts, Real) or not math.isfinite(shown_pts):
                raise ArgumentError(f"interrupt: shown_pts: expected seconds or None, got {shown_pts!r}")
            shown = math.ceil(shown_pts / seconds - 1e-6)
        shown, epoch = self.mailbox.interrupt(shown)
        self._counts["interrupts"] += 1
        while len(self._lasts) > 1 and self._lasts[-1][0] >= shown * seconds - 1e-6:  # it is not shown
            self._lasts.pop()
        self._came()
        self._tell(events.Interrupted(shown * seconds, epoch))
        return shown * seconds

    def close(self) -> None:
        """End everything; what was not delivered is dropped, and the memory is given back."""
        if self.mailbox.close():
            self.engine.leave(self.seat)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # -- output

    def blocks(self, *, idle: bool = False) -> Iterator[Block]:
        """The blocks that the samples so far allow. With none, ``idle`` makes a chunk of silence.

        Waits for computation, never for input. Raises what a failed computation raised; the next call tries again.
        """
        while (block := self._next(idle)) is not None:
            yield block
            idle = False

    def _next(self, idle: bool) -> Block | None:
        while True:
            seen = self.mailbox.changes
            if (made := self.mailbox.take()) is not None:
                return self._handed_out(made)
            if idle and self.mailbox.ask_for_idle():
                idle = False
            elif self.mailbox.settled:
                if self.mailbox.peek() is None:
                    return None
                continue  # it came between the two looks
            self.engine.kick()
            self.mailbox.wait(seen)

    async def ablocks(self, *, idle: bool = False) -> AsyncIterator[Block]:
        """Blocks as they become possible, until :meth:`close`, made in another thread. A cancelled wait loses none.

        With ``idle``, for a viewer who watches all the time: the next block by the time when the one before has been
        played, silence where sound is missing, and the last frame held where computation is late.
        """
        with self.mailbox.woken() as changed:
            if idle:
                calls = self._take, self._hold, self._arrival, self.engine.kick
                async for shown in live_blocks(self.mailbox, changed, self.lead * self.mailbox.duration, *calls):
                    yield shown
                return
            while not self.closed:
                changed.clear()
                await self._arrival()
                if (block := self._take()) is not None:
                    yield block
                elif not self.closed and self.mailbox.peek() is None:
                    if not self.mailbox.settled:
                        self.engine.kick()
                    await changed.wait()

    @property
    def queued_seconds(self) -> float:
        """Sound that was pushed and is not in a block that was handed out."""
        return self.mailbox.queued / self.rate

    @property
    def ready_seconds(self) -> float:
        """Video that is decoded and can be taken without waiting."""
        return len(self.mailbox.ready) * self.mailbox.duration

    def metrics(self) -> Metrics:
        """Counts since the session was opened, and times of each stage over the latest chunks and blocks."""
        return Metrics(
            chunks=self.watch.chunks,
            slow=self.watch.slow,
            queued=self.queued_seconds,
            ready=self.ready_seconds,
            stages=self.watch.percentiles(),
            **self._counts,
        )

    def listen(self, listener: Callable[[events.Event], None]) -> Callable[[], None]:
        """Call ``listener`` with each of :mod:`rest_fast.streaming.events` from now on, in the thread that takes a
        block or interrupts; what it raises is logged. Returns: a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def snapshot(self) -> SessionState:
        """The whole state of this stream; :meth:`restore` continues it bit for bit, in this process or another.

        What is just being computed is not waited for. Raises: :class:`SessionClosed`.
        """
        return self.engine.compute(self.seat.snapshot)

    def restore(self, state: SessionState) -> None:
        """Continue a snapshot in a session of the same model, avatar, rate, seed and sampling."""
        if not isinstance(state, SessionState):
            raise StateError(
                f"restore: expected a SessionState (SessionState.from_bytes reads one), got {type(state).__name__}"
            )
        self.engine.compute(self.seat.restore, state)
        self._came()
        self.mailbox.wake()

    # -- handing out

    def _take(self) -> Block | None:
        made = self.mailbox.take()
        return None if made is None else self._handed_out(made)

    def _handed_out(self, made: Made) -> Block:
        if self.engine.eager:
            self.engine.kick()
        block = made.block()
        self._lasts.append((block.pts, block.video[-1:]))
        for name in ("idle", "degraded"):
            self._counts[name] += getattr(block, name)
        self._counts["blocks"] += 1
        self._counts["starved"] += made.starved
        self._announce(block, made.starved)
        return block

    def _hold(self) -> Block | None:
        """The last frame again, since the next block is late; None before the first block, or if there is one."""
        place = self.mailbox.hold(HELD) if self._lasts else None
        if place is None:
            return None
        self._counts["held"] += 1
        self._tell(events.Late(*place))
        dtype, shape = self.mailbox.format or (np.dtype(np.float32), ())
        return Block(self._lasts[-1][1], np.zeros((0, *shape), dtype), *place, -1, False, False, 0, held=True)

    async def _arrival(self) -> None:
        """Until the pictures of the first block have come from the GPU: the loop is not to wait for them."""
        made = self.mailbox.peek()
        if made is not None and not made.arrived:
            await asyncio.get_running_loop().run_in_executor(self.engine.executor, made.wait)

    def _announce(self, block: Block, starved: bool) -> None:
        if starved:
            self._tell(events.Starved(block.pts, block.epoch))
        speaking = None if block.idle else (block.epoch, block.segment)
        if speaking is not None and speaking != self._speaking:
            self._tell(events.SpeechStarted(block.pts, block.epoch, block.segment))
        self._speaking = speaking
        if block.segment_end:
            self._tell(events.SegmentEnded(block.pts + block.duration, block.epoch, block.segment))

    def _tell(self, event: events.Event) -> None:
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:  # the block that it is about is not to be lost
                LOG.exception("session: a listener failed at %s", event)

    def _came(self) -> None:
        """Something was put in."""
        if self.engine.eager:
            self.engine.kick()
        else:
            self.mailbox.wake()  # a consumer that waits has it read

    def _require_room(self, count: int) -> None:
        queued = self.mailbox.queued
        if self.backlog is not None and queued + count > self.backlog * self.rate:
            self._counts["refused"] += 1
            raise BacklogFull(
                f"push_audio: expected at most {self.backlog:g} s of sound in the queue, got {count / self.rate:.2f} s "
                f"on top of {queued / self.rate:.2f} s; push as blocks are taken"
            )


async def opened(future: Future[Session]) -> Session:
    """A session that is being opened in the worker; if nobody waits for it any more, it is closed."""
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        future.add_done_callback(_close_unseen)  # of the worker: the event loop may end before
        raise


def _close_unseen(future: Future[Session]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
