"""What viewers wait for, measured: each function takes a model, an avatar and :class:`Options`.

Lists are seconds of single events, in order; :func:`percentiles` makes numbers of them. Opening a session is never in
them, nor are the first :data:`WARM` chunks of a session, unless it says *cold*.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rest_fast.avatar import Avatar
from rest_fast.latency.viewers import BLOCK, BUFFER, Feed, Need, Player, Source, Viewer, gaps, phases, recorded
from rest_fast.latency.ways import WAYS
from rest_fast.model import Model
from rest_fast.streaming.block import Block
from rest_fast.streaming.family import streams

WARM = 2  # chunks of a session that are not timed
LEAD = 0.2  # seconds between the start of viewers and the first sample
CROWD = 4  # sessions over which memory is measured
ROOM = 16  # places of an engine that is asked for its capacity, which is never more than those
EXCLUDED = f"opening of engines and sessions, and the first {WARM} chunks of a session where it does not say cold"
Seconds = list[float]


@dataclass(frozen=True)
class Options:
    """
    Args:
        chunks: that are timed of one session.
        crowd: that are timed of several sessions, all together.
        rounds: first frames, onsets and interrupts that are timed; sessions of cold chunks.
        seconds: that viewers watch.
        lanes: of an evaluation of the engine.
        buffer: seconds between a viewer's first block and playback.
        phases: when viewers begin, within the time of a chunk: ``even`` or ``random``.
        seed: of what is random: those phases, onsets and interrupts.
    """

    chunks: int = 20
    crowd: int = 40
    rounds: int = 3
    seconds: float = 20.0
    lanes: int = 2
    buffer: float = BUFFER
    phases: str = "even"
    seed: int = 0


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds of at least one; ``jitter_ms`` is p95 - p50."""
    p50, p95, p99 = (float(1e3 * v) for v in np.percentile(seconds, [50, 95, 99]))
    return {"count": len(seconds), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "jitter_ms": p95 - p50}


# -- one session


def chunk_cold(model: Model, avatar: Avatar, options: Options, way: str = "engine") -> Seconds:
    """From the last sample of a fresh session's first chunk to its last uint8 frame."""

    async def first() -> float:
        with WAYS[way](model, avatar, 1, options.lanes) as crowd:
            return (await _fed(crowd.sources[0], 1))[0]

    return [asyncio.run(first()) for _ in range(options.rounds)]


def chunk_warm(model: Model, avatar: Avatar, options: Options, ways: Sequence[str] = ("engine",)) -> dict[str, Seconds]:
    """From the last sample of a chunk to its last uint8 frame. Ways take turns, chunk by chunk."""

    async def turns() -> dict[str, Seconds]:
        with contextlib.ExitStack() as stack:
            opened = {way: stack.enter_context(WAYS[way](model, avatar, 1, options.lanes)) for way in ways}
            feeds = {way: Feed(crowd.sources[0], recorded(20)) for way, crowd in opened.items()}
            times: dict[str, Seconds] = {way: [] for way in ways}
            for i in range(WARM + options.chunks):
                for way in ways if i % 2 else reversed(ways):  # nobody is always second
                    seconds = await feeds[way].chunk()
                    times[way] += [seconds] if i >= WARM else []
            for feed in feeds.values():
                await feed.close()
            return times

    return asyncio.run(turns())


def first_frame(model: Model, avatar: Avatar, options: Options, way: str = "engine") -> dict[str, Seconds]:
    """Of fresh sessions that hear a voice in real time: from its first sample, and from the moment that the sound of
    the first block is there."""
    found: dict[str, Seconds] = {"from its first sample": [], "from its sound": []}

    async def once() -> None:
        with WAYS[way](model, avatar, 1, options.lanes) as crowd:
            viewer = Viewer(crowd.sources[0], recorded(20))
            await viewer.while_taking(_begun(viewer, found))

    for _ in range(options.rounds):
        asyncio.run(once())
    return found


