"""Session: one viewer's mailbox. Push sound, take blocks of 8 frames with exactly their sound.

Nothing here depends on a clock: the same seed and the same order of samples, segment ends, idle chunks, deliveries and
interrupts give the same frames, bit for bit, however the samples were cut. The
:class:`~rest_fast.streaming.stream.Stream` does the computing.

There are two locks. ``_inbox_lock`` guards what other threads touch (the inbox, the epoch, what was delivered); it is
held for microseconds, and longer only by a snapshot and a restore. ``_work_lock`` is held while the model's worker, in
which all computation takes place, makes a block. So pushing never waits for a chunk.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rest_fast import media, noise
from rest_fast.avatar import Avatar
from rest_fast.config import SamplingConfig
from rest_fast.errors import ArgumentError, AvatarError, StateError
from rest_fast.errors import SessionClosed as SessionClosed
from rest_fast.models.rest import REST
from rest_fast.streaming.block import Block
from rest_fast.streaming.graphs import graphs_of
from rest_fast.streaming.snapshot import SessionState
from rest_fast.streaming.stream import Stream
from rest_fast.worker import hold_over_fork


@dataclass(frozen=True, eq=False)
class Pushed:
    """Samples were pushed."""

    samples: np.ndarray


@dataclass(frozen=True)
class SegmentEnd:
    """What was pushed is complete."""


@dataclass(frozen=True)
class Delivered:
    """A consumer has taken the block that was ready."""


@dataclass(frozen=True)
class Interrupt:
    """Latents from ``shown`` on are taken back."""

    shown: int


Event = Pushed | SegmentEnd | Delivered | Interrupt


class Session:
    """Open with :meth:`rest_fast.Model.session`, or in an event loop with :meth:`rest_fast.Model.asession`; use as a
    context manager, ``async with`` included, or call :meth:`close`.

    Args:
        sample_rate: rate of the pushed sound, an integer in 8000..96000 Hz.
        seed: of the noise; 0..2^64 - 1.
        decode: how the VAE sees time, ``causal`` or ``lookahead(L)``; None for what fits the checkpoint.
        graphs: whether denoising and decoding are CUDA graphs: ``on``, ``off``, or ``auto``, on where there is CUDA.
    Raises: :class:`rest_fast.AvatarError`; :class:`rest_fast.ArgumentError`; where a capture fails
    :class:`rest_fast.CaptureError`, with the reason.
    """

    def __init__(
        self,
        model: REST,
        avatar: Avatar,
        sampling: SamplingConfig,
        *,
        sample_rate: int = 16000,
        seed: int = 0,
        decode: str | None = None,
        graphs: str = "auto",
    ):
        if not isinstance(avatar, Avatar):
            raise AvatarError(f"session: avatar: expected what model.prepare(photo) gave, got {type(avatar).__name__}")
        avatar.require(model.fingerprint)
        noise.normal(seed, 0, 1)  # refuses a seed out of range now
        self.model, self.avatar, self.sampling, self.seed = model, avatar, sampling, seed
        captures = graphs_of(graphs, model.device)
        self.stream = Stream.alone(model, avatar, sampling, graphs=captures, rate=sample_rate, seed=seed, decode=decode)
        self.lead = self.stream.lead  # latents that an interrupt can take back after delivery
        self._inbox_lock, self._work_lock = threading.Lock(), threading.RLock()
        hold_over_fork(self._inbox_lock)
        self._inbox: deque[Event] = deque()
        self._format: tuple[np.dtype[Any], tuple[int, ...]] | None = None
        self._delivered = self._floor = 0  # latents that were handed out, and that no interrupt takes back
        self._ready: Block | None = None  # made and not yet taken
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.epoch, self.closed = 0, False

    # -- input

    def push_audio(self, pcm: np.ndarray | torch.Tensor) -> None:
        """Append sound: int16 or float, [n] or [n, channels], any length; all pushes share one format.

        Raises: :class:`rest_fast.media.MediaError` for anything else or for NaN; :class:`SessionClosed`.
        """
        samples = media.own_pcm(pcm)  # a copy: the caller may reuse the array
        form = (samples.dtype, samples.shape[1:])
        with self._inbox_lock:
            self._require_open("push_audio")
            if self._format not in (None, form):
                raise media.MediaError(f"push_audio: expected samples like the first push {self._format}, got {form}")
            self._format = form
            self._inbox.append(Pushed(samples))
        self._wake()

    def end_segment(self) -> None:
        """What was pushed is complete: it is padded with silence to the next latent border and generated to the end."""
        with self._inbox_lock:
            self._require_open("end_segment")
            self._inbox.append(SegmentEnd())
        self._wake()

    def interrupt(self, shown_pts: float | None = None) -> float:
        """Call on barge-in: discards queued audio and unseen video, and ``block.epoch`` increases.

        Args:
            shown_pts: stream time in seconds up to which video was shown; all delivered blocks when None. It is moved
                to the next end of a block, and into what can be taken back: at most ``lead`` blocks of delivered video,
                once.
        Returns: stream time in seconds where the new epoch continues, which is the ``pts`` of its first block.
        Raises: :class:`rest_fast.ArgumentError` for what is no time; :class:`SessionClosed`.
        """
        seconds = self.model.config.latent_seconds
        with self._inbox_lock:
            self._require_open("interrupt")
            shown = self._delivered
            if shown_pts is not None:
                if not isinstance(shown_pts, (int, float)) or not math.isfinite(shown_pts):
                    raise ArgumentError(f"interrupt: shown_pts: expected seconds or None, got {shown_pts!r}")
                shown = min(max(math.ceil(shown_pts / seconds - 1e-6), self._floor), self._delivered)
            self._delivered, self._ready = shown, None
            self.epoch += 1
            self._inbox.append(Interrupt(shown))
        self._wake()
        return shown * seconds

    def close(self) -> None:
        """End everything; what was not delivered is dropped."""
        with self._inbox_lock:
            self.closed = True
            self._inbox = deque(e for e in self._inbox if isinstance(e, Delivered | Interrupt))  # for a snapshot
        self._wake()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # -- output

    @property
    def lookahead_ms(self) -> float:
        """Milliseconds of sound that must follow a chunk before all of it is shown."""
        return self.stream.lookahead_ms

    def blocks(self, *, idle: bool = False) -> Iterator[Block]:
        """The blocks that the samples so far allow; never waits. With none, ``idle`` makes a chunk of silence."""
        block = self._next_block() or (self._next_block(idle=True) if idle else None)
        while block is not None:
            yield block
            block = self._next_block()

    async def ablocks(self) -> AsyncIterator[Block]:
        """Blocks as they become possible, until :meth:`close`, made in another thread. A cancelled wait loses none."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(entry)
        try:
            while not self.closed:
                entry[1].clear()
                if await asyncio.wrap_future(self.model.submit(self._prepare)):
                    block = self._take()
                    if block is not None:
                        yield block
                elif not self.closed:
                    await entry[1].wait()
        finally:
            self._waiting.discard(entry)

    def metrics(self) -> dict[str, Any]:
        """Counts, and milliseconds of each stage as p50, p95, p99 over the latest chunks and blocks."""
        return self.stream.watch.report()

    def snapshot(self) -> SessionState:
        """The whole state of this stream; :meth:`restore` continues it bit for bit, in this process or another."""
        return self.model.compute(self._snapshot)

    def _snapshot(self) -> SessionState:
        with self._work_lock:
            while True:
                self._read_inbox()
                with self._inbox_lock:
                    if not self._inbox:  # nothing came meanwhile: epoch and stream belong together
                        if self._ready is not None:
                            self.stream.unmake(self._ready)
                            self._ready = None
                        return self.stream.snapshot()

    def restore(self, state: SessionState) -> None:
        """Continue a snapshot in a session of the same model, avatar, rate, seed and sampling."""
        if not isinstance(state, SessionState):
            raise StateError(
                f"restore: expected a SessionState (SessionState.from_bytes reads one), got {type(state).__name__}"
            )
        self.model.compute(self._restore, state)
        self._wake()

    def _restore(self, state: SessionState) -> None:
        identity = self.stream.identity()
        with self._work_lock, self._inbox_lock:
            self._require_open("restore")
            fields = state.fields(identity)
            content = self.stream.read(fields)
            # nothing above has changed the session, and nothing below can fail
            self.stream.put(content)
            self.epoch, self._format = content.timeline.epoch, content.timeline.sound.format
            self._delivered, self._floor = content.timeline.delivered, content.timeline.floor
            self._ready = None
            self._inbox.clear()

    # -- one block

    def _next_block(self, idle: bool = False) -> Block | None:
        while self.model.compute(self._prepare, idle):
            block = self._take()
            if block is not None:
                return block
        return None

    def _take(self) -> Block | None:
        """Hand out what was prepared, unless :meth:`close`, an interrupt or another consumer came first."""
        with self._inbox_lock:
            if self.closed or self._ready is None:
                return None
            block, self._ready = self._ready, None
            self._delivered += 1
            self._floor = max(self._floor, self._delivered - self.lead)
            self._inbox.append(Delivered())
            return block

    @torch.inference_mode()
    def _prepare(self, idle: bool = False) -> bool:
        """Make the next block and keep it in ``_ready``; False when nothing is due."""
        with self._work_lock:
            while not self.closed:
                epoch, ready = self._read_inbox()
                if ready:
                    return True
                self.stream.forget()
                if self.stream.prepare_block():
                    block = self.stream.make_block()
                    with self._inbox_lock:
                        wanted = self.epoch == epoch and not self.closed
                        if wanted:
                            self._ready = block
                    if not wanted:  # an interrupt or close() came meanwhile
                        self.stream.unmake(block)
                elif self.stream.due():
                    self.stream.generate()
                elif idle:
                    self.stream.generate(idle=True)
                else:
                    return False
            return False

    def _read_inbox(self) -> tuple[int, bool]:
        """Pass all events on to the stream, in order. Returns: the epoch reached, and whether a block is ready."""
        while True:
            with self._inbox_lock:
                if not self._inbox:
                    return self.epoch, self._ready is not None
                event = self._inbox.popleft()
            if isinstance(event, Pushed):
                self.stream.push(event.samples)
            elif isinstance(event, SegmentEnd):
                self.stream.end_segment()
            elif isinstance(event, Delivered):
                self.stream.deliver()
            else:
                self.stream.back_to(event.shown)

    def _require_open(self, call: str) -> None:
        if self.closed:
            raise SessionClosed(f"{call}: expected an open session, got a closed one")

    def _wake(self) -> None:
        for entry in list(self._waiting):
            try:
                entry[0].call_soon_threadsafe(entry[1].set)
            except RuntimeError:  # that consumer's loop is closed
                self._waiting.discard(entry)
