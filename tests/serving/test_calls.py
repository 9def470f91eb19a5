"""WebRTC calls that go wrong, and what a server says of itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import time

import aioice.ice
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from prometheus_client.parser import text_string_to_metric_families

from rest_fast.serving import fake
from rest_fast.serving.limits import Limits
from tests.kit.serving import RATE, Call, Served, Socket, ask, fake_service


@pytest.fixture(scope="module")
def served():
    service = fake_service(Limits(start=1.0, drain=1.0), sessions=2)
    with Served(service, page=False) as running:
        yield running
    service.engine.close()


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 60))


async def nobody_is_left(served, seconds=8.0):
    end = time.monotonic() + seconds
    while served.service.viewers or served.service.engine.seats:
        assert time.monotonic() < end, "a session is left"
        await asyncio.sleep(0.05)


async def offer_of(*kinds, direction="recvonly") -> tuple[RTCPeerConnection, str]:
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    for kind in kinds:
        peer.addTransceiver(kind, direction)
    peer.createDataChannel("talk")
    await peer.setLocalDescription(await peer.createOffer())
    return peer, peer.localDescription.sdp


def test_offers_that_are_none_are_refused_and_keep_no_session(served):
    async def talk():
        peers = []
        bodies = [b"", b"[]", b"\xff", b"[" * 10_000, b'{"type": "offer"}', b'{"type": "answer", "sdp": ""}']
        bodies += [json.dumps({"type": "offer", "sdp": sdp, "avatar": "fake"}).encode() for sdp in ("", "v=0\r\nm=?")]
        for kinds, direction in ((["video"], "recvonly"), (["audio"], "recvonly"), (["audio", "video"], "sendonly")):
            peer, sdp = await offer_of(*kinds, direction=direction)
            peers.append(peer)
            bodies.append(json.dumps({"type": "offer", "sdp": sdp, "avatar": "fake"}).encode())
        for body in bodies:
            status, told = await ask(served.url("/offer"), body)
            assert (status, told["code"]) == (400, "BAD_MESSAGE") and "Traceback" not in told["message"], body
        nobody = json.dumps({"type": "offer", "sdp": sdp, "avatar": "nobody"}).encode()
        assert (await ask(served.url("/offer"), nobody))[0] == 404
        assert (await ask(served.url("/offer"), bytes(300_000)))[0] == 413
        await nobody_is_left(served, 2.0)
        for peer in peers:
            await peer.close()

    run(talk())


def test_a_peer_that_never_connects_is_forgotten(served):
    async def talk():
        peer, sdp = await offer_of("video", "audio")
        status, _ = await ask(
            served.url("/offer"), json.dumps({"type": "offer", "sdp": sdp, "avatar": "fake"}).encode()
        )
        assert status == 200 and len(served.service.viewers) == 1
        await nobody_is_left(served)
        await peer.close()

    run(talk())


def test_a_peer_that_vanishes_is_forgotten(served, monkeypatch):
    """Without a word: the server asks it for its consent, as ICE has it, and gets no answer."""
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.3)
    monkeypatch.setattr(aioice.ice, "CONSENT_FAILURES", 2)

    async def talk():
        async with Call.open(served) as call:
            await call.take(5)
            assert len(served.service.viewers) == 1
            # its sockets are deaf from now on, and it says nothing more
            transport = call.peer.getTransceivers()[0].receiver.transport.transport
            for protocol in transport._connection._protocols:
                protocol.transport.close()
            await nobody_is_left(served, 20.0)

    run(talk())


def test_a_bad_message_on_the_channel_ends_the_call_with_its_reason(served):
    async def talk():
        for message in ("{", b"\0", json.dumps({"type": "session.start", "avatar": "fake"})):
            async with Call.open(served) as call:
                call.channel.send(message)
                told = await asyncio.wait_for(call.hear("error"), 10)
                assert told["code"] == "BAD_MESSAGE"
                await nobody_is_left(served)

    run(talk())


def test_a_call_is_ended_by_the_visitor_and_told_so(served):
    async def talk():
        async with Call.open(served) as call:
            call.say("ping", id="x")
            assert (await asyncio.wait_for(call.hear("pong"), 10))["id"] == "x"
            call.say("session.stop")
            await asyncio.wait_for(call.hear("session.done"), 10)
            await nobody_is_left(served)

    run(talk())


def test_metrics_are_read_by_prometheus_and_count_what_happened(served):
    async def numbers():
        status, text = await ask(served.url("/metrics"))
        assert status == 200
        return {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}

    async def talk():
        before = await numbers()
        async with Socket.open(served) as one, Socket.open(served):
            await one.push(np.full(RATE, 4000, np.int16))
            got = await one.take(30)
            during = await numbers()
            with pytest.raises(AssertionError, match="CAPACITY_EXHAUSTED"):
                async with Socket.open(served):
                    pass
        await nobody_is_left(served)
        after = await numbers()
        assert (before["rest_fast_sessions"], during["rest_fast_sessions"], after["rest_fast_sessions"]) == (0, 2, 0)
        assert during["rest_fast_capacity"] == 2
        assert after["rest_fast_sessions_opened_total"] - before["rest_fast_sessions_opened_total"] == 2
        assert after["rest_fast_sessions_refused_total"] - before["rest_fast_sessions_refused_total"] == 1
        assert after["rest_fast_sessions_failed_total"] == before["rest_fast_sessions_failed_total"]
        assert after["rest_fast_frames_total"] - before["rest_fast_frames_total"] >= 30
        assert during["rest_fast_frames_total"] <= after["rest_fast_frames_total"]  # what was counted stays
        codes = [fake.read(one.picture) for one in got]
        held = sum(a == b for a, b in itertools.pairwise(codes))
        assert after["rest_fast_frames_held_total"] - before["rest_fast_frames_held_total"] >= held

    run(talk())


def test_health_is_ok_only_where_sessions_are_taken(served, monkeypatch):
    async def talk():
        assert await ask(served.url("/healthz")) == (200, {"status": "ok"})
        for name, value, told in (("ready", False, "loading"), ("draining", True, "draining")):
            with monkeypatch.context() as patch:
                patch.setattr(served.service, name, value)
                assert await ask(served.url("/healthz")) == (503, {"status": told})
                with pytest.raises(AssertionError, match="NOT_NOW"):
                    async with Socket.open(served):
                        pass

    run(talk())