def onset(model: Model, avatar: Avatar, options: Options) -> dict[str, Seconds]:
    """A viewer who watches silence; at a seeded moment of it a voice begins, in real time. To the first block of
    speech, as in :func:`first_frame`. Each utterance is one chunk, and ends."""
    found: dict[str, Seconds] = {"from its first sample": [], "from its sound": []}
    rng = np.random.default_rng(options.seed)

    async def utterances(viewer: Viewer) -> None:
        for _ in range(options.rounds):
            await viewer.next(lambda seen: seen.idle)
            await asyncio.sleep(rng.uniform(0, viewer.need.chunk * BLOCK))
            await _begun(viewer, found)
            viewer.source.end_segment()  # type: ignore[attr-defined]

    async def watched() -> None:
        with WAYS["engine"](model, avatar, 1, options.lanes) as crowd:
            viewer = Viewer(crowd.sources[0], recorded(20), idle=True)
            await viewer.while_taking(utterances(viewer))

    asyncio.run(watched())
    return found


async def _begun(viewer: Viewer, found: dict[str, Seconds]) -> None:
    """Speak until a block of speech comes, in real time and no more than it takes; note what it took."""
    sound, first = viewer.speech[: viewer.need.block(0)], len(viewer.pushed)
    _, seen = await asyncio.gather(
        viewer.speak(sound, viewer.clock()), viewer.next(lambda seen: not (seen.idle or seen.held))
    )
    for name, moment in zip(found, (viewer.pushed[first], viewer.pushed[-1])):
        found[name].append(seen.at - moment)


def interrupt(model: Model, avatar: Avatar, options: Options, way: str = "engine") -> Seconds:
    """From an interrupt, at a seeded moment while a chunk is being made, to the first new frame. The sound that it
    takes is there at once."""
    rng, times = np.random.default_rng(options.seed), []

    async def interrupted() -> None:
        with WAYS[way](model, avatar, 1, options.lanes) as crowd:
            session: Any = crowd.sources[0]
            feed = Feed(session, recorded(20))
            took = [await feed.chunk() for _ in range(WARM)][-1]
            for _ in range(options.rounds):
                feed.push()
                waiting = asyncio.ensure_future(anext(feed.blocks))
                await asyncio.sleep(rng.uniform(0, took))
                session.interrupt()
                feed.fresh = True
                start = feed.push()
                block: Block = await waiting
                while block.epoch != session.epoch:  # it had come before
                    block = await anext(feed.blocks)
                times.append(feed.clock() - start)
                for _ in range(feed.need.chunk - 1):
                    await anext(feed.blocks)
                took = await feed.chunk()
            await feed.close()

    asyncio.run(interrupted())
    return times


@torch.inference_mode()
def _parts(model: Model, avatar: Avatar, options: Options) -> dict[str, Seconds]:
    (stream,) = streams(model, avatar, 1)
    need, speech = Need.of(stream), recorded(20)
    size, times = need.chunks(1) - need.ahead, []
    stream.push(speech[: need.block(need.chunk - 1) - size])
    for _ in range(WARM + options.chunks):
        stream.push(speech[:size])
        moments = [_now(model)]
        job = stream.next_chunk()
        moments.append(_now(model))
        stream.accept(job, stream.sampler.run([job])[0])
        moments.append(_now(model))
        while stream.has_block():
            stream.make_block()
            stream.deliver()
        stream.forget()
        times.append(np.diff([*moments, _now(model)]).tolist())
    return {name: list(column) for name, column in zip(("features", "denoise", "decode"), zip(*times[WARM:]))}


def parts(model: Model, avatar: Avatar, options: Options) -> dict[str, Seconds]:
    """Of a chunk: features (with codes and noise), all evaluations, decoding to frames on the host; each waited for."""
    return model.compute(_parts, model, avatar, options)


