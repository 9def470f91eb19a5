"""Several servers behind one address: who is led where, and what a visitor sees when a server ends or is lost."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time

import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.client import connect

from rest_fast.serving.limits import Limits
from rest_fast.serving.router import Place
from rest_fast.serving.router import ask as ask_place
from rest_fast.serving.saved import Saved
from tests.kit.routers import Counting, Fleet, counting_up, routed_service
from tests.kit.serving import Served, ask, ended, fake_service

FRAME = 640  # samples
START = json.dumps({"type": "session.start", "avatar": "fake", "format": "raw"})


@pytest.fixture
def fleet(request):
    options = getattr(request, "param", {})
    services = [routed_service(sessions=2) for _ in range(2)]
    with Fleet(services, **options).running() as running:
        yield running
    for service in services:
        service.engine.close()


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 60))


def stream(served):
    return connect(served.url("/v1/avatar/stream", "ws"), max_size=None, close_timeout=0.5)


async def left(fleet):
    """All sessions have been given back."""
    end = asyncio.get_running_loop().time() + 15
    while fleet.router.relays or any(one.service.engine.seats for one in fleet.served):
        assert asyncio.get_running_loop().time() < end, "a session is left"
        await asyncio.sleep(0.02)


def check_numbers(client):
    """Of the frames as the client has them: they count on, and epochs grow with the moves."""
    assert [frame.index for frame, _, _ in client.frames] == list(range(len(client.frames)))
    epochs = [frame.epoch for frame, _, _ in client.frames]
    assert epochs == [moves for _, _, moves in client.frames]  # nobody has interrupted
    for k, move in enumerate(client.moves):
        assert move["epoch"] == k + 1
        first = next(frame for frame, _, moves in client.frames if moves == k + 1)
        assert first.pts == pytest.approx(move["pts"])


async def speak_while_its_server_drains(fleet):
    """Sound that is pushed before, between and behind goes on to the sample; nothing is lost, nothing repeated."""
    async with Counting.open(fleet) as client:
        sound = counting_up(2)
        await client.push(sound[: 20 * FRAME])
        await client.watch(10)
        fleet.drain(fleet.having(1))
        await client.push(sound[20 * FRAME :])
        await client.end("a")
        while not client.finished:
            await client.watch(1)
        assert [move["reason"] for move in client.moves] == ["drained"] and client.moves[0]["resumed"]
        assert (client.lost, client.repeated) == (0, 0)
        np.testing.assert_array_equal(client.sound[client.sound != 0], sound)
        assert client.finished == [("a", False)]
        check_numbers(client)


def test_a_server_that_drains_loses_and_repeats_nothing(fleet):
    run(speak_while_its_server_drains(fleet))


@pytest.mark.parametrize("fleet", [{"snapshots": 0.05}], indirect=True)
def test_a_snapshot_that_is_on_its_way_is_not_taken_for_the_session_at_its_end(fleet, monkeypatch):
    """They are written so slowly that one always is; by its frames and sound it is too old."""
    write = Saved.to_bytes
    monkeypatch.setattr(Saved, "to_bytes", lambda saved: (time.sleep(0.3), write(saved))[1])
    run(speak_while_its_server_drains(fleet))


@pytest.mark.parametrize("fleet", [{"snapshots": 0.7}], indirect=True)
def test_a_session_whose_server_is_lost_goes_on_from_its_snapshot(fleet):
    """What was shown since comes again, and nothing that was said is missing. What the client was told, it is not told
    again."""

    async def talk():
        async with Counting.open(fleet) as client:
            sound = counting_up(3)
            await client.push(sound[: 10 * FRAME])
            await client.end("a")
            await client.push(sound[10 * FRAME : 30 * FRAME])
            while ("a", False) not in client.finished:
                await client.watch(1)
            await client.watch(20)
            fleet.lose(fleet.having(1))
            await client.push(sound[30 * FRAME :])
            await client.end("b")
            while len(client.finished) < 2:
                await client.watch(1)
            assert [move["reason"] for move in client.moves] == ["lost"] and client.moves[0]["resumed"]
            assert client.lost == 0 and 0 < client.repeated <= 25 * (0.7 + 0.7)  # the interval, and to be written
            assert set(sound) <= set(client.sound)
            assert client.finished == [("a", False), ("b", False)]
            check_numbers(client)

    run(talk())


def test_a_session_that_is_lost_without_a_snapshot_begins_anew_as_after_an_interrupt(fleet):
    async def talk():
        async with Counting.open(fleet) as client:
            await client.push(counting_up(3))
            await client.end("a")
            await client.watch(30)
            fleet.lose(fleet.having(1))
            while not client.moves:
                await client.watch(1)
            await client.watch(25)
            (move,) = client.moves
            assert (move["reason"], move["resumed"]) == ("lost", False) and client.finished == [("a", True)]
            times = [frame.pts for frame, _, _ in client.frames if not frame.flags & 2]
            np.testing.assert_allclose(np.diff(times), 1 / 25, atol=1e-6)  # it goes on, in the client's numbers
            assert client.numbers[-1] < 30  # of another stream
            assert client.sound[-20 * FRAME :].max() == 0
            await client.push(counting_up(1))
            await client.end("b")
            while len(client.finished) < 2:
                await client.watch(1)
            assert client.finished == [("a", True), ("b", False)]
            check_numbers(client)

    run(talk())


@pytest.mark.parametrize("fleet", [{"snapshots": 0.4}], indirect=True)
def test_an_interrupt_stays_one_when_its_server_is_lost(fleet):
    """Once told, it is not told again; its epoch stays behind, and the next one is the client's next."""

    async def talk():
        async with Counting.open(fleet) as client:
            await client.push(counting_up(4))
            await client.end("a")
            await client.watch(30)
            await client.interrupt()
            assert client.said[-1]["epoch"] == 1
            fleet.lose(fleet.having(1))
            while not client.moves:
                await client.watch(1)
            await client.watch(10)
            assert client.moves[0]["epoch"] == 2 and client.finished == [("a", True)]
            assert client.sound[-10 * FRAME :].max() == 0  # what was interrupted stays silent
            await client.interrupt()
            assert client.said[-1]["epoch"] == 3
            while client.frames[-1][0].epoch < 3:
                await client.watch(1)
            epochs = [frame.epoch for frame, _, _ in client.frames]
            assert epochs == sorted(epochs)

    run(talk())


