"""One visitor's WebSocket and its end, which is a clear one whatever happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect

from rest_fast.serving import protocol
from rest_fast.serving.access import Access
from rest_fast.serving.limits import Incoming, Limits
from rest_fast.serving.protocol import ProtocolError
from rest_fast.serving.service import Counts
from rest_fast.serving.tasks import end_all

LOG = logging.getLogger(__name__)
REFUSED, TRY_LATER, FAULT, GONE = 1008, 1013, 1011, 1001  # codes with which a WebSocket is closed
LATER = ("CAPACITY_EXHAUSTED", "NOT_NOW")
CLOSED_WITH = dict.fromkeys(LATER, TRY_LATER) | {"FAULT": FAULT}  # REFUSED for all others


class Host(Protocol):
    """Who lets visitors in: a service, or a router of several."""

    limits: Limits
    access: Access
    counts: Counts
    routed: bool  # whether its clients are a router's


class Connection:
    """One visitor's WebSocket, with a server's limits on what is read from it and on how long a write may take."""

    def __init__(self, socket: WebSocket, host: Host):
        self.socket, self.host, self.limits = socket, host, host.limits
        self._incoming = Incoming(self.limits, counted=not host.routed)

    async def receive(self, control: int = 0, data: int = 0) -> str | bytes:
        """The next message; ``control``, ``data``: bytes of text, and of others, where more than usual may come.

        Raises: :class:`ProtocolError`; ``WebSocketDisconnect`` at the end.
        """
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or GONE)
        text = message.get("text")
        content: str | bytes = message.get("bytes") or b"" if text is None else text
        self._incoming.check(content, control, data)
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
            await connection.close(CLOSED_WITH.get(refusal.code, REFUSED), refusal)
            return
        connection.host.counts.failed += 1
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


async def let_in(socket: WebSocket, host: Host, talk: Callable[[Connection], Awaitable[None]]) -> None:
    """Talk to a client that may come; the others are refused before they are connected."""
    if host.access.refusal(socket.headers, socket.query_params) is not None:
        await socket.close(REFUSED)  # before it is accepted: an HTTP 403
        return
    await socket.accept()
    connection = Connection(socket, host)
    await guarded(connection, lambda: talk(connection))