def _now(model: Model) -> float:
    """When all that is queued on a GPU is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.monotonic()


# -- several sessions


def crowd(model: Model, avatar: Avatar, options: Options, count: int, way: str = "engine") -> dict[str, Any]:
    """Sessions whose sound is all there, each one chunk at a time: seconds of each chunk, which waits for those of the
    others, and chunks per second of all."""
    each = -(-(options.chunks if count == 1 else options.crowd) // count)

    async def fed() -> dict[str, Any]:
        with WAYS[way](model, avatar, count, options.lanes) as opened:
            feeds = [Feed(source, recorded(20)) for source in opened.sources]
            for _ in range(WARM):
                await asyncio.gather(*(feed.chunk() for feed in feeds))
            start = _now(model)
            times = await asyncio.gather(*(_chunks(feed, each) for feed in feeds))
            took = _now(model) - start
            for feed in feeds:
                await feed.close()
            return {"seconds": [t for one in times for t in one], "chunks_per_second": count * each / took}

    return asyncio.run(fed())


def live(model: Model, avatar: Avatar, options: Options, count: int, way: str = "engine") -> dict[str, Any]:
    """Viewers in real time, for ``options.seconds`` each, of sessions that nobody is refused.

    Returns: how many deadlines were met and how often and long viewers waited (:class:`Player`); percentiles of
    responses (:class:`Seen`); what gaps between blocks deviate from 0.32 s, and those between chunks from 0.96 s
    (root mean square); what the engine then says of its capacity, what a chunk costs it and how busy it was.
    """
    with WAYS[way](model, avatar, count, options.lanes, ROOM) as opened:
        speech = recorded(options.seconds)
        players = [Player(options.buffer) for _ in opened.sources]
        viewers = [Viewer(source, speech, player=player) for source, player in zip(opened.sources, players)]
        asyncio.run(_watched(viewers, options))
        served = None if opened.engine is None else opened.engine.metrics()
    about = {"way": way, "sessions": count, "seconds": options.seconds, **_watching(viewers)}
    if served is None:
        return about
    if math.isnan(served.chunk_ms):  # nothing was made that would say how many fit
        return about | {"capacity": None, "made_ms": None, "busy": served.busy}
    return about | {"capacity": served.capacity, "made_ms": served.chunk_ms, "busy": served.busy}


async def _watched(viewers: Sequence[Viewer], options: Options) -> None:
    period = viewers[0].need.chunk * BLOCK
    start = viewers[0].clock() + LEAD
    begin = phases(len(viewers), period, options.phases, options.seed)
    await asyncio.gather(*(viewer.watch(start + at, options.seconds) for viewer, at in zip(viewers, begin)))


def _watching(viewers: Sequence[Viewer]) -> dict[str, Any]:
    """Of all viewers together."""
    players, chunk = [viewer.player for viewer in viewers], viewers[0].need.chunk
    blocks, missing = sum(p.blocks for p in players), sum(p.missing for p in players)
    responses = [seen.response for viewer in viewers for seen in viewer.seen if seen.response is not None]
    came = [[seen.at for seen in viewer.seen] for viewer in viewers]
    return {
        "blocks": blocks,
        "deadlines_met": sum(p.met for p in players) / max(blocks + missing, 1),
        "underruns": sum(p.underruns for p in players),
        "stalled_s": sum(p.stalled for p in players),
        "unserved": sum(p.until is None for p in players),
        "block_gap_ms": _deviation([gap for times in came for gap in gaps(times)]),
        "chunk_gap_ms": _deviation([gap for times in came for gap in gaps(times, chunk)]),
        **(percentiles(responses) if responses else {}),
    }


def _deviation(seconds: Sequence[float]) -> float:
    """Root mean square, in milliseconds; 0 of none."""
    return float(1e3 * np.sqrt(np.mean(np.square(seconds)))) if len(seconds) else 0.0


def memory(model: Model, avatar: Avatar, options: Options) -> dict[str, float | None]:
    """MiB that one more session takes: what an engine with more of them takes beyond one with two, after
    two chunks of each. Of the process: anonymous memory (Linux); on a GPU: what PyTorch allocated."""

    async def taken(count: int, stack: contextlib.ExitStack) -> list[float]:
        before = _used(model)
        opened = stack.enter_context(WAYS["engine"](model, avatar, count, options.lanes))
        for source in opened.sources:
            await _fed(source, 2)
        return [after - earlier for after, earlier in zip(_used(model), before)]

    with contextlib.ExitStack() as stack:  # the small ones stay open, so that the large one cannot use their memory
        asyncio.run(taken(2, stack))
        few, many = (asyncio.run(taken(count, stack)) for count in (2, 2 + CROWD))
    process, gpu = ((b - a) / CROWD / 2**20 for a, b in zip(few, many))
    return {
        "rss_anon_mib": None if math.isnan(process) else process,
        "cuda_mib": gpu if model.device.type == "cuda" else None,
    }


def _used(model: Model) -> tuple[float, float]:
    """Bytes of this process (NaN where the system does not say), and on its GPU, when what is free was given back."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    anonymous = next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), math.nan)
    return anonymous, torch.cuda.memory_allocated(model.device) if model.device.type == "cuda" else 0.0


async def _fed(source: Source, count: int) -> Seconds:
    """The first chunks of a source."""
    feed = Feed(source, recorded(20))
    times = await _chunks(feed, count)
    await feed.close()
    return times


async def _chunks(feed: Feed, count: int) -> Seconds:
    return [await feed.chunk() for _ in range(count)]
