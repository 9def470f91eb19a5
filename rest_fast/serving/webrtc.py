"""WebRTC through aiortc: the face and its voice as two tracks of one clock, and the visitor's microphone as a third.

``POST /offer`` with ``{"sdp", "type", "avatar", "seed"}`` is answered with ``{"sdp", "type", "session"}``. What is said
beside (``audio.end``, ``interrupt``, and the events of docs/serving.md) goes through a data channel that the client
opens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

import numpy as np
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from rest_fast.errors import SessionClosed
from rest_fast.media import av_frames
from rest_fast.serving import protocol
from rest_fast.serving.events import events_of
from rest_fast.serving.limits import Incoming
from rest_fast.serving.pacer import Shown
from rest_fast.serving.protocol import End, InterruptNow, Ping, ProtocolError, Start, Stop
from rest_fast.serving.service import Service
from rest_fast.serving.tasks import end_all
from rest_fast.serving.viewer import Viewer
from rest_fast.units import FPS

LOG = logging.getLogger(__name__)
RATE = 48000  # of WebRTC's sound, so that nothing is resampled on the way out
WAITING = 4  # frames of a track that wait to be sent
FAREWELL = 0.3  # seconds in which the last messages leave, behind which the connection is cut


class Outlet(MediaStreamTrack):
    """A track of frames that were put in."""

    def __init__(self, kind: str):
        self.kind = kind
        super().__init__()
        self._frames: asyncio.Queue[Any] = asyncio.Queue(WAITING)

    async def put(self, frame: Any) -> None:
        await self._frames.put(frame)

    async def recv(self) -> Any:
        if self.readyState != "live":
            raise MediaStreamError
        frame = await self._frames.get()
        if frame is None:
            self.stop()
            raise MediaStreamError
        return frame


class Call:
    """One visitor's peer connection."""

    def __init__(self, service: Service, viewer: Viewer):
        self.service, self.viewer = service, viewer
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.picture, self.voice = Outlet("video"), Outlet("audio")
        self.channel: Any = None
        self.ended, self._connected = asyncio.Event(), asyncio.Event()
        self._incoming = Incoming(service.limits)
        self._tasks: set[asyncio.Task[None]] = set()
        self.peer.on("connectionstatechange", self._changed)
        self.peer.on("track", self._track)
        self.peer.on("datachannel", self._channel)

    async def answer(self, sdp: str) -> str:
        """Raises: :class:`ProtocolError`."""
        try:
            await self.peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            self.peer.addTrack(self.picture)
            self.peer.addTrack(self.voice)
            await self.peer.setLocalDescription(await self.peer.createAnswer())
        except Exception as e:  # of the parser, which has no errors of its own
            got = protocol.short(str(e))
            raise ProtocolError("BAD_MESSAGE", f"sdp: expected an offer of WebRTC, got {got}") from None
        sent = [t.kind for t in self.peer.getTransceivers() if t.currentDirection in ("sendonly", "sendrecv")]
        if sorted(sent) != ["audio", "video"]:
            got = " and ".join(sent) or "neither"
            raise ProtocolError("BAD_MESSAGE", f"sdp: expected to receive one track of audio and video each, got {got}")
        found: str = self.peer.localDescription.sdp
        return found

    async def run(self) -> None:
        """Until either side ends it."""
        self._start(self._show())
        await self.ended.wait()
        if self.channel is not None and self.channel.readyState == "open":
            await asyncio.sleep(FAREWELL)

    async def close(self) -> None:
        await end_all(self._tasks)
        await self.peer.close()

    def _start(self, work: Any) -> None:
        """Work that ends the call when it ends; a microphone may end earlier."""

        async def guarded() -> None:
            try:
                await work
            except (MediaStreamError, ConnectionError):
                return
            except asyncio.TimeoutError:
                limit = self.service.limits.stall
                self._end(ProtocolError("STALLED", f"expected a client that takes frames within {limit:g} s"))
            except Exception as error:
                self._end(error)
            self.ended.set()

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self, error: Exception) -> None:
        """End the call, and tell the client why."""
        told = protocol.refusal(error)
        if told is None:
            self.service.counts.failed += 1
            LOG.error("a call failed", exc_info=error)
            told = protocol.FAULT
        self._say(protocol.error(told.code, str(told)))
        self.ended.set()

    async def _show(self) -> None:
        limits = self.service.limits
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._connected.wait(), limits.start)
        if not self._connected.is_set():
            return
        before: Shown | None = None
        async for shown in self.viewer.frames():
            if (reason := self.service.overdue(self.viewer)) is not None:
                raise ProtocolError("TOO_LONG", reason)
            picture = av_frames.video_frame(shown.picture, shown.index, "ITU601")
            both = np.stack([shown.sound] * 2, 1)  # aiortc makes stereo of mono 3 dB quieter
            await asyncio.wait_for(self.picture.put(picture), limits.stall)
            for sound in av_frames.sound_frames(both, RATE, shown.first):
                await asyncio.wait_for(self.voice.put(sound), limits.stall)
            for event in events_of(shown, before):
                self._say(event)
            self._tell_finished()
            if shown.index % FPS == FPS - 1:
                self._say(protocol.text("stats", **self.viewer.stats()))
            before = shown
        raise SessionClosed("the server ends")

    def _tell_finished(self) -> None:
        for message in self.viewer.tell_finished():
            self._say(message)

    def _say(self, message: str) -> None:
        if self.channel is not None and self.channel.readyState == "open":
            self.channel.send(message)

    async def _changed(self) -> None:
        state = self.peer.connectionState
        if state == "connected":
            self._connected.set()
        elif state in ("failed", "closed", "disconnected"):
            self.ended.set()

    def _track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._start(self._hear(track))

    async def _hear(self, track: MediaStreamTrack) -> None:
        while True:
            self.viewer.push_frame(await track.recv())

    def _channel(self, channel: Any) -> None:
        self.channel = channel
        channel.on("message", self._told)

    def _told(self, message: str | bytes) -> None:
        if self.ended.is_set():
            return
        try:
            self._obey(message)
        except Exception as error:
            self._end(error)

    def _obey(self, message: str | bytes) -> None:
        self._incoming.check(message)
        if isinstance(message, bytes):
            self.viewer.push_bytes(message)
            return
        match protocol.read_control(message):
            case End(id=name):
                self.viewer.end(name)
            case InterruptNow():
                resume = self.viewer.interrupt()
                self._say(protocol.text("interrupted", pts=resume, epoch=self.viewer.session.epoch))
                self._tell_finished()
            case Ping(id=name):
                self._say(protocol.text("pong", id=name))
            case Stop():
                self._say(protocol.text("session.done"))
                self.ended.set()
            case Start():
                raise ProtocolError("BAD_MESSAGE", "session.start: expected an offer in its place, got it")


