"""What a client does wrong ends his own session with one clear event; a neighbour who watches sees nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import os
import pickle
import socket as sockets
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rest_fast.serving import fake
from rest_fast.serving.access import Access
from rest_fast.serving.limits import Limits
from tests.kit.serving import RATE, Served, Socket, ask, ended, fake_service

LIMITS = Limits(start=0.5, stall=0.6, messages=50.0, burst=2.0, upload=100_000, uploads=1000.0, backlog=20.0, drain=1.0)
START = json.dumps({"type": "session.start", "avatar": "fake", "format": "raw"})


@pytest.fixture(scope="module")
def served():
    service = fake_service(LIMITS, sessions=3, backlog=LIMITS.backlog)
    with Served(service, page=False) as running:
        for listening in (one for started in running.server.servers for one in started.sockets):
            listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 8192)  # a client that stalls is noticed soon
        yield running
    service.engine.close()


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 60))


@contextlib.asynccontextmanager
async def neighbour(served, least=10):
    """Somebody who watches meanwhile: his frames, without a gap and none of anybody else."""
    async with Socket.open(served) as watcher:
        seen: list[fake.Code | None] = []

        async def watch():
            while True:
                seen.extend(fake.read(one.picture) for one in await watcher.take(1))

        watching = asyncio.create_task(watch())
        try:
            yield seen
            while len(seen) < least and not watching.done():
                await asyncio.sleep(0.02)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        assert watching.cancelled(), watching.exception()
        assert None not in seen and len({code.viewer for code in seen}) == 1
        assert set(np.diff([code.frame for code in seen])) <= {0, 1}  # 0: held


async def alone_again(served, others=1):
    """The session has been given back."""
    end = time.monotonic() + 15
    while len(served.service.viewers) > others or len(served.service.engine.seats) > others:
        assert time.monotonic() < end, "a session is left"
        await asyncio.sleep(0.02)


def stream(served, **options):
    return connect(served.url("/v1/avatar/stream", "ws"), max_size=None, close_timeout=0.5, **options)


def text(kind, **values):
    return json.dumps({"type": kind, **values})


FIRST = {
    "nothing": (None, "TOO_LATE"),
    "no JSON": ("{", "BAD_MESSAGE"),
    "a number": ("7", "BAD_MESSAGE"),
    "depth": ("[" * 10_000, "BAD_MESSAGE"),
    "no type": ("{}", "BAD_MESSAGE"),
    "another type": (text("audio.end"), "BAD_MESSAGE"),
    "sound": (b"\0\0", "BAD_MESSAGE"),
    "no avatar": (text("session.start"), "BAD_MESSAGE"),
    "an unknown field": (text("session.start", avatar="fake", admin=True), "BAD_MESSAGE"),
    "a wrong type": (text("session.start", avatar="fake", seed="1"), "BAD_MESSAGE"),
    "a rate": (text("session.start", avatar="fake", sample_rate=10**9), "BAD_MESSAGE"),
    "a rate of no AAC": (text("session.start", avatar="fake", sample_rate=16001, format="fmp4"), "BAD_MESSAGE"),
    "a path": (text("session.start", avatar="../../etc/passwd"), "NO_SUCH_AVATAR"),
    "a surrogate": ('{"type": "session.start", "avatar": "\\ud800"}', "NO_SUCH_AVATAR"),
    "a long text": (text("session.start", avatar="a" * 20_000), "TOO_LARGE"),
}


def test_a_bad_first_message_is_refused_with_its_reason(served):
    async def talk():
        async with neighbour(served):
            for name, (message, code) in FIRST.items():
                async with stream(served) as socket:
                    if message is not None:
                        await socket.send(message)
                    told, closed = await ended(socket)
                assert [one["code"] for one in told] == [code] and closed == 1008, name
            await alone_again(served)

    run(talk())


LATER = {
    "no JSON": ("}", "BAD_MESSAGE"),
    "a second start": (START, "BAD_MESSAGE"),
    "half a sample": (b"\0\0\0", "BAD_MESSAGE"),
    "a lot of sound": (bytes(LIMITS.sound + 2), "TOO_LARGE"),
    "a long text": (text("ping", id="a" * LIMITS.control), "TOO_LARGE"),
    "an unknown field": (text("interrupt", now=True), "BAD_MESSAGE"),
    "a wrong type": (text("audio.end", id=1), "BAD_MESSAGE"),
}


def test_a_bad_message_later_ends_the_session_with_its_reason(served):
    async def talk():
        async with neighbour(served):
            for name, (message, code) in LATER.items():
                async with stream(served) as socket:
                    await socket.send(START)
                    await socket.send(message)
                    told, closed = await ended(socket)
                found = [one["code"] for one in told if one["type"] == "error"]
                assert found == [code] and told[-1]["type"] == "error" and closed == 1008, name
            await alone_again(served)

    run(talk())


def test_floods_are_cut(served):
    """Of messages, and of sound beyond what may wait."""

    async def talk():
        async with neighbour(served):
            for message, code in ((text("ping"), "TOO_MANY"), (bytes(2 * 10 * RATE), "TOO_LARGE")):
                async with stream(served) as socket:
                    await socket.send(START)
                    with contextlib.suppress(ConnectionClosed):
                        for _ in range(300 if code == "TOO_MANY" else 4):
                            await socket.send(message)
                    told, closed = await ended(socket)
                    assert told[-1]["code"] == code and closed == 1008
            await alone_again(served)

    run(talk())


def test_no_text_is_anything_but_obeyed_or_refused(served):
    """Sound that is empty, ends without sound and interrupts of nothing are no errors; each end is told."""

    async def talk():
        async with Socket.open(served) as one:
            for name in ("a", "b"):
                await one.push(np.zeros(0, np.int16))
                await one.end(name)
            await one.interrupt()
            await one.push(np.full(RATE // 2, 3000, np.int16))
            await one.end("c")
            await one.take(50)
            assert one.finished == [("a", False), ("b", False), ("c", False)]

    run(talk())


def silent(served):
    """A client that starts a session and then reads nothing."""
    raw = sockets.create_connection(("127.0.0.1", served.port), timeout=10)
    request = f"GET /v1/avatar/stream HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nUpgrade: websocket\r\n"
    key = "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    raw.sendall((request + key).encode())
    assert b" 101 " in raw.recv(100)
    raw.sendall(b"\x81" + bytes([0x80 | len(START)]) + bytes(4) + START.encode())  # a masked frame of text
    return raw


def test_who_does_not_read_is_closed_as_stalled(served):
    async def talk():
        async with neighbour(served):
            with silent(served) as raw:
                while len(served.service.viewers) < 2:
                    await asyncio.sleep(0.02)
                await alone_again(served)
                got = b""
                while piece := await asyncio.to_thread(raw.recv, 2**20):
                    got += piece
                    if got.endswith(b"\x88\x02" + (1008).to_bytes(2, "big")):  # the frame that closes it
                        break
                assert b'"code": "STALLED"' in got[-300:]

    run(talk())


@pytest.mark.skipif(not hasattr(sockets, "TCP_USER_TIMEOUT"), reason="Linux ends such connections")
def test_who_never_reads_leaves_no_connection_behind(served):
    """Half open: nothing comes from the other end, and nothing is taken."""

    async def talk():
        with silent(served):
            while not served.service.viewers:
                await asyncio.sleep(0.02)
            await alone_again(served, others=0)
            end = time.monotonic() + 15  # twice the limit, and the system looks rarely
            while served.server.server_state.connections:
                assert time.monotonic() < end, "the connection is still there"
                await asyncio.sleep(0.05)

    run(talk())


def test_disconnects_in_every_state_leave_nothing(served):
    async def talk():
        failed = served.service.counts.failed
        async with neighbour(served):
            states = {
                "before the start": [],
                "behind it": [START],
                "in speech": [START, bytes(RATE)],
                "in an interrupt": [START, bytes(RATE), text("interrupt")],
            }
            for messages in states.values():
                for politely in (True, False):
                    async with stream(served) as socket:
                        for message in messages:
                            await socket.send(message)
                        if messages:
                            await socket.recv()
                        if not politely:
                            socket.transport.abort()
            await alone_again(served)
        assert served.service.counts.failed == failed

    run(talk())


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process as Linux tells it")
def test_a_hundred_visits_leave_no_sessions_tasks_or_memory(served):
    async def talk():
        async def visit():
            async with stream(served) as socket:
                await socket.send(START)
                assert json.loads(await socket.recv())["type"] == "session.ready"
                await socket.send(text("session.stop"))
                told, closed = await ended(socket)
                assert told[-1]["type"] == "session.done" and closed == 1000

        for _ in range(20):
            await visit()
        await alone_again(served, others=0)
        loop_tasks = len(served.tasks())
        gc.collect()
        before = resident()
        for _ in range(80):
            await visit()
        await alone_again(served, others=0)
        gc.collect()
        # A session of this model holds more than 1 MB, so that a leak would show as 80; allocators keep a few.
        assert resident() - before < 25e6
        assert len(served.tasks()) <= loop_tasks + 1

    run(talk())


class Opens:
    """What a pickle can do."""

    def __reduce__(self):
        return open, ("was_here", "w")


def test_uploads_that_are_no_pictures_are_refused(served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a pickle that was read would leave its file

    async def talk():
        png = io.BytesIO()
        Image.new("RGB", (80, 80), (200, 150, 120)).save(png, "PNG")
        async with neighbour(served):
            url = served.url("/v1/avatars")
            for body in (b"no picture", b"", pickle.dumps(Opens()), png.getvalue()[:60], b"<svg/>"):
                status, told = await ask(url, body)
                assert status == 400 and told["code"] == "BAD_PICTURE", body
            status, told = await ask(url, bytes(LIMITS.upload + 1))
            assert status == 413 and told["code"] == "TOO_LARGE"
            for crop in ("../../etc/passwd", "1,2,3", "0,0,nan,5", "0,0,1e999,9"):
                status, told = await ask(f"{url}?crop={crop}", png.getvalue())
                assert status == 400 and told["code"] == "BAD_MESSAGE", crop
            status, told = await ask(f"{url}?crop=-90,-90,-10,-10", png.getvalue())
            assert status == 400 and told["code"] == "BAD_PICTURE"
            for name in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "nobody"):
                assert (await ask(f"{url}/{name}/picture"))[0] == 404
            status, told = await ask(f"{url}?crop=center", png.getvalue())
            assert status == 200 and (await ask(f"{url}/{told['avatar']}/picture"))[0] == 200
            assert (await ask(served.url("/v1/avatars")))[1]["avatars"] == ["fake"]  # uploads are nobody else's

    run(talk())
    assert not list(tmp_path.iterdir())


def test_foreign_pages_and_wrong_tokens_are_refused(served, monkeypatch):
    async def talk():
        own, address = f"http://127.0.0.1:{served.port}", served.url("/v1/avatars")

        async def refused(**headers):
            query = "?token=" + headers.pop("query") if "query" in headers else ""
            status, _ = await ask(address + query, **headers)
            try:
                async with connect(served.url("/v1/avatar/stream", "ws") + query, additional_headers=headers) as socket:
                    await socket.send(START)
                    assert json.loads(await socket.recv())["type"] == "session.ready"
                    there = 200
            except InvalidStatus as error:
                there = error.response.status_code
            assert status == there and status in (200, 403)
            return status == 403

        assert not await refused(Origin=own) and not await refused()
        for origin in ("http://evil.example", "null", f"https://127.0.0.1:{served.port + 1}"):
            assert await refused(Origin=origin)
        # a foreign name that leads here: origin and host agree
        status, _ = await ask(address, Host="evil.example", Origin="http://evil.example")
        assert status == 403
        monkeypatch.setattr(served.service, "access", Access.of("secret", ["https://friend.example/"]))
        assert await refused() and await refused(Authorization="Bearer wrong") and await refused(query="wrong")
        assert not await refused(Authorization="Bearer secret") and not await refused(query="secret")
        assert not await refused(Authorization="Bearer secret", Origin="https://friend.example")
        assert await refused(Authorization="Bearer secret", Origin="https://evil.example")
        assert await refused(Origin="https://friend.example")
        await alone_again(served, others=0)

    run(talk())


def test_one_too_many_is_told_to_try_later(served):
    async def talk():
        async with neighbour(served), Socket.open(served), Socket.open(served):
            async with stream(served) as socket:
                await socket.send(START)
                told, closed = await ended(socket)
            assert [one["code"] for one in told] == ["CAPACITY_EXHAUSTED"] and closed == 1013
        await alone_again(served, others=0)

    run(talk())


def test_a_fault_of_the_engine_is_told_without_its_traceback(served, monkeypatch):
    """In one session's pictures; its neighbour goes on."""
    paint = fake.paint

    async def talk():
        failed = served.service.counts.failed
        async with neighbour(served) as seen:
            while not seen:
                await asyncio.sleep(0.02)

            def breaks(code, side):
                if code.viewer != seen[0].viewer:
                    raise ZeroDivisionError("secret of the house")
                return paint(code, side)

            monkeypatch.setattr(fake, "paint", breaks)
            async with stream(served) as socket:
                await socket.send(START)
                told, closed = await ended(socket)
            assert told[-1]["code"] == "FAULT" and closed == 1011
            assert "secret" not in json.dumps(told) and "Traceback" not in json.dumps(told)
            await alone_again(served)
        assert served.service.counts.failed == failed + 1

    run(talk())
