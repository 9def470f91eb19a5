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

from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from rest_fast.errors import RestFastError
from rest_fast.media import av_frames
from rest_fast.serving import protocol
from rest_fast.serving.events import events_of
from rest_fast.serving.pacer import Shown
from rest_fast.serving.protocol import End, InterruptNow, Ping, ProtocolError, Stop
from rest_fast.serving.service import Service
from rest_fast.serving.viewer import Viewer
from rest_fast.units import FPS

LOG = logging.getLogger(__name__)
RATE = 48000  # of WebRTC's sound, so that nothing is resampled on the way out
WAITING = 4  # frames of a track that wait to be sent


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
        found: str = self.peer.localDescription.sdp
        return found

    async def run(self) -> None:
        """Until either side ends it."""
        shown = self._start(self._show())
        try:
            await self.ended.wait()
        finally:
            for task in (shown, *self._tasks):
                task.cancel()
            await asyncio.gather(shown, *self._tasks, return_exceptions=True)
            await self.peer.close()

    def _start(self, work: Any) -> asyncio.Task[None]:
        """Work that ends the call when it ends."""

        async def guarded() -> None:
            try:
                await work
            except (MediaStreamError, ConnectionError):
                return
            except RestFastError as error:
                self._say(protocol.error(getattr(error, "code", "BAD_MESSAGE"), str(error)))
            except Exception:
                self.service.counts.failed += 1
                LOG.exception("a call failed")
                self._say(protocol.error("FAULT", "the session failed; the server has written down why"))
            self.ended.set()

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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
            half = len(shown.sound) // 2
            await self.picture.put(picture)
            for first in (0, half):
                piece = shown.sound[first : first + half]
                await self.voice.put(av_frames.sound_frame(piece, RATE, shown.first + first))
            for event in events_of(shown, before):
                self._say(event)
            self._tell_finished()
            if shown.index % FPS == FPS - 1:
                self._say(protocol.text("stats", **self.viewer.stats()))
            before = shown

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
        try:
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
                    self.ended.set()
        except RestFastError as error:
            self._say(protocol.error(getattr(error, "code", "BAD_MESSAGE"), str(error)))
            self.ended.set()


def read_offer(raw: Any) -> tuple[str, str, int]:
    """``sdp``, ``avatar`` and ``seed`` of a request. Raises: :class:`ProtocolError`."""
    if not isinstance(raw, dict) or raw.get("type") != "offer" or not isinstance(raw.get("sdp"), str):
        raise ProtocolError("BAD_MESSAGE", 'offer: expected {"sdp", "type": "offer", "avatar", "seed"}, got another')
    start = protocol.read_control(
        json.dumps({"type": "session.start", **{k: raw[k] for k in ("avatar", "seed") if k in raw}})
    )
    assert isinstance(start, protocol.Start)
    return raw["sdp"], start.avatar, start.seed


async def offer(service: Service, raw: Any) -> dict[str, str]:
    """Answer an offer; the call goes on in the background."""
    sdp, avatar, seed = read_offer(raw)
    opening: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    async def call() -> None:
        try:
            async with service.viewer(avatar, sample_rate=RATE, seed=seed) as viewer:
                made = Call(service, viewer)
                try:
                    answer = {"sdp": await made.answer(sdp), "type": "answer", "session": viewer.name}
                except BaseException:
                    await made.peer.close()
                    raise
                opening.set_result(answer)
                await made.run()
        except BaseException as error:
            if opening.done():
                raise
            opening.set_exception(error)

    service.keep(asyncio.create_task(call()))
    return await opening
