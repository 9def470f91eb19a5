"""One visitor's session behind a router, whichever server has it.

The client has one connection, whose numbers go on: ``epoch`` grows by one where the session comes to another server, as
at an interrupt, ``index`` counts on. What a server has said of it before it was lost is not said again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from rest_fast.serving import protocol
from rest_fast.serving.connection import LATER, Connection, first_to_end
from rest_fast.serving.protocol import Control, End, InterruptNow, Ping, ProtocolError
from rest_fast.serving.saved import MAGIC
from rest_fast.serving.stream_socket import first_message
from rest_fast.units import FPS

# each is about one message of the client, with the same id where that has one
ANSWERS: dict[str, type[Control]] = {"playback.finished": End, "interrupted": InterruptNow, "pong": Ping}
Answer = tuple[str, str | None]  # kind and id


class Servers(Protocol):
    """What a relay asks of its router; see :class:`rest_fast.serving.router.Router`."""

    snapshots: float | None
    patience: float
    moved: Counter[tuple[str, bool]]

    async def open(
        self, first: str | bytes, avatar: str, patience: float = 0.0
    ) -> tuple[ClientConnection, dict[str, Any]]: ...


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


@dataclass(eq=False)
class Kept:
    """A session as bytes, and what went on since."""

    state: bytes = b""
    add_pts: float = 0.0  # of the server that has written it
    said: list[str | bytes] = field(default_factory=list)  # by the client, since
    told: Counter[Answer] = field(default_factory=Counter)  # answers to it that this session has not given
    size: int = 0  # bytes of all that


class Journal:
    """What is needed to go on elsewhere: the latest session, and the one that is on its way.

    A session is asked for in the row of the client's messages, so what comes before that is in it, and nothing else.
    """

    def __init__(self, most: int):
        self.most = most  # bytes of a session and what was said since; beyond that it is given up
        self.latest: Kept | None = None
        self.coming: Kept | None = None

    def ask(self) -> None:
        self.coming = Kept()

    def note(self, content: str | bytes) -> None:
        for kept in filter(None, (self.latest, self.coming)):
            kept.size += len(content)
            if kept.size <= self.most:
                kept.said.append(content)
        self._give_up()

    def answer(self, answer: Answer) -> None:
        for kept in filter(None, (self.latest, self.coming)):
            kept.told[answer] += 1

    def taken(self, again: Counter[Answer]) -> None:
        """The session that was asked for is that of this moment; its bytes will follow. ``again``: answers that the
        client has already, and this session will give."""
        if self.coming is not None:
            self.coming.told = Counter(again)

    def came(self, state: bytes, add_pts: float) -> None:
        self.latest, self.coming = self.coming, None
        if self.latest is not None:
            self.latest.state, self.latest.add_pts = state, add_pts
            self.latest.size += len(state)
        self._give_up()

    def _give_up(self) -> None:
        if self.latest is not None and self.latest.size > self.most:
            self.latest = None


class Relay:
    """Serves one connection."""

    def __init__(self, connection: Connection, router: Servers):
        self.connection, self.router = connection, router
        self.shown, self.journal = Shown(), Journal(connection.limits.state)
        self.avatar = ""
        self.owed: list[tuple[Control, str]] = []  # messages of the client that were not answered yet
        self.leaving = False  # the server wants to end
        self.left = False  # it was asked for the session as it is at its end
        self._sending = asyncio.Lock()  # held while something is sent to the server, and while it is changed
        self._again: Counter[Answer] = Counter()  # answers that the client has already

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
            owed = [(protocol.read_control(content), content)] if isinstance(content, str) else []
            async with self._sending:
                self.journal.note(content)
                self.owed += owed
                await self._send(content)

    async def _send(self, content: str | bytes) -> None:
        with contextlib.suppress(ConnectionClosed):  # whoever reads finds that out, too
            await self.upstream.send(content)

    async def _ask_for_snapshots(self) -> None:
        while True:
            await asyncio.sleep(self.router.snapshots or 0)
            async with self._sending:
                if self.journal.coming is None and not self.leaving:
                    self.journal.ask()
                    await self._send(protocol.text("snapshot"))

    async def _leave(self) -> None:
        """At once, or behind a session that is on its way already: that one is older, and must not be taken for it."""
        async with self._sending:
            self.leaving = True
            if self.journal.coming is None:
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
                self.journal.taken(self._again)
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
        answer = kind, message.get("id")
        if self._again[answer]:
            self._again[answer] -= 1
            return
        self.journal.answer(answer)
        for one in self.owed:
            if isinstance(one[0], ANSWERS[kind]) and getattr(one[0], "id", None) == answer[1]:
                self.owed.remove(one)
                break
        await self.connection.send(json.dumps(self.shown.told(message)))

    # -- from one server to another

    async def _move(self, reason: str) -> None:
        async with self._sending:
            await self.upstream.close()
            self.leaving, self.left, self.journal.coming = False, False, None
            self.upstream, ready = await self._reopen()
            kept = self.journal.latest
            self._again = Counter() if kept is None else Counter(kept.told)
            self._count_on(ready, kept)
            self.router.moved[reason, kept is not None] += 1
            where = {"epoch": self.shown.least, "pts": ready["pts"] + self.shown.add_pts}
            about = {"session": ready["session"], "reason": reason, "resumed": kept is not None}
            await self.connection.send(protocol.text("session.moved", **about, **where))
            if kept is None:
                await self._begin_anew()
                return
            for content in kept.said:
                await self._send(content)
            if self.router.snapshots is None:
                self.journal.latest = None  # nothing newer will come

    async def _reopen(self) -> tuple[ClientConnection, dict[str, Any]]:
        """The latest session elsewhere, or a new one: also where servers of another model cannot go on with it."""
        if (kept := self.journal.latest) is not None:
            try:
                return await self.router.open(kept.state, self.avatar, self.router.patience)
            except ProtocolError as e:
                if e.code in LATER:
                    raise
                self.journal.latest = None
        return await self.router.open(self.first, self.avatar, self.router.patience)

    async def _begin_anew(self) -> None:
        """As after an interrupt: what was ended is, and all else that was not answered is said again."""
        ended = [control.id for control, _ in self.owed if isinstance(control, End)]
        self.owed = [one for one in self.owed if not isinstance(one[0], End)]
        for _, content in self.owed:
            await self._send(content)
        for name in ended:
            told = {"id": name, "position": 0.0, "interrupted": True}
            await self.connection.send(protocol.text("playback.finished", **told))

    def _count_on(self, ready: dict[str, Any], kept: Kept | None) -> None:
        """Continue the client's numbers with those of another server, whose session is a new one or a resumed one."""
        shown = self.shown
        shown.least = shown.epoch + 1
        # interrupts that the client knows of are repeated; what comes before them was seen already
        shown.add_epoch = shown.least - ready["epoch"] - self._again["interrupted", None]
        shown.add_pts = shown.pts if kept is None else kept.add_pts
        shown.add_index = 0 if self.format == "fmp4" else shown.frames  # a new file begins at 0
