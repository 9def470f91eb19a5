"""Transports as a front end sees them, all by one interface, for the contract (``tests/kit/adapters.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket as sockets
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from PIL import Image
from scipy.signal import resample_poly
from websockets.exceptions import ConnectionClosed

from rest_fast.serving import protocol
from rest_fast.serving.fake import FakeEngine
from rest_fast.serving.limits import Limits
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
    that may be under way to it in the moment when it speaks to the server. ``dropped``: of those, how many it never
    sees, since its library throws away what waits at an interrupt."""

    exact: bool
    transit: int
    dropped: int
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

    exact, transit, dropped = True, 3, 0
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

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What is under way in its event loop."""
        loop = self.server.loop
        return [task for task in asyncio.all_tasks(loop) if not task.done()]

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"


@dataclass(eq=False)
class Socket:
    """``WS /v1/avatar/stream`` with frames as they are."""

    exact, transit, dropped = True, 3, 0
    socket: Any
    form: str
    finished: list[tuple[str, bool]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)  # messages of text
    early: deque[bytes] = field(default_factory=deque)  # frames that came while something else was waited for
    arrivals: list[float] = field(default_factory=list)  # of frames

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, served: Any, form: str = "raw", **start: Any) -> AsyncIterator[Socket]:
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

    exact, transit, dropped = False, 10, 0

    shown: int = 0  # frames that were given out

    async def take(self, count: int) -> list[Got]:
        wanted, moments, read = self.shown + count, [], 0
        while len(moments) < wanted:
            # wanted + 4: behind which that many frames can be shown with their sound, mostly
            while len(self.early) < max(wanted + 4, read + 1):
                await self._receive()
            read = len(self.early)
            moments = await self._meanwhile(asyncio.to_thread(self._moments, b"".join(self.early)))
        behind = read - len(moments)  # pieces that came until a frame could be shown with its sound
        assert behind <= 7, "the file is late"  # AAC at 16 kHz needs two packets of 64 ms, a fragment is a frame or two
        got = [Got(*moments[k], self.arrivals[k + behind]) for k in range(self.shown, wanted)]
        self.shown = wanted
        return got

    async def interrupt(self) -> None:
        """What came while this player read the file was on its way, too: where processors are busy, many frames."""
        await super().interrupt()
        self.transit = Film.transit + max(0, len(self.early) - self.shown - 7)

    async def _meanwhile(self, job: Awaitable[Any]) -> Any:
        """The result of a job, while frames go on to arrive at their times."""
        doing = asyncio.ensure_future(job)
        while not doing.done():
            await self._receive()
        return await doing

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
            first = max(0, round(time * self.rate))
            piece = self.sound[first : first + round(0.04 * self.rate)]
            found.append((picture, np.rint(piece.clip(-1, 1) * 32767).astype(np.int16)))
        return found


class Track:
    """One track of a call. Its frames' times are those of the sender's clock, from RTCP's sender reports, as a browser
    puts picture and sound together."""

    def __init__(self, receiver: Any, clock: int):
        self.receiver, self.clock = receiver, clock
        self.frames: deque[tuple[Any, float]] = deque()
        self._first: int | None = None  # RTP timestamp of the first frame
        self._newest = 0  # the RTP timestamp that came last
        self.arrived = 0  # frames of which a packet came; the decoder may be behind where processors are busy
        self._offsets: list[float] = []
        self._rtp, self._rtcp = receiver._handle_rtp_packet, receiver._handle_rtcp_packet
        receiver._handle_rtp_packet, receiver._handle_rtcp_packet = self._packet, self._report
        self.task = asyncio.create_task(self._read())

    async def _packet(self, packet: Any, arrival_time_ms: int) -> None:
        if self._first is None:
            self._first = packet.timestamp
        self.arrived += packet.timestamp != self._newest
        self._newest = packet.timestamp
        await self._rtp(packet, arrival_time_ms=arrival_time_ms)

    async def _report(self, packet: Any) -> None:
        about = getattr(packet, "sender_info", None)
        if about is not None and self._first is not None:
            sent = (about.rtp_timestamp - self._first & 0xFFFFFFFF) / self.clock
            self._offsets.append(about.ntp_timestamp / 2**32 - sent)
        await self._rtcp(packet)

    async def _read(self) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                self.frames.append((await self.receiver.track.recv(), now()))

    @property
    def offset(self) -> float | None:
        """Seconds of the sender's clock at the first frame. A report may be sent late, but not early."""
        return min(self._offsets, default=None)


