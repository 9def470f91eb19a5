"""Transports as a front end sees them, all by one interface, for the contract (``test_contract.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket as sockets
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image

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
    """A front end with one viewer. ``exact``: it hears the very samples; others compress sound. ``transit``: frames
    that may be under way to it in the moment when it speaks to the server."""

    exact: bool
    transit: int
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

    exact, transit = True, 3
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

    exact, transit = True, 3
    socket: Any
    form: str
    finished: list[tuple[str, bool]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)  # messages of text
    early: deque[bytes] = field(default_factory=deque)  # frames that came while something else was waited for
    arrivals: list[float] = field(default_factory=list)  # of frames

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, served: Served, form: str = "raw", **start: Any) -> AsyncIterator[Socket]:
        from websockets.asyncio.client import connect

        async with connect(served.url("/v1/avatar/stream", "ws"), max_size=None, close_timeout=0.2) as socket:
            self = cls(socket, form)
            await self.say("session.start", **{"avatar": "fake", "format": form, **start})
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
        await self.hear("interrupted")

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next message of this kind."""
        while True:
            message = await self._receive()
            if message is not None and message["type"] == kind:
                return message

    async def take(self, count: int) -> list[Got]:
        got: list[Got] = []
        while len(got) < count:
            if not self.early:
                await self._receive()
                continue
            frame = protocol.read_frame(self.early.popleft())
            got.append(Got(self._picture(frame.picture), np.frombuffer(frame.sound, "<i2"), now()))
        with contextlib.suppress(asyncio.TimeoutError):  # what was said behind the last frame
            while True:
                await asyncio.wait_for(self._receive(), 0.005)
        return got

    async def _receive(self) -> dict[str, Any] | None:
        """The next message of text, or None for one with a frame, which is kept."""
        message = await self.socket.recv()
        if isinstance(message, str):
            return self._heard(json.loads(message))
        self.early.append(message)
        self.arrivals.append(now())
        return None

    def _picture(self, data: bytes) -> np.ndarray:
        if self.form == "raw":
            return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def _heard(self, message: dict[str, Any]) -> dict[str, Any]:
        assert message["type"] != "error", message
        self.said.append(message)
        if message["type"] == "playback.finished":
            self.finished.append((message["id"], message["interrupted"]))
        return message


@dataclass(eq=False)
class Film(Socket):
    """``WS /v1/avatar/stream`` with pieces of a file, read as a player reads it."""

    exact, transit = False, 10

    shown: int = 0  # frames that were given out

    async def take(self, count: int) -> list[Got]:
        wanted, moments = self.shown + count, []
        pieces = wanted + 4  # behind which that many frames can be shown with their sound, mostly
        while len(moments) < wanted:
            while len(self.early) < pieces:
                await self._receive()
            moments = self._moments(b"".join(self.early))
            pieces += 1
        behind = len(self.arrivals) - len(moments)  # pieces that came until a frame could be shown with its sound
        assert behind <= 7, "the file is late"  # AAC at 16 kHz needs two packets of 64 ms, a fragment is a frame or two
        got = [Got(*moments[k], self.arrivals[k + behind]) for k in range(self.shown, wanted)]
        self.shown = wanted
        return got

    @staticmethod
    def _moments(data: bytes) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pictures and the sound of their 40 ms, by the times in the file; the first one is shown for longer."""
        moments = Moments()
        with av.open(io.BytesIO(data), format="mp4") as file:
            for frame in file.decode():
                if isinstance(frame, av.VideoFrame):
                    moments.pictures.append((frame.time, frame.to_ndarray(format="rgb24")))
                else:
                    moments.hear(frame.time, frame.to_ndarray().mean(0), frame.sample_rate)
        if len(moments.pictures) > 1:
            moments.pictures[0] = (moments.pictures[1][0] - 0.04, moments.pictures[0][1])
        return moments.take()


class Moments:
    """Pictures and sound of one clock, whose times are seconds."""

    def __init__(self) -> None:
        self.pictures: deque[tuple[float, np.ndarray]] = deque()
        self.sound, self.rate = np.zeros(0, np.float32), 0  # from time 0

    def hear(self, time: float, samples: np.ndarray, rate: int) -> None:
        """Float samples."""
        first, self.rate = max(0, round(time * rate)), rate
        if first + len(samples) > len(self.sound):
            self.sound = np.pad(self.sound, (0, first + len(samples) - len(self.sound)))
        self.sound[first : first + len(samples)] = samples

    def take(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pictures whose sound is there, too, each once."""
        found = []
        while self.pictures and (self.pictures[0][0] + 0.04) * self.rate <= len(self.sound):
            time, picture = self.pictures.popleft()
            first = round(time * self.rate)
            piece = self.sound[first : first + round(0.04 * self.rate)]
            found.append((picture, np.rint(piece.clip(-1, 1) * 32767).astype(np.int16)))
        return found


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
    "fmp4": lambda served: Film.open(served, "fmp4"),
}
