"""Transports as a front end sees them, all by one interface, for the contract (``test_contract.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as sockets
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rest_fast.serving import protocol
from rest_fast.serving.fake import FakeEngine
from rest_fast.serving.run import server
from rest_fast.serving.service import Service
from rest_fast.serving.viewer import Viewer

RATE = 16000


@dataclass(eq=False)
class Got:
    """A frame as it came to the front end, and the 40 ms of sound that came with it."""

    picture: np.ndarray
    sound: np.ndarray
    at: float


class Watcher(Protocol):
    """A front end with one viewer."""

    finished: list[tuple[str, bool]]  # segment ids and whether they were interrupted, as they were told

    async def push(self, samples: np.ndarray) -> None: ...
    async def end(self, name: str) -> None: ...
    async def interrupt(self) -> None: ...
    async def take(self, count: int) -> list[Got]: ...


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(eq=False)
class Direct:
    """No transport: the viewer itself, in this event loop."""

    viewer: Viewer
    finished: list[tuple[str, bool]] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, service: Service, **_: Any) -> AsyncIterator[Direct]:
        async with service.viewer("fake") as viewer:
            self = cls(viewer)
            self._frames = viewer.frames()
            try:
                yield self
            finally:
                await self._frames.aclose()

    async def push(self, samples: np.ndarray) -> None:
        self.viewer.push_bytes(samples.astype("<i2").tobytes())

    async def end(self, name: str) -> None:
        self.viewer.end(name)

    async def interrupt(self) -> None:
        self.viewer.interrupt()

    async def take(self, count: int) -> list[Got]:
        got = []
        while len(got) < count:
            shown = await anext(self._frames)
            got.append(Got(shown.picture, shown.sound, now()))
            while self.viewer.finished:
                one = self.viewer.finished.popleft()
                self.finished.append((one.id, one.interrupted))
        return got


class Served:
    """A server of a service in a thread of its own, with its event loop."""

    def __init__(self, service: Service, **options: Any):
        with sockets.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.service, self.server = service, server(service, port=self.port, **options)
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), "the server did not start"
            self._thread.join(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not end"

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"


@dataclass(eq=False)
class Socket:
    """``WS /v1/avatar/stream`` with frames as they are."""

    socket: Any
    form: str
    finished: list[tuple[str, bool]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)  # messages of text

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, served: Served, form: str = "raw", **start: Any) -> AsyncIterator[Socket]:
        from websockets.asyncio.client import connect

        async with connect(served.url("/v1/avatar/stream", "ws"), max_size=None) as socket:
            self = cls(socket, form)
            await self.say("session.start", avatar="fake", format=form, **start)
            ready = json.loads(await socket.recv())
            assert ready["type"] == "session.ready", ready
            self.side = ready["width"]
            yield self

    async def say(self, kind: str, **values: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **values}))

    async def push(self, samples: np.ndarray) -> None:
        await self.socket.send(samples.astype("<i2").tobytes())

    async def end(self, name: str) -> None:
        await self.say("audio.end", id=name)

    async def interrupt(self) -> None:
        await self.say("interrupt")
        while not (self.said and self.said[-1]["type"] == "interrupted"):
            message = await self.socket.recv()
            if isinstance(message, str):
                self._heard(json.loads(message))

    async def take(self, count: int) -> list[Got]:
        got: list[Got] = []
        while len(got) < count:
            message = await self.socket.recv()
            if isinstance(message, str):
                self._heard(json.loads(message))
                continue
            frame = protocol.read_frame(message)
            got.append(Got(self._picture(frame.picture), np.frombuffer(frame.sound, "<i2"), now()))
        await self._rest()
        return got

    async def _rest(self) -> None:
        """What was said behind the last frame."""
        with contextlib.suppress(asyncio.TimeoutError):
            while True:
                message = await asyncio.wait_for(self.socket.recv(), 0.005)
                assert isinstance(message, str), "a frame came early"
                self._heard(json.loads(message))

    def _picture(self, data: bytes) -> np.ndarray:
        if self.form == "raw":
            return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)
        import io

        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def _heard(self, message: dict[str, Any]) -> None:
        assert message["type"] != "error", message
        self.said.append(message)
        if message["type"] == "playback.finished":
            self.finished.append((message["id"], message["interrupted"]))


def fake_service(**options: Any) -> Service:
    """A service of the fake engine, whose avatar is called ``fake``."""
    engine = FakeEngine(**options)
    service = Service(engine.model, engine)  # type: ignore[arg-type]
    service.avatars.shipped["fake"] = engine.avatar
    return service


ADAPTERS: dict[str, Any] = {
    "direct": Direct.open,
    "raw": lambda served: Socket.open(served, "raw"),
    "jpeg": lambda served: Socket.open(served, "jpeg"),
}