def read_offer(body: bytes) -> tuple[str, str, int]:
    """``sdp``, ``avatar`` and ``seed`` of a request. Raises: :class:`ProtocolError`."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError("BAD_MESSAGE", "offer: expected a JSON object, got other text") from None
    if not isinstance(raw, dict) or raw.get("type") != "offer" or not isinstance(raw.get("sdp"), str):
        raise ProtocolError("BAD_MESSAGE", 'offer: expected {"sdp", "type": "offer", "avatar", "seed"}, got another')
    start = protocol.read_control(
        json.dumps({"type": "session.start", **{k: raw[k] for k in ("avatar", "seed") if k in raw}})
    )
    assert isinstance(start, Start)
    return raw["sdp"], start.avatar, start.seed


async def offer(service: Service, body: bytes) -> dict[str, str]:
    """Answer an offer; the call goes on in the background."""
    sdp, avatar, seed = read_offer(body)
    async with contextlib.AsyncExitStack() as opened:
        viewer = await opened.enter_async_context(service.viewer(avatar, sample_rate=RATE, seed=seed))
        call = Call(service, viewer)
        opened.push_async_callback(call.close)
        answer = {"sdp": await call.answer(sdp), "type": "answer", "session": viewer.name}
        until_its_end = opened.pop_all()

    async def go_on() -> None:
        async with until_its_end:
            await call.run()

    service.keep(asyncio.create_task(go_on()))
    return answer
