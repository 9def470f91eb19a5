"""A router in front of several servers: one address, and each session on one of them for as long as that one lives.

It holds no list of who is free. A session is offered to the servers in turn, the emptiest first, and each one's engine
takes or refuses it; so what one server answers to its own clients is what a visitor hears when all are full.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request as Asked
from urllib.request import urlopen

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.websockets import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from rest_fast.serving.access import Access
from rest_fast.serving.connection import LATER, Connection, let_in
from rest_fast.serving.limits import Limits, Uploads
from rest_fast.serving.protocol import ProtocolError
from rest_fast.serving.relay import Relay
from rest_fast.serving.service import Counts

OPENS = 15.0  # seconds in which a server has to answer that a session is open
RETRY = 0.25  # seconds between two tries to find a place for a session whose server was lost


@dataclass(frozen=True)
class Place:
    """A server of a :class:`~rest_fast.serving.service.Service` that is ``routed``."""

    url: str  # of http
    token: str
    sessions: int = 0  # that are open
    capacity: int = 0  # of its engine

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


class Router:
    """Serves visitors by the servers that ``places`` names at each call.

    Args:
        snapshots: seconds between two snapshots of each session, from which it goes on where its server is lost; None:
            one is taken where a server ends, and what is lost is lost.
        patience: seconds in which a session that has lost its server has to find another.
    """

    routed = False  # its clients are none of a router

    def __init__(
        self,
        places: Callable[[], Awaitable[list[Place]]],
        *,
        access: Access | None = None,
        limits: Limits | None = None,
        snapshots: float | None = None,
        patience: float = 10.0,
    ):
        self.places, self.snapshots, self.patience = places, snapshots, patience
        self.access, self.limits = access or Access(), limits or Limits()
        self.counts, self.draining = Counts(), False
        self.moved: Counter[tuple[str, bool]] = Counter()  # by the reason, and whether they went on
        self.relays: set[Relay] = set()
        self.uploads = Uploads(self.limits)
        self._pictures: OrderedDict[str, tuple[bytes, str]] = OrderedDict()  # that visitors sent, and their crops

    async def in_turn(self) -> list[Place]:
        """The servers, the emptiest first."""
        return sorted(await self.places(), key=lambda place: place.sessions - place.capacity)

    # -- sessions

    async def serve(self, socket: WebSocket) -> None:
        await let_in(socket, self, self._serve)

    async def _serve(self, connection: Connection) -> None:
        if self.draining:
            raise ProtocolError("NOT_NOW", "session: expected a server that is ok, got one that is draining")
        relay = Relay(connection, self)
        self.relays.add(relay)
        try:
            await relay.serve()
        finally:
            self.relays.discard(relay)

    async def open(
        self, first: str | bytes, avatar: str, patience: float = 0.0
    ) -> tuple[ClientConnection, dict[str, Any]]:
        """A connection to a server that has answered the first message with ``session.ready``, and this answer.

        Args:
            patience: seconds in which it is offered again and again: a server may come back, or a visitor leave.
        Raises: :class:`ProtocolError`, as the last server has refused it.
        """
        end = time.monotonic() + patience
        while True:
            refusal = ProtocolError("NOT_NOW", "session: expected a server that is up, got none")
            for place in await self.in_turn():
                try:
                    return await self._open(place, first, avatar)
                except ProtocolError as e:
                    if e.code not in LATER:
                        raise
                    refusal = e
            if time.monotonic() >= end:
                self.counts.refused += 1
                raise refusal
            await asyncio.sleep(RETRY)

    async def _open(self, place: Place, first: str | bytes, avatar: str) -> tuple[ClientConnection, dict[str, Any]]:
        try:
            async with contextlib.AsyncExitStack() as opened:
                socket = await connect(
                    f"{place.url.replace('http', 'ws', 1)}/v1/avatar/stream",
                    additional_headers=place.headers,
                    max_size=2 * self.limits.state,
                    compression=None,
                    open_timeout=OPENS,
                    ping_interval=5,
                    ping_timeout=10,  # a machine that is gone
                    close_timeout=0.5,
                )
                opened.push_async_callback(socket.close)
                await socket.send(first)
                answer = json.loads(await asyncio.wait_for(socket.recv(), OPENS))
                if answer["type"] != "session.ready":
                    if answer["code"] == "NO_SUCH_AVATAR" and await self._lend(place, avatar):
                        return await self._open(place, first, avatar)
                    raise ProtocolError(answer["code"], answer["message"])
                opened.pop_all()
                return socket, answer
        except (OSError, asyncio.TimeoutError, WebSocketException):
            raise ProtocolError("NOT_NOW", "session: expected a server that is up, got none") from None

    # -- all else

    async def first_answer(self, path: str, body: bytes | None = None, avatar: str = "") -> tuple[int, bytes, str]:
        """Status, body and type of what the first server answers that can; else of what the last one does. ``avatar``:
        whose picture they may need."""
        answer = 503, b"{}", "application/json"
        for place in await self.in_turn():
            answer = await ask(place, path, body)
            if answer[0] == 404 and await self._lend(place, avatar):
                answer = await ask(place, path, body)
            if answer[0] not in (404, 503):
                break
        return answer

    async def upload(self, picture: bytes, crop: str) -> tuple[int, bytes, str]:
        """A picture is kept here, since a session may come to any server."""
        self.uploads.require(time.monotonic())
        name = secrets.token_urlsafe(12)
        answer = await self.first_answer(_named(name, crop), picture)
        if answer[0] == 200:
            self._pictures[name] = picture, crop
            used = {relay.avatar for relay in self.relays}  # they may come to another server
            unused = [old for old in self._pictures if old not in used]
            for old in unused[: len(self._pictures) - self.limits.avatars]:
                del self._pictures[old]
        return answer

    async def _lend(self, place: Place, name: str) -> bool:
        """Give a server a picture that it has not seen. Returns: whether it takes it."""
        if name not in self._pictures:
            return False
        picture, crop = self._pictures[name]
        status, _, _ = await ask(place, _named(name, crop), picture)
        return status == 200

    @property
    def busy(self) -> bool:
        return bool(self.relays)

    async def drain(self) -> None:
        """Let nobody new in, and wait for those who are there."""
        self.draining = True
        end = time.monotonic() + self.limits.drain
        while self.relays and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def collect(self) -> list[Metric]:
        """What Prometheus asks for."""
        moved = CounterMetricFamily("rest_fast_moved", "Sessions that came to another server.", labels=["why", "how"])
        for (reason, resumed), count in self.moved.items():
            moved.add_metric([reason, "resumed" if resumed else "anew"], count)
        return [
            GaugeMetricFamily("rest_fast_routed", "Sessions that are open.", len(self.relays)),
            CounterMetricFamily("rest_fast_routed_refused", "Sessions that no server took.", self.counts.refused),
            moved,
        ]


def _named(name: str, crop: str) -> str:
    return f"/v1/avatars?name={quote(name)}&crop={quote(crop)}"


async def ask(place: Place, path: str, body: bytes | None = None) -> tuple[int, bytes, str]:
    """Status, body and type of a server's answer to GET, or with a body to POST; 503 for one that is gone."""

    def wait() -> tuple[int, bytes, str]:
        try:
            try:
                answer = urlopen(Asked(place.url + path, body, place.headers), timeout=OPENS)
            except HTTPError as e:
                answer = e
            with answer:
                return answer.status, answer.read(), answer.headers.get_content_type()
        except (OSError, HTTPException):
            return 503, b"{}", "application/json"

    return await asyncio.to_thread(wait)
