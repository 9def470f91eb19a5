"""LiveKit rooms without a server, and faces in them as a front end sees them (``tests/kit/serving.py``).

The runner, its sources and the tracks are the library's own; what it publishes stays in this process. Streams of bytes
and calls go from one participant to the other as the server would carry them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from livekit import rtc
from livekit.agents.voice import avatar as lk

from rest_fast.serving.livekit_avatar import AvatarSession, serve_room
from rest_fast.serving.service import Service
from tests.kit.serving import RATE, Got, now

FRAME = RATE // 25
AGENT, FACE = "agent", "face"


class Reader:
    """What arrives of a stream of bytes."""

    def __init__(self, attributes: dict[str, str]):
        self.info = SimpleNamespace(attributes=attributes, stream_id="1")
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.pieces.get()
        if piece is None:
            raise StopAsyncIteration
        return piece


class Writer:
    def __init__(self, readers: list[Reader]):
        self.readers = readers

    async def write(self, data: bytes) -> None:
        for reader in self.readers:
            reader.pieces.put_nowait(data)

    async def aclose(self) -> None:
        for reader in self.readers:
            reader.pieces.put_nowait(None)


class Participant:
    """The local one of a room."""

    def __init__(self, room: Room, identity: str):
        self.room, self.identity = room, identity
        self.kind = rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        self.state = rtc.ParticipantState.PARTICIPANT_STATE_ACTIVE
        self.attributes: dict[str, str] = {}
        self.track_publications: dict[str, Any] = {}
        self._rpc_handlers: dict[str, Any] = {}  # the library looks into it
        self.calls: list[tuple[str, str]] = []
        self._numbers = itertools.count()

    async def publish_track(self, track: Any, options: Any) -> Any:
        async def subscribed() -> None:
            await self.room.subscribed.wait()

        publication = SimpleNamespace(sid=str(next(self._numbers)), name=track.name, kind=track.kind, track=track)
        publication.wait_for_subscription = subscribed
        self.track_publications[publication.sid] = publication
        return publication

    async def unpublish_track(self, sid: str) -> None:
        del self.track_publications[sid]

    def register_rpc_method(self, name: str, handler: Any) -> None:
        self._rpc_handlers[name] = handler

    @property
    def methods(self) -> list[str]:
        return list(self._rpc_handlers)

    def unregister_rpc_method(self, name: str) -> None:
        self._rpc_handlers.pop(name, None)

    async def perform_rpc(self, *, destination_identity: str, method: str, payload: str) -> str:
        await asyncio.sleep(0)
        self.calls.append((method, payload))
        there = self.room.others[destination_identity].local_participant
        if method not in there._rpc_handlers:
            raise rtc.RpcError(rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD, method)
        answer: str = there._rpc_handlers[method](rtc.RpcInvocationData("1", self.identity, payload, 1.0, method))
        return answer

    async def stream_bytes(
        self, name: str, *, topic: str, destination_identities: list[str], attributes: dict[str, str]
    ) -> Writer:
        readers = []
        for identity in destination_identities:
            readers.append(Reader(attributes))
            self.room.others[identity].handlers[topic](readers[-1], self.identity)
        return Writer(readers)


class Room(rtc.EventEmitter[str]):
    """As one participant has it."""

    def __init__(self, identity: str = AGENT):
        super().__init__()
        self.name, self.local_participant = "room", Participant(self, identity)
        self.others: dict[str, Room] = {}
        self.handlers: dict[str, Any] = {}
        self.connected, self.subscribed = True, asyncio.Event()
        self.subscribed.set()

    @property
    def remote_participants(self) -> dict[str, Participant]:
        return {name: room.local_participant for name, room in self.others.items()}

    def isconnected(self) -> bool:
        return self.connected

    def join(self, other: Room) -> None:
        for mine, theirs in ((self, other), (other, self)):
            mine.others[theirs.local_participant.identity] = theirs
            mine.emit("participant_active", theirs.local_participant)

    def vanish(self) -> None:
        """The server is gone."""
        self.connected = False
        self.emit("connection_state_changed", rtc.ConnectionState.CONN_DISCONNECTED)
        self.emit("disconnected", 0)

    def register_byte_stream_handler(self, topic: str, handler: Any) -> None:
        assert topic not in self.handlers
        self.handlers[topic] = handler

    def unregister_byte_stream_handler(self, topic: str) -> None:
        self.handlers.pop(topic, None)

    @property
    def waited_for(self) -> list[str]:
        """Events for which somebody waits."""
        return [event for event, calls in self._events.items() if calls]


class Tap(rtc.AVSynchronizer):
    """The library's synchroniser, which also says what it was given, in order, and when."""

    made: ClassVar[list[Tap]] = []

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.taken: deque[tuple[float, Any]] = deque()
        self.came = asyncio.Event()
        Tap.made.append(self)

    async def push(self, frame: Any, timestamp: float | None = None) -> None:
        self.taken.append((now(), frame))
        self.came.set()
        await super().push(frame, timestamp)