def test_sessions_go_where_there_is_room_and_the_last_refusal_is_a_servers_own(fleet):
    async def talk():
        async with contextlib.AsyncExitStack() as opened:
            for _ in range(4):
                await opened.enter_async_context(Counting.open(fleet))
            assert [len(one.service.viewers) for one in fleet.served] == [2, 2]
            async with stream(fleet) as late:
                await late.send(START)
                told, closed = await ended(late)
            assert [one["code"] for one in told] == ["CAPACITY_EXHAUSTED"] and closed == 1013
            assert told[0]["message"] == "engine: expected at most 2 sessions, its places, got one more"
        async with Counting.open(fleet) as again:
            await again.watch(2)
        await left(fleet)

    run(talk())


@pytest.mark.parametrize("fleet", [{"patience": 0.5}], indirect=True)
def test_who_finds_no_other_server_is_told_so_once(fleet):
    async def talk():
        fleet.lose(fleet.served[1])
        async with stream(fleet) as socket:
            await socket.send(START)
            for _ in range(5):
                await socket.recv()
            fleet.lose(fleet.served[0])
            told, closed = await ended(socket)
            assert [one["code"] for one in told if one["type"] == "error"] == ["NOT_NOW"] and closed == 1013
        assert fleet.router.counts.refused == 1  # however often it was tried
        assert (await ask(fleet.url("/healthz")))[0] == 503
        await left(fleet)

    run(talk())