@dataclass(eq=False)
class Call:
    """WebRTC."""

    peer: Any
    channel: Any
    finished: list[tuple[str, bool]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)
    # the server's track holds 4 frames, its encoder one, and a packet of the next frame ends one here
    exact, transit, dropped = False, 6, 0
    taken: int = 0  # frames that were given out, or thrown away

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, served: Served) -> AsyncIterator[Call]:
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        try:
            receivers = {kind: peer.addTransceiver(kind, "recvonly").receiver for kind in ("video", "audio")}
            self = cls(peer, peer.createDataChannel("talk"))
            opened = asyncio.Event()
            self.channel.on("open", opened.set)
            self.channel.on("message", self._heard)
            await peer.setLocalDescription(await peer.createOffer())
            offer = {"sdp": peer.localDescription.sdp, "type": "offer", "avatar": "fake"}
            status, answer = await ask(served.url("/offer"), json.dumps(offer).encode())
            assert status == 200, answer
            await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
            self.tracks = {kind: Track(receivers[kind], {"video": 90_000, "audio": 48_000}[kind]) for kind in receivers}
            self.moments = Moments()
            await asyncio.wait_for(opened.wait(), 20)
            while None in [track.offset for track in self.tracks.values()]:
                await asyncio.sleep(0.01)
            self.taken = len(self.tracks["video"].frames)
            self.tracks["video"].frames.clear()  # nobody has watched so far
            yield self
        finally:
            await peer.close()

    async def push(self, samples: np.ndarray) -> None:
        sound = resample_poly(samples.astype(np.float64), 48_000 // RATE, 1).clip(-32767, 32767).astype("<i2")
        for first in range(0, len(sound), 20_000):  # a message has at most 64 KiB
            self.channel.send(sound[first : first + 20_000].tobytes())

    async def end(self, name: str) -> None:
        self.say("audio.end", id=name)

    def say(self, kind: str, **values: Any) -> None:
        self.channel.send(json.dumps({"type": kind, **values}))

    async def interrupt(self) -> None:
        """What has arrived before the answer was on its way, too: where processors are busy, it awaits the decoder."""
        self.say("interrupt")
        await self.hear("interrupted")
        self.transit = Call.transit + max(0, self.tracks["video"].arrived - self.taken)

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next message of this kind."""
        count = len(self.said)
        while not (found := [message for message in self.said[count:] if message["type"] == kind]):
            await asyncio.sleep(0.005)
        return found[0]

    async def take(self, count: int) -> list[Got]:
        video, audio = self.tracks["video"], self.tracks["audio"]
        assert video.offset is not None and audio.offset is not None
        lag = video.offset - audio.offset
        got: list[Got] = []
        while len(got) < count:
            while audio.frames:
                frame, _ = audio.frames.popleft()
                samples = frame.to_ndarray().reshape(-1, 2).mean(1) / 32768
                self.moments.hear(frame.pts / 48_000, samples, 48_000)
            if not video.frames or (video.frames[0][0].time + lag + 0.04) * 48_000 > len(self.moments.sound):
                await asyncio.sleep(0.005)
                continue
            frame, at = video.frames.popleft()
            self.taken += 1
            self.moments.pictures.append((frame.time + lag, frame.to_ndarray(format="rgb24")))
            got += [Got(*moment, at) for moment in self.moments.take()]
        return got

    def _heard(self, message: str) -> None:
        told = json.loads(message)
        self.said.append(told)
        if told["type"] == "playback.finished":
            self.finished.append((told["id"], told["interrupted"]))


async def ended(socket: Any) -> tuple[list[dict[str, Any]], int]:
    """The messages of text until the connection is closed, and its code."""
    told = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = await socket.recv()
            if isinstance(message, str):
                told.append(json.loads(message))
    return told, socket.protocol.close_code


async def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """GET, or POST with a body. Returns: the status, and the answer: of JSON, or the text."""

    def wait() -> tuple[int, str]:
        try:
            with urlopen(Request(url, body, headers), timeout=30) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    status, text = await asyncio.to_thread(wait)
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def fake_service(limits: Limits | None = None, **options: Any) -> Service:
    """A service of the fake engine, whose avatar is called ``fake``."""
    engine = FakeEngine(**options)
    service = Service(engine.model, engine, limits=limits or Limits())  # type: ignore[arg-type]
    service.avatars.shipped["fake"] = engine.avatar
    return service
