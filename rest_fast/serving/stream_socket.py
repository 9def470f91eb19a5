"""``WS /v1/avatar/stream``: one visitor's connection, from its first message to its end. See docs/serving.md."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from starlette.websockets import WebSocket, WebSocketDisconnect

from rest_fast.errors import SessionClosed
from rest_fast.media import AAC_RATES
from rest_fast.serving import protocol
from rest_fast.serving.avatars import jpeg
from rest_fast.serving.connection import Connection, first_to_end, let_in
from rest_fast.serving.events import events_of
from rest_fast.serving.fmp4 import FragmentedMP4
from rest_fast.serving.pacer import Shown
from rest_fast.serving.protocol import End, InterruptNow, Leave, Ping, ProtocolError, Snapshot, Start, Stop
from rest_fast.serving.saved import Saved
from rest_fast.serving.service import Service
from rest_fast.serving.viewer import Viewer
from rest_fast.units import FPS


async def stream(socket: WebSocket, service: Service) -> None:
    """Serve one connection."""
    await let_in(socket, service, lambda connection: _talk(connection, service))


async def _talk(connection: Connection, service: Service) -> None:
    start, saved = await first_message(connection, service.routed)
    if start.format == "fmp4" and start.sample_rate not in AAC_RATES:
        rates = ", ".join(map(str, AAC_RATES))
        got = f"got {start.sample_rate}"
        raise ProtocolError("BAD_MESSAGE", f"session.start: sample_rate: expected one of AAC for fmp4 ({rates}), {got}")
    async with service.viewer(start.avatar, sample_rate=start.sample_rate, seed=start.seed, saved=saved) as viewer:
        height, width = viewer.session.avatar.picture.shape[:2]
        ready = {"session": viewer.name, "width": width, "height": height, "fps": FPS, "format": start.format}
        ready |= {"sample_rate": start.sample_rate, "lookahead_ms": viewer.session.lookahead_ms}
        ready |= {"epoch": viewer.session.epoch, "pts": viewer.pacer.position}
        await connection.send(protocol.text("session.ready", protocol=protocol.VERSION, **ready))
        talk = Talk(connection, service, viewer, start)
        await first_to_end(talk.listen(), talk.show())
        if viewer.session.closed:
            raise SessionClosed("the server ends")
        await connection.send(protocol.text("session.done"))


async def first_message(connection: Connection, routed: bool = False) -> tuple[Start, Saved | None]:
    """``session.start``, or from a router a session of elsewhere."""
    limits = connection.limits
    try:
        content = await asyncio.wait_for(connection.receive(data=limits.state if routed else 0), limits.start)
    except asyncio.TimeoutError:
        raise ProtocolError("TOO_LATE", f"expected session.start within {limits.start:g} s, got nothing") from None
    if routed and isinstance(content, bytes):
        saved = await asyncio.to_thread(Saved.from_bytes, content)
        return saved.start, saved
    message = protocol.read_control(content) if isinstance(content, str) else None
    if not isinstance(message, Start):
        raise ProtocolError("BAD_MESSAGE", "expected session.start as the first message, got another")
    return message, None


@dataclass(frozen=True, eq=False)
class Talk:
    """A session that is open."""

    connection: Connection
    service: Service
    viewer: Viewer
    start: Start

    async def listen(self) -> None:
        """What the client says, until it has nothing more to say."""
        viewer = self.viewer
        while True:
            content = await self.connection.receive()
            if isinstance(content, bytes):
                viewer.push_bytes(content)
                continue
            match protocol.read_control(content, self.service.routed):
                case End(id=name):
                    viewer.end(name)
                case InterruptNow():
                    resume = viewer.interrupt()
                    told = protocol.text("interrupted", pts=resume, epoch=viewer.session.epoch)
                    await self.connection.send(told)
                    await self._tell_finished()
                case Ping(id=name):
                    await self.connection.send(protocol.text("pong", id=name))
                case Stop():
                    return
                case Start():
                    raise ProtocolError("BAD_MESSAGE", "session.start: expected it once, got it again")
                case Snapshot():
                    async with viewer.still():
                        saved = await self._saved()
                    self.service.keep(asyncio.create_task(self._send_saved(saved)))
                case Leave():
                    async with viewer.still():
                        await self._send_saved(await self._saved())
                        return

    async def _saved(self) -> Saved:
        """The session in this moment, of which the router is told now, and which it is sent later."""
        saved = self.viewer.save(self.start, await asyncio.to_thread(self.viewer.session.snapshot))
        await self._tell_finished()
        await self.connection.send(protocol.text("snapshot", pts=saved.pts))
        return saved

    async def _send_saved(self, saved: Saved) -> None:
        with contextlib.suppress(WebSocketDisconnect, asyncio.TimeoutError):  # others find that out, too
            await self.connection.send(await asyncio.to_thread(saved.to_bytes))

    async def show(self) -> None:
        """The frames, and what there is to tell about them."""
        viewer, start = self.viewer, self.start
        height, width = viewer.session.avatar.picture.shape[:2]
        file = FragmentedMP4(width, height, start.sample_rate) if start.format == "fmp4" else None
        if file is not None:
            message = protocol.text("video.init", mime=file.mime, delay=round(file.delay, 6))
            await self.connection.send(message)
        before: Shown | None = None
        draining = False  # whether the client knows it
        async for shown in viewer.frames():
            async with viewer.showing:
                if self.service.draining and not draining:
                    draining = True
                    await self.connection.send(protocol.text("draining", seconds=self.service.limits.drain))
                await self._show(shown, before, file)
            before = shown

    async def _show(self, shown: Shown, before: Shown | None, file: FragmentedMP4 | None) -> None:
        if (reason := self.service.overdue(self.viewer)) is not None:
            raise ProtocolError("TOO_LONG", reason)
        for event in events_of(shown, before):
            await self.connection.send(event)
        if file is not None:
            await self.connection.send(await asyncio.to_thread(file.add, shown))
        else:
            await self.connection.send(await asyncio.to_thread(_encoded, shown, self.start))
        await self._tell_finished()
        if shown.index % FPS == FPS - 1:
            await self.connection.send(protocol.text("stats", **self.viewer.stats()))

    async def _tell_finished(self) -> None:
        for message in self.viewer.tell_finished():
            await self.connection.send(message)


def _encoded(shown: Shown, start: Start) -> bytes:
    picture = shown.picture.tobytes() if start.format == "raw" else jpeg(shown.picture, start.quality)
    return protocol.frame_message(shown, picture, start.format)