BAD = {
    "a router's word": [START, json.dumps({"type": "session.leave"})],
    "a session as bytes": [b"RFS1" + bytes(100)],
    "no such face": [START.replace("fake", "nobody")],
    "no JSON": [START, "{"],
    "half a sample": [START, b"\0\0\0"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_and_clients_that_leave_end_one_session_and_leave_nothing(fleet, name):
    async def talk():
        async with Counting.open(fleet) as neighbour:
            async with stream(fleet) as socket:
                for message in BAD[name]:
                    await socket.send(message)
                told, closed = await ended(socket)
            codes = [one["code"] for one in told if one["type"] == "error"]
            assert codes == ["NO_SUCH_AVATAR" if "face" in name else "BAD_MESSAGE"] and closed == 1008
            async with stream(fleet) as socket:
                await socket.send(START)
                await socket.recv()
                socket.transport.abort()
            await neighbour.watch(20)
            assert (neighbour.lost, neighbour.repeated) == (0, 0)
        await left(fleet)

    run(talk())


def test_a_face_that_was_sent_to_one_server_is_there_on_the_others(fleet):
    async def talk():
        assert (await ask(fleet.url("/v1/avatars")))[1] == {"avatars": ["fake"], "capacity": 4}
        status, answer = await ask(fleet.url("/v1/avatars?crop=center&name=mine"), picture(128))
        assert status == 200 and answer["avatar"] != "mine"  # names are ours
        async with contextlib.AsyncExitStack() as opened:
            for _ in range(4):
                client = await opened.enter_async_context(Counting.open(fleet, avatar=answer["avatar"]))
                await client.watch(2)
            assert all(one.service.avatars.uploaded.keys() == {answer["avatar"]} for one in fleet.served)
        assert (await ask(fleet.url(f"/v1/avatars/{answer['avatar']}/picture")))[0] == 200
        await left(fleet)
        assert "rest_fast_routed 0.0" in (await ask(fleet.url("/metrics")))[1]
        status, answer = await ask(fleet.url("/v1/avatars?crop=center"), b"no picture")
        assert (status, answer["code"]) == (400, "BAD_PICTURE")

    run(talk())


def picture(grey):
    out = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), grey, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("fleet", [{"limits": Limits(avatars=1)}], indirect=True)
def test_the_picture_of_a_session_is_kept_for_as_long_as_it_lasts(fleet):
    """Others were uploaded since, as many as are kept; with it the session comes to a server that has not seen it."""

    async def talk():
        _, answer = await ask(fleet.url("/v1/avatars?crop=center"), picture(128))
        async with Counting.open(fleet, avatar=answer["avatar"]) as client:
            await client.watch(2)
            for grey in (1, 2, 3):
                assert (await ask(fleet.url("/v1/avatars?crop=center"), picture(grey)))[0] == 200
            for one in fleet.served:
                if not one.service.viewers:
                    one.service.avatars.uploaded.clear()
            fleet.drain(fleet.having(1))
            while not client.moves:
                await client.watch(1)
            await client.watch(2)
            assert client.moves[0]["resumed"]
        await left(fleet)
        assert (await ask(fleet.url("/v1/avatars?crop=center"), picture(4)))[0] == 200
        for one in fleet.served:
            one.service.avatars.uploaded.clear()
        async with stream(fleet) as late:
            await late.send(START.replace("fake", answer["avatar"]))
            assert (await ended(late))[0][0]["code"] == "NO_SUCH_AVATAR"  # nobody shows it any more

    run(talk())


def test_a_call_finds_the_face_that_was_sent_to_another_server(fleet):
    async def talk():
        _, answer = await ask(fleet.url("/v1/avatars?crop=center"), picture(128))
        for one in fleet.served:
            one.service.avatars.uploaded.clear()
        body = json.dumps({"sdp": "v=0", "type": "offer", "avatar": answer["avatar"]}).encode()
        status, found = await ask(fleet.url("/offer"), body)
        assert (status, found["code"]) == (400, "BAD_MESSAGE") and found["message"].startswith("sdp:")  # no avatar:
        for bad in (b"[", b"[]", json.dumps({"type": "offer", "sdp": "v=0", "avatar": 1}).encode()):
            status, found = await ask(fleet.url("/offer"), bad)
            assert (status, found["code"]) == (400, "BAD_MESSAGE")

    run(talk())


def test_servers_leave_it_to_their_router_to_count_messages():
    """What a client has said since a snapshot comes at once where its session is moved."""
    service = routed_service(sessions=1, limits=Limits(messages=1.0, burst=5.0))
    with Fleet([service]).running() as fleet:

        async def talk():
            async with Counting.open(fleet) as client:
                for k in range(30):
                    await client.say("ping", id=str(k))
                for k in range(30):
                    assert (await client.hear("pong"))["id"] == str(k)

        run(talk())
    service.engine.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"nothing of HTTP\r\n"])
def test_a_server_that_is_lost_while_it_answers_is_not_there(answer):
    async def talk():
        async def answered(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answered, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            assert (await ask_place(Place(f"http://127.0.0.1:{port}", ""), "/healthz"))[0] == 503

    run(talk())


def test_a_server_by_itself_takes_no_words_of_a_router():
    service = fake_service(sessions=1)
    with Served(service, page=False) as served:

        async def talk():
            for messages in ([START, json.dumps({"type": "snapshot"})], [b"RFS1" + bytes(100)]):
                async with stream(served) as socket:
                    for message in messages:
                        await socket.send(message)
                    told, closed = await ended(socket)
                assert told[-1]["code"] == "BAD_MESSAGE" and closed == 1008

        run(talk())
    service.engine.close()
