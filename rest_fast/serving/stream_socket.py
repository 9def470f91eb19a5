"""``WS /v1/avatar/stream``: one visitor's connection, from its first message to its end. See docs/serving.md."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.websockets import WebSocket, WebSocketDisconnect

from rest_fast.errors import SessionClosed
from rest_fast.media import AAC_RATES
from rest_fast.serving import protocol
from rest_fast.serving.avatars import jpeg
from rest_fast.serving.events import events_of
from rest_fast.serving.fmp4 import FragmentedMP4
from rest_fast.serving.limits import Incoming
from rest_fast.serving.pacer import Shown
from rest_fast.serving.protocol import End, InterruptNow, Ping, ProtocolError, Start, Stop
from rest_fast.serving.service import Service
from rest_fast.serving.tasks import end_all
from rest_fast.serving.viewer import Viewer
from rest_fast.units import FPS

LOG = logging.getLogger(__name__)
REFUSED, TRY_LATER, FAULT, GONE = 1008, 1013, 1011, 1001  # codes with which a WebSocket is closed
LATER = ("CAPACITY_EXHAUSTED", "NOT_NOW")


class Connection:
    """One visitor's WebSocket, with a server's limits on what is read from it and on how long a write may take."""

    def __init__(self, socket: WebSocket, service: Service):
        self.socket, self.service, self.limits = socket, service, service.limits
        self._incoming = Incoming(self.limits)

    async def receive(self, control: int = 0) -> str | bytes:
        """The next message; ``control``: bytes of text, where more than usual may come.

        Raises: :class:`ProtocolError`; ``WebSocketDisconnect`` at the end.
        """
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or GONE)
        text, data = message.get("text"), message.get("bytes") or b""
        content: str | bytes = data if text is None else text
        self._incoming.check(content, control)
        return content

    async def send(self, message: str | bytes) -> None:
        """Raises: ``TimeoutError`` where the client does not read; ``WebSocketDisconnect`` where it has left."""
        sent = self.socket.send_text(message) if isinstance(message, str) else self.socket.send_bytes(message)
        try:
            await asyncio.wait_for(sent, self.limits.stall)
        except RuntimeError:  # written behind the end, which another task, or a ping without answer, has found
            raise WebSocketDisconnect(GONE) from None

    async def close(self, code: int, error: ProtocolError | None = None) -> None:
        """With the reason, if the client still reads."""
        try:
            if error is not None:
                await self.send(protocol.error(error.code, str(error)))
            await asyncio.wait_for(self.socket.close(code), 1)
        except (RuntimeError, WebSocketDisconnect, asyncio.TimeoutError, OSError):
            pass  # it is closed already


async def guarded(connection: Connection, talk: Callable[[], Awaitable[None]]) -> None:
    """Talk to one client until the end of it, which is a clear one whatever happens."""
    try:
        await talk()
        await connection.close(1000)
    except asyncio.TimeoutError:
        limit = connection.limits.stall
        await connection.close(REFUSED, ProtocolError("STALLED", f"expected a client that reads within {limit:g} s"))
    except WebSocketDisconnect:
        pass
    except Exception as error:
        refusal = protocol.refusal(error)
        if refusal is not None:
            await connection.close(TRY_LATER if refusal.code in LATER else REFUSED, refusal)
            return
        connection.service.counts.failed += 1
        LOG.exception("a session failed")  # the client is not to see how we are made
        await connection.close(FAULT, protocol.FAULT)


async def first_to_end(*talks: Awaitable[None]) -> None:
    """Run until one of them ends; then the others are cancelled. Raises what it raised."""
    tasks = [asyncio.ensure_future(talk) for talk in talks]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end_all(tasks)


async def stream(socket: WebSocket, service: Service) -> None:
    """Serve one connection."""
    await let_in(socket, service, _talk)


async def let_in(socket: WebSocket, service: Service, talk: Callable[[Connection], Awaitable[None]]) -> None:
    """Talk to a client that may come; the others are refused before they are connected."""
    if service.access.refusal(socket.headers, socket.query_params) is not None:
        await socket.close(REFUSED)  # before it is accepted: an HTTP 403
        return
    await socket.accept()
    connection = Connection(socket, service)
    await guarded(connection, lambda: talk(connection))


async def _talk(connection: Connection) -> None:
    service = connection.service
    start = await _first(connection)
    if start.format == "fmp4" and start.sample_rate not in AAC_RATES:
        rates = ", ".join(map(str, AAC_RATES))
        got = f"got {start.sample_rate}"
        raise ProtocolError("BAD_MESSAGE", f"session.start: sample_rate: expected one of AAC for fmp4 ({rates}), {got}")
    async with service.viewer(start.avatar, sample_rate=start.sample_rate, seed=start.seed) as viewer:
        height, width = viewer.session.avatar.picture.shape[:2]
        ready = {"session": viewer.name, "width": width, "height": height, "fps": FPS, "format": start.format}
        ready |= {"sample_rate": start.sample_rate, "lookahead_ms": viewer.session.lookahead_ms}
        await connection.send(protocol.text("session.ready", protocol=protocol.VERSION, **ready))
        await first_to_end(_listen(connection, viewer), _show(connection, viewer, start))
        if viewer.session.closed:
            raise SessionClosed("the server ends")
        await connection.send(protocol.text("session.done"))


async def _first(connection: Connection) -> Start:
    try:
        content = await asyncio.wait_for(connection.receive(), connection.limits.start)
    except asyncio.TimeoutError:
        limit = connection.limits.start
        raise ProtocolError("TOO_LATE", f"expected session.start within {limit:g} s, got nothing") from None
    message = protocol.read_control(content) if isinstance(content, str) else None
    if not isinstance(message, Start):
        raise ProtocolError("BAD_MESSAGE", "expected session.start as the first message, got another")
    return message


async def _listen(connection: Connection, viewer: Viewer) -> None:
    """What the client says, until it has nothing more to say."""
    while True:
        content = await connection.receive()
        if isinstance(content, bytes):
            viewer.push_bytes(content)
            continue
        match protocol.read_control(content):
            case End(id=name):
                viewer.end(name)
            case InterruptNow():
                resume = viewer.interrupt()
                await connection.send(protocol.text("interrupted", pts=resume, epoch=viewer.session.epoch))
                await _tell_finished(connection, viewer)
            case Ping(id=name):
                await connection.send(protocol.text("pong", id=name))
            case Stop():
                return
            case Start():
                raise ProtocolError("BAD_MESSAGE", "session.start: expected it once, got it again")


async def _show(connection: Connection, viewer: Viewer, start: Start) -> None:
    """The frames, and what there is to tell about them."""
    height, width = viewer.session.avatar.picture.shape[:2]
    file = FragmentedMP4(width, height, start.sample_rate) if start.format == "fmp4" else None
    if file is not None:
        await connection.send(protocol.text("video.init", mime=file.mime, delay=round(file.delay, 6)))
    before: Shown | None = None
    async for shown in viewer.frames():
        if (reason := connection.service.overdue(viewer)) is not None:
            raise ProtocolError("TOO_LONG", reason)
        for event in events_of(shown, before):
            await connection.send(event)
        if file is not None:
            await connection.send(await asyncio.to_thread(file.add, shown))
        else:
            await connection.send(await asyncio.to_thread(_encoded, shown, start))
        await _tell_finished(connection, viewer)
        if shown.index % FPS == FPS - 1:
            await connection.send(protocol.text("stats", **viewer.stats()))
        before = shown


def _encoded(shown: Shown, start: Start) -> bytes:
    picture = shown.picture.tobytes() if start.format == "raw" else jpeg(shown.picture, start.quality)
    return protocol.frame_message(shown, picture, start.format)


async def _tell_finished(connection: Connection, viewer: Viewer) -> None:
    for message in viewer.tell_finished():
        await connection.send(message)
