"""Several servers behind a router, and a client that counts what it loses and what it sees twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rest_fast.serving import fake, protocol
from rest_fast.serving.access import Access
from rest_fast.serving.router import Place, Router
from rest_fast.serving.router_app import create_router_app
from rest_fast.serving.run import InThread, server_of
from rest_fast.serving.service import Service
from tests.kit.serving import RATE, Served, Socket, fake_service

TOKEN = "between-the-router-and-its-servers"


def routed_service(**options: Any) -> Service:
    """A service of the fake engine for a router."""
    service = fake_service(**options)
    service.access, service.routed = Access.of(TOKEN), True
    return service


@dataclass(eq=False)
class Address:
    """Where a client goes to."""

    port: int

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"


class Fleet:
    """Servers in threads, a router of them in another, all in this process."""

    def __init__(self, services: list[Service], **options: Any):
        self.services, self.options, self.gone = services, options, set[Service]()

    @contextlib.contextmanager
    def running(self) -> Iterator[Fleet]:
        with contextlib.ExitStack() as opened:
            self.served = [opened.enter_context(Served(service, page=False)) for service in self.services]
            self.router = Router(self.places, **self.options)
            app = create_router_app(self.router, page=False)
            self._running = InThread(server_of(app, self.router, host="127.0.0.1", port=0))
            opened.callback(self._running.end)
            self.port = self._running.port
            yield self

    def url(self, path: str, scheme: str = "http") -> str:
        return Address(self.port).url(path, scheme)

    async def places(self) -> list[Place]:
        return [
            Place(one.url(""), TOKEN, len(one.service.engine.seats), one.service.engine.capacity())
            for one in self.served
            if one.service not in self.gone
        ]

    def having(self, sessions: int = 1) -> Served:
        """A server with so many visitors."""
        return next(one for one in self.served if len(one.service.viewers) == sessions)

    def drain(self, one: Served) -> None:
        """As a server does at its first SIGTERM."""
        self.gone.add(one.service)
        asyncio.run_coroutine_threadsafe(one.service.drain(), one.server.loop)

    def lose(self, one: Served) -> None:
        """All its connections break, and there will be no others."""
        self.gone.add(one.service)
        connections = list(one.server.server_state.connections)
        for connection in connections:
            one.server.loop.call_soon_threadsafe(connection.transport.abort)


@dataclass(eq=False)
class Counting(Socket):
    """A viewer who counts frames by the numbers in the pictures."""

    frames: list[tuple[protocol.FrameMessage, fake.Code, int]] = field(default_factory=list)  # the moves before it

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, served: Any, form: str = "raw", **start: Any) -> AsyncIterator[Counting]:
        async with super().open(served, form, **start) as self:
            yield self

    async def watch(self, count: int) -> None:
        """So many more frames."""
        for _ in range(count):
            while not self.early:
                await self._receive()
            frame = protocol.read_frame(self.early.popleft())
            code = fake.read(self._picture(frame.picture))
            assert code is not None
            self.frames.append((frame, code, len(self.moves)))

    @property
    def moves(self) -> list[dict[str, Any]]:
        return [message for message in self.said if message["type"] == "session.moved"]

    @property
    def numbers(self) -> list[int]:
        """Frames of the stream that were shown, without those that were held."""
        return [code.frame for frame, code, _ in self.frames if not frame.flags & protocol.HELD]

    @property
    def lost(self) -> int:
        return sum(max(0, step - 1) for step in np.diff(self.numbers))

    @property
    def repeated(self) -> int:
        return sum(max(0, 1 - step) for step in np.diff(self.numbers))

    @property
    def sound(self) -> np.ndarray:
        return np.concatenate([np.frombuffer(frame.sound, "<i2") for frame, _, _ in self.frames])

    @property
    def gap(self) -> float:
        """The longest time between two frames, seconds."""
        return float(np.diff(self.arrivals).max())


def counting_up(seconds: float) -> np.ndarray:
    """Sound whose samples are their own numbers, from 1 on."""
    return np.arange(1, round(seconds * RATE) + 1).astype(np.int16)


@contextlib.asynccontextmanager
async def through_a_router(served: Served) -> AsyncIterator[Socket]:
    """``WS /v1/avatar/stream`` of a server, by a router in a thread of its own."""

    async def places() -> list[Place]:
        return [Place(served.url(""), "")]

    router = Router(places)
    app = create_router_app(router, page=False)
    running = await asyncio.to_thread(InThread, server_of(app, router, host="127.0.0.1", port=0))
    try:
        async with Socket.open(Address(running.port)) as watcher:
            watcher.transit += 2  # in what the router reads and writes
            yield watcher
    finally:
        await asyncio.to_thread(running.end)