@contextlib.contextmanager
def tapped() -> Any:
    """Runners that are made meanwhile can be listened to."""
    original, rtc.AVSynchronizer = rtc.AVSynchronizer, Tap  # type: ignore[misc]
    Tap.made.clear()
    try:
        yield Tap.made
    finally:
        rtc.AVSynchronizer = original  # type: ignore[misc]


class Agent:
    """What of an ``AgentSession`` a face touches."""

    def __init__(self) -> None:
        self.output, self.ended = self, False
        self.audio: Any = None

    def replace_audio_tail(self, sink: Any) -> None:
        self.audio = sink

    def on(self, *_: Any) -> None: ...

    def off(self, *_: Any) -> None: ...

    def emit(self, *_: Any) -> None: ...

    def shutdown(self, *, drain: bool) -> None:
        self.ended = True


def frames_of(samples: np.ndarray, rate: int = RATE) -> list[rtc.AudioFrame]:
    """In pieces of 0.1 s, as an agent has them."""
    pieces = [samples[at : at + rate // 10] for at in range(0, len(samples), rate // 10)]
    return [rtc.AudioFrame(piece.astype("<i2").tobytes(), rate, 1, len(piece)) for piece in pieces]


@dataclass(eq=False)
class Watched:
    """A face in a room, and the voice of its agent."""

    exact, transit, dropped = True, 4, 0
    tap: Tap
    voice: Any
    finished: list[tuple[str, bool]] = field(default_factory=list)
    names: deque[str] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.voice.on("playback_finished", self._told)

    def _told(self, event: Any) -> None:
        self.finished.append((self.names.popleft() if self.names else "", event.interrupted))

    async def push(self, samples: np.ndarray) -> None:
        for frame in frames_of(samples):
            await self.voice.capture_frame(frame)

    async def end(self, name: str) -> None:
        self.names.append(name)
        self.voice.flush()

    async def interrupt(self) -> None:
        self.voice.clear_buffer()
        await asyncio.sleep(0.02)  # its way to the worker

    async def take(self, count: int) -> list[Got]:
        """Pictures, and the sound that the runner was given behind each: order is what it plays by."""
        got: list[Got] = []
        while len(got) < count:
            while sum(isinstance(frame, rtc.VideoFrame) for _, frame in self.tap.taken) < 2:
                self.tap.came.clear()
                await self.tap.came.wait()
            at, picture = self.tap.taken.popleft()
            sound = np.zeros(0, np.int16)
            while not isinstance(self.tap.taken[0][1], rtc.VideoFrame):
                sound = np.concatenate([sound, np.frombuffer(self.tap.taken.popleft()[1].data, np.int16)])
            pixels = np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3)
            got.append(Got(pixels, np.pad(sound, (0, FRAME - len(sound))), at))
        return got


@contextlib.asynccontextmanager
async def in_process(service: Service) -> AsyncIterator[Watched]:
    """The face in the agent's own process."""
    agent, room = Agent(), Room()
    face = AvatarSession(service.engine, service.avatars.find("fake"), sample_rate=RATE)
    with tapped() as made:
        await face.start(agent, room)
    try:
        yield Watched(made[0], agent.audio)
    finally:
        await face.aclose()


@contextlib.asynccontextmanager
async def remote(service: Service) -> AsyncIterator[Watched]:
    """The face as another participant."""
    mine, theirs = Room(AGENT), Room(FACE)
    voice = lk.DataStreamAudioOutput(mine, destination_identity=FACE, sample_rate=RATE, wait_playback_start=True)
    with tapped() as made:
        work = serve_room(theirs, service.engine, service.avatars.find("fake"), sample_rate=RATE)
        serving = asyncio.create_task(work)
        while not made:
            assert not serving.done(), serving.exception()
            await asyncio.sleep(0.005)
    mine.join(theirs)
    try:
        yield Watched(made[0], voice)
    finally:
        theirs.vanish()
        await serving
