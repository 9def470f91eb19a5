"""A visitor's session behind a router, message by message, on servers that say what is written here."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from websockets.exceptions import ConnectionClosedError

from rest_fast.errors import ProtocolError
from rest_fast.serving.limits import Limits
from rest_fast.serving.relay import Relay
from rest_fast.serving.saved import MAGIC

FINISHED = {"id": "a", "position": 1.0, "interrupted": False}


def text(kind, **values):
    return json.dumps({"type": kind, **values})


class Pipe:
    """Messages of one direction; None breaks the connection."""

    def __init__(self):
        self.messages, self.sent = asyncio.Queue(), []

    async def recv(self):
        message = await self.messages.get()
        if message is None:
            raise ConnectionClosedError(None, None)
        return message

    async def send(self, message):
        self.sent.append(message)

    async def close(self):
        pass

    def say(self, *messages):
        for message in messages:
            self.messages.put_nowait(message)

    @property
    def heard(self):
        """What was sent to it: kinds of text, and bytes."""
        return [json.loads(one)["type"] if isinstance(one, str) else one for one in self.sent]


class Client(Pipe):
    def __init__(self, limits):
        super().__init__()
        self.limits = limits

    async def receive(self, **_):
        return await self.recv()

    def told(self, kind):
        return [found for found in map(json.loads, self.sent) if found["type"] == kind]


class Servers:
    """Stands in for a router: each session comes to the next server."""

    def __init__(self, snapshots=None):
        self.snapshots, self.patience, self.moved = snapshots, 10.0, Counter()
        self.servers, self.asked = [Pipe() for _ in range(4)], []
        self._next, self.refused = iter(self.servers), []

    async def open(self, first, avatar, patience=0.0):
        self.asked.append(first)
        if first in self.refused:
            raise ProtocolError("BAD_MESSAGE", "restore: model: expected this one, got another")
        ready = {"type": "session.ready", "session": str(len(self.asked)), "epoch": 0, "pts": 0.0}
        return next(self._next), ready


def talk(script, **options):
    """Runs ``script(client, servers)`` beside the relay, whose own end is an error unless the script wants it."""

    async def run():
        servers, client = Servers(), Client(Limits(**options))
        client.say(text("session.start", avatar="anna"))
        serving = asyncio.ensure_future(Relay(client, servers).serve())
        try:
            await settled(client.told, "session.ready")
            await script(client, servers)
            assert not serving.done() or not serving.exception(), serving.exception()
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 10))


async def settled(condition, *args):
    """All that can go on by itself has gone on, and the condition holds."""
    for _ in range(50):
        await asyncio.sleep(0)
    assert condition(*args)


def saved(name):
    return MAGIC + name


def test_what_a_client_was_told_is_not_told_again_by_a_third_server():
    """The second server is lost behind a session of it that is older than the answer that it would repeat."""

    async def script(client, servers):
        one, two, three, _ = servers.servers
        client.say(b"sound", text("audio.end", id="a"))
        await settled(lambda: one.heard[-1:] == ["audio.end"])
        one.say(text("draining", seconds=10))
        await settled(lambda: one.heard[-1:] == ["session.leave"])
        one.say(text("snapshot", pts=0.0))
        one.say(text("playback.finished", **FINISHED))  # behind it: the third will say it again
        one.say(saved(b"1"))
        await settled(lambda: servers.asked[1:] == [saved(b"1")])
        two.say(text("draining", seconds=10))
        await settled(lambda: two.heard == ["session.leave"])
        two.say(text("snapshot", pts=0.0), saved(b"2"))
        await settled(lambda: servers.asked[2:] == [saved(b"2")])
        three.say(text("playback.finished", **FINISHED))
        await settled(lambda: len(client.told("session.moved")) == 2)
        assert len(client.told("playback.finished")) == 1

    talk(script)


def test_answers_that_come_in_another_order_are_each_told_once():
    """An end without sound is answered at once, and now before the one that the client has been told of."""

    async def script(client, servers):
        one, two, *_ = servers.servers
        client.say(b"sound", text("audio.end", id="a"))
        await settled(lambda: one.heard[-1:] == ["audio.end"])
        one.say(text("draining", seconds=10))
        await settled(lambda: one.heard[-1:] == ["session.leave"])
        one.say(text("snapshot", pts=0.0), text("playback.finished", **FINISHED))
        await settled(lambda: client.told("playback.finished"))
        client.say(text("audio.end", id="b"))
        await settled(lambda: one.heard[-1:] == ["audio.end"])
        one.say(saved(b"1"))
        await settled(lambda: two.heard == ["audio.end"])
        two.say(text("playback.finished", **FINISHED | {"id": "b"}), text("playback.finished", **FINISHED))
        await settled(lambda: len(client.told("playback.finished")) == 2)
        assert [found["id"] for found in client.told("playback.finished")] == ["a", "b"]

    talk(script)


def test_a_client_that_wants_to_stop_is_not_kept_where_its_server_is_lost():
    """Nor does it wait for an answer that nobody will give."""

    async def script(client, servers):
        one, two, *_ = servers.servers
        client.say(text("ping", id="7"), text("interrupt"), text("session.stop"))
        await settled(lambda: len(one.heard) == 3)
        one.say(None)
        await settled(lambda: client.told("session.moved"))
        assert two.heard == ["ping", "interrupt", "session.stop"]

    talk(script)


def test_an_end_that_nobody_has_named_is_not_taken_for_another():
    """An interrupt in the middle of a segment finishes it without a name, while the next one is ended already."""

    async def script(client, servers):
        one = servers.servers[0]
        client.say(b"sound", text("interrupt"), b"sound", text("audio.end", id="b"))
        await settled(lambda: len(one.sent) == 4)
        one.say(text("interrupted", pts=0.0, epoch=1), text("playback.finished", **FINISHED | {"id": ""}), None)
        await settled(lambda: client.told("session.moved"))
        assert [found["id"] for found in client.told("playback.finished")] == ["", "b"]

    talk(script)


def test_a_session_that_no_other_server_can_read_begins_anew():
    """As where a server is replaced by one of another model: its client has done nothing wrong."""

    async def script(client, servers):
        one = servers.servers[0]
        servers.refused = [saved(b"1")]
        client.say(b"sound", text("audio.end", id="a"))
        one.say(text("draining", seconds=10))
        await settled(lambda: one.heard[-1:] == ["session.leave"])
        one.say(text("snapshot", pts=0.0), saved(b"1"))
        await settled(lambda: client.told("session.moved"))
        (move,) = client.told("session.moved")
        assert (move["reason"], move["resumed"]) == ("drained", False) and len(servers.asked) == 3
        assert [(one["id"], one["interrupted"]) for one in client.told("playback.finished")] == [("a", True)]

    talk(script)


def test_what_is_kept_has_a_limit_while_a_session_is_on_its_way():
    """A server that never sends the session that it was asked for."""

    async def script(client, servers):
        one, two, *_ = servers.servers
        one.say(text("draining", seconds=10))
        await settled(lambda: one.heard[-1:] == ["session.leave"])
        client.say(*[bytes(100)] * 50)
        await settled(lambda: len(one.sent) == 51)
        one.say(text("snapshot", pts=0.0), saved(b"1"))
        await settled(lambda: client.told("session.moved"))
        (move,) = client.told("session.moved")
        assert not move["resumed"] and two.sent == []

    talk(script, state=1000)
