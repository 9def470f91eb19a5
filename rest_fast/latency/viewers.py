"""Viewers of streams: sound goes in as it is spoken, blocks are played as they come, and both are on record.

All viewers of a measurement are tasks of one event loop, which sleeps between pushes of 20 ms and blocks. Times are
seconds of one monotonic clock, that of the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rest_fast import media
from rest_fast.config import TEMPORAL
from rest_fast.files import DEMO
from rest_fast.streaming.block import Block
from rest_fast.streaming.viewing import Viewing
from rest_fast.units import FPS, FRAME, RATE

PIECE = RATE // 50  # samples that are pushed at once: 20 ms
LATENT = TEMPORAL * FRAME  # samples of a block
BLOCK = TEMPORAL / FPS  # seconds of one
BUFFER = BLOCK  # seconds behind the first block at which playback begins

Clock = Callable[[], float]


class Source(Protocol):
    """What a viewer watches: a session, or a peer of one (:mod:`rest_fast.latency.ways`)."""

    @property
    def stream(self) -> Viewing: ...
    def push_audio(self, pcm: np.ndarray, /) -> None: ...
    def ablocks(self, *, idle: bool = False) -> AsyncIterator[Block]: ...


@dataclass(frozen=True)
class Need:
    """How much sound has to be there, in samples at 16 kHz.

    ``chunk``: latents that are generated at once. ``ahead``: samples that must follow them. ``later``: latents that a
    decoder looks ahead.
    """

    chunk: int
    ahead: int
    later: int = 0

    @classmethod
    def of(cls, stream: Viewing) -> Need:
        later = stream.decoder.ahead
        return cls(stream.chunk, round(RATE * (stream.lookahead_ms / 1000 - later * BLOCK)), later)

    def chunks(self, count: int) -> int:
        """For so many chunks to be generated."""
        return count * self.chunk * LATENT + self.ahead

    def block(self, number: int) -> int:
        """For block ``number`` of the speech to be shown, look-ahead included."""
        return self.chunks((number + self.later) // self.chunk + 1)


@dataclass
class Player:
    """Plays blocks as they come. An *underrun*: the next block is not there when the one before has been played;
    playback then goes on when it comes. A *deadline* is the time at which a block would be played without any
    underrun.

    ``buffer``: seconds between the first block and the beginning of playback.
    """

    buffer: float = BUFFER
    until: float | None = None  # when all that came has been played
    due: float = 0.0  # the deadline of the next block
    blocks: int = 0
    met: int = 0  # deadlines
    missing: int = 0  # blocks whose deadline had passed at the end
    underruns: int = 0
    stalled: float = 0.0  # seconds of all underruns

    def take(self, now: float, duration: float = BLOCK) -> None:
        """A block came."""
        if self.until is None:
            self.until = self.due = now + self.buffer
        self._stall(now)
        self.blocks += 1
        self.met += now <= self.due
        self.until = max(self.until, now) + duration
        self.due += duration

    def hold(self, now: float, duration: float) -> None:
        """A frame was repeated in the place of a block that is late: an underrun that the viewer was spared."""
        if self.until is not None:
            self.until = max(self.until, now) + duration

    def finish(self, now: float) -> None:
        """Nobody watches any longer; what should have come by now is missing."""
        if self.until is not None:
            self._stall(now)
            self.missing = max(0, int((now - self.due) / BLOCK) + 1) if now > self.due else 0

    def _stall(self, now: float) -> None:
        assert self.until is not None, "player: expected playback to have begun"
        if now > self.until:
            self.underruns += 1
            self.stalled += now - self.until


@dataclass(frozen=True)
class Seen:
    """A block as it came to a viewer. ``response``: seconds since the last sample that it takes had been pushed,
    look-ahead included; None for silence and held frames."""

    at: float
    pts: float
    idle: bool = False
    held: bool = False
    degraded: bool = False
    response: float | None = None


@dataclass
class Viewer:
    """Speaks to a source and watches it.

    Args:
        idle: silence and held frames are shown, too, as :func:`rest_fast.streaming.live.live_blocks` hands them out.
    """

    source: Source
    speech: np.ndarray  # at 16 kHz, [n]
    idle: bool = False
    clock: Clock = time.monotonic
    player: Player = field(default_factory=Player)
    pushed: list[float] = field(default_factory=list)  # when each piece was
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.need = Need.of(self.source.stream)
        self._spoken = 0  # blocks of speech that came
        self._came = asyncio.Event()

    async def watch(self, start: float, seconds: float) -> None:
        """From ``start`` on, speak for so many seconds and play what comes in that time."""

        async def speak() -> None:
            await self.speak(self.speech[: round(seconds * RATE)], start)
            await until(start + seconds, self.clock)
            self.player.finish(self.clock())
            if self.player.until is None:  # who was never served has missed all that could have come
                self.player.missing = max(1, int((seconds - self.need.block(0) / RATE) / BLOCK))

        await self.while_taking(speak())

    async def speak(self, samples: np.ndarray, start: float) -> None:
        """Push pieces of 20 ms in real time, from ``start`` on; a piece that comes late is made up for."""
        for at in range(0, len(samples), PIECE):
            await until(start + at / RATE, self.clock)
            self.source.push_audio(samples[at : at + PIECE])
            self.pushed.append(self.clock())

    async def while_taking(self, work: Coroutine[Any, Any, None]) -> None:
        """Take blocks as they come until ``work`` is done. Raises what it or a computation raised."""
        tasks = [asyncio.create_task(work), asyncio.create_task(self._take())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self) -> None:
        async for block in self.source.ablocks(idle=True) if self.idle else self.source.ablocks():
            self.take(block, self.clock())

    def take(self, block: Block, now: float) -> None:
        """A block came."""
        if block.held:
            self.player.hold(now, block.duration)
        else:
            self.player.take(now, block.duration)
        speech = not (block.idle or block.held)
        there = self.there(self.need.block(self._spoken)) if speech else None
        response = None if there is None else now - there
        self._spoken += speech
        self.seen.append(Seen(now, block.pts, block.idle, block.held, block.degraded, response))
        self._came.set()

    def there(self, samples: int) -> float | None:
        """When so many samples had been pushed; None where they were not."""
        piece = -(-samples // PIECE) - 1
        return self.pushed[piece] if piece < len(self.pushed) else None

    async def next(self, wanted: Callable[[Seen], bool]) -> Seen:
        """The next block that comes and is wanted."""
        first = len(self.seen)
        while not (found := [one for one in self.seen[first:] if wanted(one)]):
            self._came.clear()
            await self._came.wait()
        return found[0]


class Feed:
    """A viewer whose sound is all there: a chunk's is pushed at once when the blocks of the one before have come."""

    def __init__(self, source: Source, speech: np.ndarray, clock: Clock = time.monotonic):
        self.source, self.speech, self.clock, self.need = source, speech, clock, Need.of(source.stream)
        self.blocks, self.at, self.fresh = source.ablocks(), 0, True

    async def chunk(self) -> float:
        """Seconds from a chunk's last sample to its last frame."""
        start = self.push()
        for _ in range(self.need.chunk):
            await anext(self.blocks)
        return self.clock() - start

    def push(self) -> float:
        """The sound of the next chunk; returns when. In a fresh stream, what must follow a chunk is pushed first."""
        size = self.need.chunk * LATENT
        if self.fresh:
            self._push(self.need.block(self.need.chunk - 1) - size)
            self.fresh = False
        start = self.clock()
        self._push(size)
        return start

    def _push(self, count: int) -> None:
        self.source.push_audio(np.take(self.speech, range(self.at, self.at + count), mode="wrap"))
        self.at = (self.at + count) % len(self.speech)

    async def close(self) -> None:
        await self.blocks.aclose()  # type: ignore[attr-defined]


async def until(moment: float, clock: Clock) -> None:
    """Sleep; not at all where the moment has passed."""
    if (wait := moment - clock()) > 0:
        await asyncio.sleep(wait)


def phases(count: int, period: float, how: str = "even", seed: int = 0) -> list[float]:
    """Seconds in one period at which viewers begin: ``even`` or ``random``."""
    if how == "even":
        return [period * i / count for i in range(count)]
    return sorted(np.random.default_rng(seed).uniform(0, period, count).tolist())


def recorded(seconds: float) -> np.ndarray:
    """The shipped speech at 16 kHz, again and again: fp32 [n]."""
    sound = media.load_audio(DEMO / "speech.wav")
    samples = media.resample(sound.mono, sound.rate, RATE)
    return np.resize(samples, round(seconds * RATE)).astype(np.float32)


def gaps(times: Sequence[float], every: int = 1) -> list[float]:
    """Seconds between every so many blocks, less what they last."""
    kept = np.array(times)[::every]
    return (np.diff(kept) - every * BLOCK).tolist()
