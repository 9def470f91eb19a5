"""``WS /v1/avatar/realtime`` by a client as OpenTalking has it: a photo, then sound piece by piece, each answered."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from rest_fast.serving import fake
from rest_fast.serving.limits import Limits
from tests.kit.serving import RATE, Served, fake_service

FRAME = RATE // 25


@pytest.fixture(scope="module")
def served():
    service = fake_service(sessions=3, limits=Limits(idle=3.0, start=1.0, uploads=1000.0))
    with Served(service, page=False) as running:
        yield running
    service.engine.close()


def photo(shade: int = 200) -> str:
    out = io.BytesIO()
    Image.new("RGB", (96, 96), (shade, 150, 120)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


class Client:
    def __init__(self, socket):
        self.socket = socket

    async def create(self, **config):
        create = {"type": "session.create", "inputs": {"image_b64": photo()}, "config": config}
        await self.socket.send(json.dumps(create))
        self.created = json.loads(await self.socket.recv())
        assert self.created["type"] == "session.created", self.created
        self.samples = self.created["audio"]["chunk_samples"]

    async def speak(self, sound):
        """The codes of the pictures for a piece of sound."""
        await self.socket.send(b"AUDI" + sound.astype("<i2").tobytes())
        while isinstance(answer := await self.socket.recv(), str):
            assert json.loads(answer)["type"] == "metrics", answer
        assert answer[:4] == b"VIDX"
        (count,), at, codes = struct.unpack_from("<I", answer, 4), 8, []
        for _ in range(count):
            (size,) = struct.unpack_from("<I", answer, at)
            picture = np.asarray(Image.open(io.BytesIO(answer[at + 4 : at + 4 + size])).convert("RGB"))
            codes.append(fake.read(picture))
            at += 4 + size
        assert at == len(answer) and None not in codes
        return codes

    async def ask(self, kind):
        await self.socket.send(json.dumps({"type": kind}))
        return json.loads(await self.socket.recv())["type"]


@contextlib.asynccontextmanager
async def client(served, **config):
    async with connect(served.url("/v1/avatar/realtime", "ws"), max_size=None, close_timeout=1) as socket:
        self = Client(socket)
        await self.create(**config)
        yield self


def run(talk):
    asyncio.run(asyncio.wait_for(talk, 60))


def steps(frames: int, seed: int) -> np.ndarray:
    """Sound whose level is another in each frame, so that a level names its frame."""
    levels = np.random.default_rng(seed).permutation(np.linspace(0.1, 0.6, frames))
    tone = np.sqrt(2) * np.sin(2 * np.pi * 500 * np.arange(FRAME) / RATE)  # 20 whole periods in a frame
    return np.rint(32767 * np.concatenate([level * tone for level in levels])).astype(np.int16)


def levels_of(sound: np.ndarray) -> list[int]:
    return [fake.level_of(sound[k : k + FRAME]) for k in range(0, len(sound), FRAME)]


def test_a_mark_is_in_what_such_clients_get_too(served, monkeypatch):
    marked = []
    monkeypatch.setattr(served.service, "mark", lambda video: marked.append(len(video)) or video)

    async def talk():
        async with client(served) as one:
            assert len(await one.speak(steps(24, 0))) == 24 == sum(marked)

    run(talk())


def test_each_piece_has_its_frames_and_lips_are_late_by_the_lookahead(served):
    """Two whole pieces and a shorter last one, twice: what is said anew is late by the same."""

    async def talk():
        async with client(served, seed=3) as one:
            audio, video = one.created["audio"], one.created["video"]
            assert (audio["sample_rate"], audio["channels"], audio["format"]) == (RATE, 1, "pcm_s16le")
            assert (video["fps"], video["wire_magic"], video["encoding"]) == (25, "VIDX", "jpeg-seq")
            assert video["frame_count"] * FRAME == one.samples
            session = next(iter(served.service.viewers)).session
            late = -(-int(session.lookahead_ms) // 40)
            assert late == 3
            for turn in range(2):
                sound = steps(2 * video["frame_count"] + 10, turn)
                pieces = [sound[: one.samples], sound[one.samples : 2 * one.samples], sound[2 * one.samples :]]
                codes = []
                for piece in pieces:
                    codes.append(await one.speak(piece))
                    assert len(codes[-1]) == len(piece) // FRAME
                said = [code for piece in codes for code in piece]
                assert [code.level for code in said] == [0] * late + levels_of(sound)[:-late]
                assert {(code.viewer, code.epoch) for code in said} == {(said[0].viewer, 0)}
                assert np.all(np.diff([code.frame for code in said]) == 1)
            assert await one.ask("session.close") == "session.closed"
            with pytest.raises(ConnectionClosed):
                await one.socket.recv()
            assert one.socket.protocol.close_code == 1000

    run(talk())


def test_after_a_cancel_nothing_of_the_old_sound_comes(served):
    async def talk():
        async with client(served) as one:
            await one.speak(steps(24, 1))
            assert await one.ask("session.cancel") == "session.cancelled"
            assert await one.ask("ping") == "pong"
            sound = steps(24, 2)
            codes = await one.speak(sound)
            assert [code.level for code in codes] == [0, 0, 0, *levels_of(sound)[:-3]]
            assert {code.epoch for code in codes} == {1}

    run(talk())


def test_one_photo_is_prepared_once(served):
    async def talk():
        before = set(served.service.avatars.uploaded)
        for _ in range(2):
            async with client(served):
                pass
        assert len(set(served.service.avatars.uploaded) - before) <= 1

    run(talk())


NO_PICTURE = base64.b64encode(b"no picture").decode()
FIRST = [
    ("{", "BAD_MESSAGE"),
    ("[" * 5000, "BAD_MESSAGE"),
    (b"AUDI\0\0", "BAD_MESSAGE"),
    ('{"type": "session.cancel"}', "BAD_MESSAGE"),
    ('{"type": "session.create"}', "BAD_MESSAGE"),
    ('{"type": "session.create", "inputs": []}', "BAD_MESSAGE"),
    ('{"type": "session.create", "inputs": {"image_b64": 7}}', "BAD_MESSAGE"),
    ('{"type": "session.create", "inputs": {"image_b64": "?"}}', "BAD_MESSAGE"),
    ('{"type": "session.create", "inputs": {"image_b64": "\\ud800"}}', "BAD_MESSAGE"),
    (json.dumps({"type": "session.create", "inputs": {"image_b64": NO_PICTURE}}), "BAD_PICTURE"),
    (json.dumps({"type": "session.create", "inputs": {"image_b64": photo()}, "config": [1]}), "BAD_MESSAGE"),
    (json.dumps({"type": "session.create", "inputs": {"image_b64": photo()}, "config": {"seed": True}}), "BAD_MESSAGE"),
    (None, "TOO_LATE"),
]


@pytest.mark.parametrize("message, code", FIRST)
def test_a_bad_first_message_is_refused_with_its_reason(served, message, code):
    async def talk():
        async with connect(served.url("/v1/avatar/realtime", "ws"), close_timeout=1) as socket:
            if message is not None:
                await socket.send(message)
            await refused(socket, code)

    run(talk())


LATER = [
    b"AUDI",
    b"AUDI\0\0\0",
    b"VIDX\0\0",
    b"",
    b"AUDI" + bytes(2 * (10 * RATE + 1)),
    "[]",
    '{"type": "session.create"}',
]


@pytest.mark.parametrize("message", [*LATER, '{"type": 5}'])
def test_a_bad_message_later_is_refused_and_the_session_closed(served, message):
    async def talk():
        async with client(served) as one:
            await one.socket.send(message)
            await refused(one.socket, "BAD_MESSAGE")

    run(talk())


async def refused(socket, code):
    told = json.loads(await socket.recv())
    assert (told["type"], told["code"]) == ("error", code) and "Traceback" not in told["message"]
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    assert socket.protocol.close_code == 1008


def test_a_client_that_says_nothing_any_more_is_closed(served):
    async def talk():
        async with client(served) as one:
            told = json.loads(await one.socket.recv())
            assert told["code"] == "TOO_LONG"
        await asyncio.sleep(0.2)
        assert not served.service.viewers

    run(talk())
