"""``WS /v1/avatar/realtime``: OmniRT's protocol, by which OpenTalking asks for faces.

A client sends a photo, then sound in pieces of a stated length, and waits for the frames of each piece. It has no
clock, no epochs and no idle frames: it plays a piece's sound and its frames together. A chunk of ours needs a little
sound behind it (``lookahead_ms``), which such a client has not sent yet. So the stream begins with that much silence,
and pictures are late by it, three frames for the demo.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import math
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from starlette.websockets import WebSocket

from rest_fast.serving import protocol
from rest_fast.serving.avatars import jpeg
from rest_fast.serving.connection import Connection, let_in
from rest_fast.serving.pacer import Mark
from rest_fast.serving.protocol import ProtocolError
from rest_fast.serving.service import Service
from rest_fast.serving.viewer import Viewer
from rest_fast.streaming.block import Block
from rest_fast.streaming.session import Session
from rest_fast.units import FPS, FRAME, RATE

SOUND, FRAMES = b"AUDI", b"VIDX"
LONGEST = 10 * RATE  # samples of one piece


async def realtime(socket: WebSocket, service: Service) -> None:
    """Serve one connection."""
    await let_in(socket, service, lambda connection: _talk(connection, service))


async def _talk(connection: Connection, service: Service) -> None:
    photo, seed = await _create(connection)
    name = await _prepared(service, photo)
    async with service.viewer(name, seed=seed) as viewer:
        session = viewer.session
        pieces = Pieces(session, service.mark)
        height, width = session.avatar.picture.shape[:2]
        audio = {"format": "pcm_s16le", "sample_rate": RATE, "channels": 1, "chunk_samples": pieces.samples}
        video = {"encoding": "jpeg-seq", "wire_magic": FRAMES.decode(), "fps": FPS, "width": width, "height": height}
        video |= {"frame_count": pieces.samples // FRAME, "motion_frames_num": 0}
        about = {"session_id": viewer.name, "trace_id": viewer.name, "audio": audio, "video": video}
        await connection.send(protocol.text("session.created", **about))
        number = 0
        while True:
            content = await _next(connection, viewer)
            if isinstance(content, bytes):
                await _piece(connection, pieces, content, number)
                number += 1
            elif not await _control(connection, pieces, content):
                return


async def _next(connection: Connection, viewer: Viewer) -> str | bytes:
    """The next message. Nothing else happens meanwhile that would end a session whose client is silent."""
    limits = connection.limits
    wait = min(limits.idle, viewer.opened + limits.session - time.monotonic())
    try:
        return await asyncio.wait_for(connection.receive(), wait)
    except asyncio.TimeoutError:
        expected = f"session: expected a message within {limits.idle:g} s and an end within {limits.session:g} s"
        raise ProtocolError("TOO_LONG", f"{expected}, got neither") from None


class Pieces:
    """Frames of pieces of sound, one piece after the other."""

    def __init__(self, session: Session, mark: Mark | None = None):
        self.session, self.mark = session, mark
        stream = session.stream
        self.samples = stream.chunk * round(session.mailbox.duration * RATE)
        self.late = math.ceil(session.lookahead_ms * FPS / 1000)  # frames
        self._blocks: AsyncIterator[Block] = session.ablocks()
        self._fresh = True

    async def frames(self, sound: np.ndarray) -> list[np.ndarray]:
        """Pictures uint8 [H, W, 3], as many as ``sound`` int16 [n] takes. A piece of another length than
        :attr:`samples` is the last one of what is said."""
        if self._fresh:
            self.session.push_audio(np.zeros(self.late * FRAME, np.int16))
            self._fresh = False
        self.session.push_audio(sound)
        wanted = round(len(sound) / FRAME)
        whole = len(sound) == self.samples
        if not whole:
            self.session.end_segment()
            self._fresh = True
        found: list[np.ndarray] = []
        async for block in self._blocks:
            found += list(block.video if self.mark is None else self.mark(block.video))
            if block.segment_end or (whole and len(found) >= wanted):
                break
        return found[:wanted]

    def cancel(self) -> None:
        """What was said is not wanted any more."""
        self.session.interrupt()
        self._fresh = True


async def _piece(connection: Connection, pieces: Pieces, content: bytes, number: int) -> None:
    if content[:4] != SOUND or len(content) % 2:
        raise ProtocolError("BAD_MESSAGE", f"sound: expected {SOUND.decode()} and s16le samples, got something else")
    sound = np.frombuffer(content[4:], "<i2").astype(np.int16)
    if not 1 <= len(sound) <= LONGEST:
        raise ProtocolError("BAD_MESSAGE", f"sound: expected 1..{LONGEST} samples, got {len(sound)}")
    start = time.monotonic()
    pictures = await pieces.frames(sound)
    made = time.monotonic()
    packed = await asyncio.to_thread(_packed, pictures)
    spent = {"infer_ms": round(1e3 * (made - start)), "encode_ms": round(1e3 * (time.monotonic() - made))}
    await connection.send(protocol.text("metrics", chunk_index=number, **spent))
    await connection.send(packed)


def _packed(pictures: list[np.ndarray]) -> bytes:
    parts = [FRAMES, struct.pack("<I", len(pictures))]
    for picture in pictures:
        data = jpeg(picture)
        parts += [struct.pack("<I", len(data)), data]
    return b"".join(parts)


async def _control(connection: Connection, pieces: Pieces, content: str) -> bool:
    """Returns: whether the session goes on."""
    match _read(content).get("type"):
        case "session.cancel":
            pieces.cancel()
            await connection.send(protocol.text("session.cancelled"))
        case "session.close":
            await connection.send(protocol.text("session.closed"))
            return False
        case "ping":
            await connection.send(protocol.text("pong"))
        case kind:
            expected = "expected session.cancel, session.close or ping"
            raise ProtocolError("BAD_MESSAGE", f"type: {expected}, got {protocol.short(kind)}")
    return True


async def _create(connection: Connection) -> tuple[bytes, int]:
    """The photo and the seed of ``session.create``."""
    limits = connection.limits
    try:
        content = await asyncio.wait_for(connection.receive(limits.upload * 4 // 3 + limits.control), limits.start)
    except asyncio.TimeoutError:
        expected = f"expected session.create within {limits.start:g} s"
        raise ProtocolError("TOO_LATE", f"{expected}, got nothing") from None
    raw = _read(content) if isinstance(content, str) else {}
    if raw.get("type") != "session.create":
        raise ProtocolError("BAD_MESSAGE", "expected session.create as the first message, got another")
    inputs, config = raw.get("inputs"), raw.get("config") or {}
    photo = inputs.get("image_b64") if isinstance(inputs, dict) else None
    seed = config.get("seed", 0) if isinstance(config, dict) else None
    if not isinstance(photo, str):
        raise ProtocolError("BAD_MESSAGE", "inputs.image_b64: expected a picture in base64, got none")
    if type(seed) is not int or not 0 <= seed < 2**53:
        raise ProtocolError("BAD_MESSAGE", f"config.seed: expected an integer from 0, got {protocol.short(seed)}")
    try:
        return base64.b64decode(photo.partition("base64,")[2] or photo, validate=True), seed
    except (binascii.Error, ValueError):
        raise ProtocolError("BAD_MESSAGE", "inputs.image_b64: expected base64, got other text") from None


def _read(content: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise ProtocolError("BAD_MESSAGE", "message: expected a JSON object, got something else")
    return raw


async def _prepared(service: Service, photo: bytes) -> str:
    """The name of the avatar of this photo; one that was sent before is not prepared again."""
    name = "photo_" + hashlib.sha256(photo).hexdigest()
    if name not in service.avatars.uploaded:
        if not service.uploads.take(time.monotonic()):
            raise ProtocolError("TOO_MANY", f"photos: expected at most {service.limits.uploads:g} a minute, got more")
        await service.avatars.upload(photo, None, name)
    return name
