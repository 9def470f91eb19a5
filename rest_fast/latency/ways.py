"""Ways to serve several viewers: the engine, and what it is measured against in the same run.

* ``engine``: sessions of one engine, piece by piece, the most urgent first.
* ``apart``: each viewer has a session of its own. Their jobs (a chunk's features; all its evaluations; its decoding)
  take turns in the model's worker, first come, first served.
* ``batched``: whole chunks of all viewers in one call, when the last one's sound is there.
* ``reference``: the engine on the ops' references, which are eager PyTorch.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rest_fast import ops
from rest_fast.avatar import Avatar
from rest_fast.latency.viewers import Need, Source
from rest_fast.model import Model
from rest_fast.streaming.block import Block
from rest_fast.streaming.engine import Engine
from rest_fast.streaming.family import streams
from rest_fast.streaming.viewing import Viewing


@dataclass(frozen=True)
class Crowd:
    """Open sources, and the engine that serves them, if one does."""

    sources: Sequence[Source]
    engine: Engine | None = None


Way = Callable[..., contextlib.AbstractContextManager[Crowd]]  # model, avatar, count, lanes, seats


@contextlib.contextmanager
def engine(
    model: Model, avatar: Avatar, count: int, lanes: int, seats: int = 2, backend: str | None = None
) -> Iterator[Crowd]:
    """Nobody is refused, so that too many can be seen to be too many.

    ``seats``: places at least; with a single one, all evaluations of a chunk would be one piece.
    """
    chosen = contextlib.nullcontext() if backend is None else ops.use_backend(backend)
    with contextlib.ExitStack() as stack:
        with chosen:  # an engine computes in the context in which it was opened
            places = max(count, seats)
            serving = stack.enter_context(model.engine(lanes=lanes, sessions=places, admission=False))
            sessions = [serving.session(avatar, seed=i) for i in range(count)]
        yield Crowd(sessions, serving)


@contextlib.contextmanager
def apart(model: Model, avatar: Avatar, count: int, lanes: int, seats: int = 0) -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        yield Crowd([stack.enter_context(model.session(avatar, seed=i)) for i in range(count)])


@contextlib.contextmanager
def batched(model: Model, avatar: Avatar, count: int, lanes: int, seats: int = 0) -> Iterator[Crowd]:
    batch = model.compute(Batch, model, avatar, count)
    try:
        yield Crowd(batch.lanes)
    finally:
        model.compute(lambda: None)  # a chunk that is being made


WAYS: dict[str, Way] = {
    "engine": engine,
    "apart": apart,
    "batched": batched,
    "reference": functools.partial(engine, backend="reference"),
}


class Batch:
    """Streams whose chunks are lanes of one call."""

    def __init__(self, model: Model, avatar: Avatar, count: int):
        self.model, self.lanes = model, [Lane(self, stream) for stream in streams(model, avatar, count)]
        self.made = 0  # chunks of each
        self.job: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Begin the next chunk of all, if the last one's sound is there."""
        wanted = self.lanes[0].need.chunks(self.made + 1)
        if self.job is None and all(lane.pushed >= wanted for lane in self.lanes):
            self.job = asyncio.get_running_loop().create_task(self._chunk())

    async def _chunk(self) -> None:
        came = [lane.inbox for lane in self.lanes]
        for lane in self.lanes:
            lane.inbox = []
        try:
            blocks = await asyncio.wrap_future(self.model.submit(self._compute, came))
        except Exception as error:
            for lane in self.lanes:
                lane.ready.put_nowait(error)
            return
        for lane, made in zip(self.lanes, blocks):
            for block in made:
                lane.ready.put_nowait(block)
        self.made, self.job = self.made + 1, None
        self.look()

    @torch.inference_mode()
    def _compute(self, came: Sequence[Sequence[np.ndarray]]) -> list[list[Block]]:
        viewed = [lane.stream for lane in self.lanes]
        for stream, pieces in zip(viewed, came):
            for samples in pieces:
                stream.push(samples)
        jobs = [stream.next_chunk() for stream in viewed]
        for stream, job, latents in zip(viewed, jobs, viewed[0].sampler.run(jobs)):
            stream.accept(job, latents)
        return [list(_shown(stream)) for stream in viewed]


class Lane:
    """One viewer's place in a batch."""

    def __init__(self, batch: Batch, stream: Viewing):
        self.batch, self.stream, self.need = batch, stream, Need.of(stream)
        self.pushed = 0  # samples
        self.inbox: list[np.ndarray] = []
        self.ready: asyncio.Queue[Block | Exception] = asyncio.Queue()

    def push_audio(self, pcm: np.ndarray, /) -> None:
        self.inbox.append(pcm)
        self.pushed += len(pcm)
        self.batch.look()

    async def ablocks(self, *, idle: bool = False) -> AsyncIterator[Block]:
        while True:
            block = await self.ready.get()
            if isinstance(block, Exception):
                raise block
            yield block


def _shown(stream: Viewing) -> Iterator[Block]:
    """All blocks that can be shown."""
    while stream.has_block():
        block = stream.make_block()
        stream.deliver()
        yield block
    stream.forget()
