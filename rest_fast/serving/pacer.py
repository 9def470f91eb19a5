"""One media clock: frames of a session leave at their times, 25 a second, each with its 40 ms of sound.

A session hands out blocks of 8 frames when they are due, or a whole chunk as soon as it is made; a transport wants a
frame every 40 ms, and the picture and the sound of one moment together. The pacer lies between: it keeps what came
early, counts what came late, and knows what was shown when the viewer interrupts.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rest_fast.media.av_frames import as_int16
from rest_fast.streaming.block import Block
from rest_fast.streaming.session import Session
from rest_fast.units import FPS

BUFFER = 0.08  # seconds between the first frame and its time: what an event loop may be late without anybody noticing
ROOM = 48  # frames that wait before no block is taken any more: two chunks
Mark = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Shown:
    """A frame at its time."""

    picture: NDArray[np.uint8]  #: [H, W, 3]
    sound: NDArray[np.int16]  #: its 40 ms, [n] or [n, channels]; zeros where nothing was pushed
    index: int  #: frames since the viewer's clock began, those that were repeated included: the media clock
    pts: float  #: seconds of the stream, which stands still while a frame is repeated
    epoch: int
    segment: int
    idle: bool  #: made from silence
    held: bool  #: the frame before, again: computation, or the event loop, was late
    segment_end: bool  #: the last frame of a segment
    first: int = 0  #: samples before this frame's on the media clock
    spoken: int = 0  #: samples of ``sound`` that were pushed; behind them is silence

    @property
    def time(self) -> float:
        """Seconds of the media clock."""
        return self.index / FPS


class Pacer:
    """``async for shown in pacer``: the frames of a session for one viewer, until it is closed.

    Args:
        session: of an engine; nobody else takes its blocks.
        buffer: seconds between the first frame and its time.
        mark: takes the pictures uint8 [n, H, W, 3] of a block and returns those that are shown: labels and watermarks
            (:class:`rest_fast.media.provenance.Label`). It is called in the event loop.
        clock: seconds.
    """

    def __init__(
        self,
        session: Session,
        *,
        buffer: float = BUFFER,
        mark: Mark | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.session, self.buffer, self.mark, self.clock = session, buffer, mark, clock
        self.frames = 0  # shown
        self.held = 0  # of them, repeated
        self.late = 0.0  # seconds by which the clock was moved, since nobody asked for a frame at its time
        self.position = 0.0  # seconds of the stream that were shown
        self._waiting: deque[Shown] = deque()
        self._come = asyncio.Event()
        self._taken = asyncio.Event()
        self._shows = asyncio.Event()
        self._shows.set()
        self._start: float | None = None  # when frame 0 is due
        self._epoch, self._resume = session.epoch, 0.0
        self._last: Shown | None = None
        self._samples = 0

    @property
    def ready_seconds(self) -> float:
        """Video that waits for its time."""
        return len(self._waiting) / FPS

    @property
    def media_time(self) -> float:
        """Seconds of the media clock at the end of what was shown."""
        return self.frames / FPS

    @property
    def waiting(self) -> list[Shown]:
        """Frames that wait for their time."""
        return list(self._waiting)

    def put_back(self, frames: Iterable[Shown], position: float) -> None:
        """Begin with frames that waited elsewhere, of a stream that was shown up to ``position`` seconds. They are of
        this epoch: what an interrupt has left of the one before it is to be shown, too."""
        self._waiting, self.position = deque(replace(frame, epoch=self._epoch) for frame in frames), position

    def pause(self) -> None:
        """Show nothing until :meth:`go_on`; the clock is later by as much."""
        self._shows.clear()

    def go_on(self) -> None:
        self._shows.set()

    def interrupt(self) -> float:
        """The viewer has heard enough: queued speech is gone, and the picture goes on from what was shown.

        Up to 7 frames that end a block still come, without sound. Returns: seconds of the stream where it resumes.
        """
        self._resume = self.session.interrupt(shown_pts=self.position)
        self._epoch = self.session.epoch
        kept = [muted(frame) for frame in self._waiting if frame.pts < self._resume - 1e-6]
        self._waiting = deque(kept)
        self._taken.set()
        return self._resume

    async def __aiter__(self) -> AsyncIterator[Shown]:
        filling = asyncio.create_task(self._fill())
        try:
            while (frame := await self._next(filling)) is not None:
                yield self._noted(frame)
            if filling.done():  # else the session was closed a moment ago
                filling.result()  # what a computation raised
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)

    async def _fill(self) -> None:
        try:
            async for block in self.session.ablocks(idle=True):
                self._waiting += self._frames_of(block)
                self._come.set()
                while len(self._waiting) >= ROOM:
                    self._taken.clear()
                    await self._taken.wait()
        finally:
            self._come.set()

    def _frames_of(self, block: Block) -> list[Shown]:
        """The frames of a block, less those that an interrupt has taken back meanwhile."""
        if block.held:
            base = self._waiting[-1] if self._waiting else self._last
            return [] if base is None else [again(base)]
        sound = as_int16(block.audio)
        borders = np.rint(np.arange(len(block.video) + 1) * len(sound) / len(block.video)).astype(int)
        frames = []
        for k, picture in enumerate(block.video if self.mark is None else self.mark(block.video)):
            pts, last = block.pts + k / FPS, k == len(block.video) - 1
            piece, end = sound[borders[k] : borders[k + 1]], block.segment_end and last
            spoken = min(max(0, block.true_samples - int(borders[k])), len(piece))
            about = block.epoch, block.segment, block.idle, False, end
            frames.append(Shown(picture, piece, 0, pts, *about, spoken=spoken))
        if block.epoch >= self._epoch:  # more, where the session was interrupted by somebody else
            return frames
        return [muted(frame) for frame in frames if frame.pts < self._resume - 1e-6]

    async def _next(self, filling: asyncio.Task[None]) -> Shown | None:
        """The next frame, at its time; the last one again if there is none; None at the end."""
        if self._start is None:
            while not self._waiting:
                if filling.done():
                    return None
                self._come.clear()
                await self._come.wait()
            self._start = self.clock() + self.buffer
        wait = self._start + self.frames / FPS - self.clock()
        if wait > 0:
            await asyncio.sleep(wait)
        elif wait < -1 / FPS:  # nobody asked: the viewer is that much later from now on
            self._start -= wait
            self.late -= wait
        else:
            await asyncio.sleep(0)
        while not self._shows.is_set():  # it may be paused again before this goes on
            await self._shows.wait()
        if self.session.closed:
            return None
        if self._waiting:
            frame = self._waiting.popleft()
            self._taken.set()
            return frame
        if filling.done():
            return None
        if self._last is None:  # an interrupt has taken the first frames back
            self._start = None
            return await self._next(filling)
        return again(self._last)

    def _noted(self, frame: Shown) -> Shown:
        """The frame with its place on the media clock."""
        frame = replace(frame, index=self.frames, first=self._samples)
        self.frames += 1
        self._samples += len(frame.sound)
        self.held += frame.held
        if not frame.held:
            self.position = frame.pts + 1 / FPS
        self._last = frame
        return frame


def again(frame: Shown) -> Shown:
    """The frame once more, since the next one is late."""
    return replace(frame, sound=np.zeros_like(frame.sound), held=True, segment_end=False, spoken=0)


def muted(frame: Shown) -> Shown:
    """The picture alone; no segment ends with it, since none is heard."""
    return replace(frame, sound=np.zeros_like(frame.sound), idle=True, segment_end=False, spoken=0)
