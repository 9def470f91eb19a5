"""One visitor's session behind a router, whichever server has it.

The client has one connection, whose numbers go on: ``epoch`` grows by one where the session comes to another server, as
at an interrupt, ``index`` counts on. What a server has said of it before it was lost is not said again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter, deque
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from rest_fast.serving import protocol
from rest_fast.serving.connection import Connection, first_to_end
from rest_fast.serving.protocol import End, InterruptNow, ProtocolError
from rest_fast.serving.saved import MAGIC
from rest_fast.serving.stream_socket import first_message
from rest_fast.units import FPS

ANSWERS = ("playback.finished", "interrupted", "pong")  # each belongs to one message of the client


class Servers(Protocol):
    """What a relay asks of its router; see :class:`rest_fast.serving.router.Router`."""

    snapshots: float | None
    moved: Counter[tuple[str, bool]]

    async def open(self, first: str | bytes, avatar: str) -> tuple[ClientConnection, dict[str, Any]]: ...
    async def reopen(self, first: str | bytes, avatar: str) -> tuple[ClientConnection, dict[str, Any]]: ...


class Shown:
    """Where the client is, in its own numbers, and what is added to a server's for it."""

    def __init__(self) -> None:
        self.epoch, self.frames, self.pts = 0, 0, 0.0  # the latest epoch, frames so far, the end of the latest
        self.least = 0  # what has a lower epoch was seen already
        self.add_epoch, self.add_index, self.add_pts = 0, 0, 0.0

    def frame(self, data: bytes) -> bytes | None:
        """A frame's message for the client; None for what is not for it."""
        fields = list(protocol.HEADER.unpack_from(data))
        epoch, index, pts = fields[4] + self.add_epoch, fields[6], fields[7] + self.add_pts
        if epoch < self.least:
            return None
        self.add_index = self.frames - index
        fields[4], fields[6], fields[7] = epoch, self.frames, pts
        self.epoch, self.frames, self.pts = max(self.epoch, epoch), self.frames + 1, pts + 1 / FPS
        return protocol.HEADER.pack(*fields) + data[protocol.HEADER.size :]

    def told(self, message: dict[str, Any]) -> dict[str, Any]:
        added = {"epoch": self.add_epoch, "pts": self.add_pts, "time": self.add_index / FPS}
        found = message | {name: message[name] + more for name, more in added.items() if name in message}
        self.epoch = max(self.epoch, found.get("epoch", 0))
        return found


class Journal:
    """What is needed to go on elsewhere: the latest session as bytes, and what the client has said since.

    A session is asked for in the row of the client's messages, so what comes before that is in it, and nothing else.
    """

    def __init__(self, most: int):
        self.most = most  # bytes of messages that are kept
        self.state: bytes | None = None
        self.add_pts = 0.0  # of the server that has written it
        self.since: list[str | bytes] = []  # what the client has said since
        self.told: Counter[str] = Counter()  # what it was answered since
        self.asked = False
        self._since: list[str | bytes] = []  # the same, for the one that was asked for
        self._told: Counter[str] = Counter()

    def ask(self) -> None:
        self.asked, self._since = True, []

    def note(self, content: str | bytes) -> None:
        for kept, on in ((self.since, self.state is not None), (self._since, self.asked)):
            if on:
                kept.append(content)
        if sum(map(len, self.since)) > self.most:
            self.forget()

    def answer(self, kind: str) -> None:
        self.told[kind] += 1
        self._told[kind] += 1

    def taken(self) -> None:
        """The session that was asked for is that of this moment; its bytes will follow."""
        self._told = Counter()

    def came(self, state: bytes, add_pts: float) -> None:
        self.state, self.add_pts, self.since, self.told = state, add_pts, self._since, self._told
        self.asked, self._since, self._told = False, [], Counter()

    def forget(self) -> None:
        self.state, self.since, self.told = None, [], Counter()


class Relay:
    """Serves one connection."""

    def __init__(self, connection: Connection, router: Servers):
        self.connection, self.router = connection, router
        self.shown, self.journal = Shown(), Journal(connection.limits.state)
        self.ids: deque[str] = deque()  # of segments that were ended and of which nothing was told yet
        self.unanswered = 0  # interrupts
        self.leaving = False  # the server wants to end
        self.left = False  # it was asked for the session as it is at its end
        self._sending = asyncio.Lock()  # held while something is sent to the server, and while it is changed
        self._again: Counter[str] = Counter()  # answers that the client has already

    async def serve(self) -> None:
        start, _ = await first_message(self.connection)
        self.avatar, self.format = start.avatar, start.format
        self.first = protocol.text("session.start", **vars(start))
        self.upstream, ready = await self.router.open(self.first, self.avatar)
        try:
            await self.connection.send(json.dumps(ready))
            talks = [self._hear(), self._tell()]
            await first_to_end(*talks, *([] if self.router.snapshots is None else [self._ask_for_snapshots()]))
        finally:
            await self.upstream.close()

    # -- to the server

    async def _hear(self) -> None:
        while True:
            content = await self.connection.receive()
            control = protocol.read_control(content) if isinstance(content, str) else None
            async with self._sending:
                self.journal.note(content)
                if isinstance(control, End):
                    self.ids.append(control.id)
                self.unanswered += isinstance(control, InterruptNow)
                await self._send(content)

    async def _send(self, content: str | bytes) -> None:
        with contextlib.suppress(ConnectionClosed):  # whoever reads finds that out, too
            await self.upstream.send(content)

    async def _ask_for_snapshots(self) -> None:
        while True:
            await asyncio.sleep(self.router.snapshots or 0)
            async with self._sending:
                if not (self.journal.asked or self.leaving):
                    self.journal.ask()
                    await self._send(protocol.text("snapshot"))

    async def _leave(self) -> None:
        """At once, or behind a session that is on its way already: that one is older, and must not be taken for it."""
        async with self._sending:
            self.leaving = True
            if not self.journal.asked:
                self.left = True
                self.journal.ask()
                await self._send(protocol.text("session.leave"))

    # -- to the client

    async def _tell(self) -> None:
        going = True
        while going:
            try:
                message = await self.upstream.recv()
            except ConnectionClosed:
                await self._move("lost")
                continue
            if isinstance(message, str):
                going = await self._tell_text(json.loads(message))
            elif message[:4] == MAGIC:
                self.journal.came(message, self.shown.add_pts)
                if self.left:
                    await self._move("drained")
                elif self.leaving:
                    await self._leave()
            else:
                await self._tell_frame(message)

    async def _tell_frame(self, message: bytes) -> None:
        shown = message if self.format == "fmp4" else self.shown.frame(message)
        if shown is not None:
            await self.connection.send(shown)

    async def _tell_text(self, message: dict[str, Any]) -> bool:
        """Returns: whether the session goes on."""
        match message["type"]:
            case "snapshot":
                self.journal.taken()
            case "draining":
                await self._leave()
            case "error" if message["code"] == "NOT_NOW":  # without a word before
                await self._move("drained")
            case "error":
                raise ProtocolError(message["code"], message["message"])
            case kind if kind in ANSWERS:
                await self._answer(kind, message)
            case kind:
                told = self.shown.told(message)
                if told.get("epoch", self.shown.least) >= self.shown.least:
                    await self.connection.send(json.dumps(told))
                return bool(kind != "session.done")
        return True

    async def _answer(self, kind: str, message: dict[str, Any]) -> None:
        if self._again[kind]:
            self._again[kind] -= 1
            return
        self.journal.answer(kind)
        if kind == "playback.finished" and self.ids:
            self.ids.popleft()
        self.unanswered -= kind == "interrupted"
        await self.connection.send(json.dumps(self.shown.told(message)))

    # -- from one server to another

    async def _move(self, reason: str) -> None:
        journal = self.journal
        async with self._sending:
            await self.upstream.close()
            self.leaving = self.left = journal.asked = False
            resumed = journal.state is not None
            self.upstream, ready = await self.router.reopen(journal.state or self.first, self.avatar)
            self._count_on(ready, resumed)
            self.router.moved[reason, resumed] += 1
            where = {"epoch": self.shown.least, "pts": ready["pts"] + self.shown.add_pts}
            about = {"session": ready["session"], "reason": reason, "resumed": resumed}
            await self.connection.send(protocol.text("session.moved", **about, **where))
            if resumed:
                self._again = Counter(journal.told)
                for content in journal.since:
                    await self._send(content)
                if self.router.snapshots is None:
                    journal.forget()  # nothing newer will come
                return
            self._again = Counter()
            for _ in range(self.unanswered):
                await self._send(protocol.text("interrupt"))
            while self.ids:  # as after an interrupt
                told = {"id": self.ids.popleft(), "position": 0.0, "interrupted": True}
                await self.connection.send(protocol.text("playback.finished", **told))

    def _count_on(self, ready: dict[str, Any], resumed: bool) -> None:
        """Continue the client's numbers with those of another server, whose session is a new one or a resumed one."""
        shown = self.shown
        shown.least = shown.epoch + 1
        # interrupts that the client knows of are repeated; what comes before them was seen already
        shown.add_epoch = shown.least - ready["epoch"] - (self.journal.told["interrupted"] if resumed else 0)
        shown.add_pts = self.journal.add_pts if resumed else shown.pts
        shown.add_index = 0 if self.format == "fmp4" else shown.frames  # a new file begins at 0
