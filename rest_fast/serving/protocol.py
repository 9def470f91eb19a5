"""Messages of ``WS /v1/avatar/stream``: read from clients and checked, and written to them. See docs/serving.md.

Text messages are JSON objects with a field ``type``. Sound goes in as binary messages. Frames come out as binary
messages: a header (:data:`HEADER`), then the picture, then its sound.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields
from typing import Any

from rest_fast.errors import BacklogFull, EngineClosed, MediaError, SessionClosed, StateError
from rest_fast.errors import ProtocolError as ProtocolError
from rest_fast.serving.pacer import Shown

VERSION = 1
FORMATS = ("jpeg", "raw", "fmp4")
MAGIC = b"RFF1"
# magic, flags, encoding, 0, epoch, segment, index, pts, bytes of the picture, bytes of the sound
HEADER = struct.Struct("<4sBBHIIIdII")
IDLE, HELD, SEGMENT_END = 1, 2, 4  # flags
ENCODINGS = {"jpeg": 0, "raw": 1}


def refusal(error: Exception) -> ProtocolError | None:
    """What a client is told of an error that is none of ours; None for a fault, of which it is told nothing else."""
    match error:
        case ProtocolError():
            return error
        case BacklogFull():
            return ProtocolError("TOO_LARGE", str(error))
        case SessionClosed() | EngineClosed():  # nobody but a server that ends closes them under a client
            return ProtocolError("NOT_NOW", "session: expected a server that is ok, got one that is ending")
        case MediaError() | StateError():
            return ProtocolError("BAD_MESSAGE", str(error))
    return None


FAULT = ProtocolError("FAULT", "the session failed; the server has written down why")


@dataclass(frozen=True)
class Start:
    """``session.start``: the first message of a connection."""

    avatar: str
    sample_rate: int = 16000
    format: str = "jpeg"
    seed: int = 0
    quality: int = 85  # of JPEG


@dataclass(frozen=True)
class End:
    """``audio.end``: what was pushed is complete. ``id`` comes back when it was shown."""

    id: str = ""


@dataclass(frozen=True)
class InterruptNow:
    """``interrupt``: barge-in."""


@dataclass(frozen=True)
class Ping:
    """``ping``: answered by ``pong`` with the same ``id``."""

    id: str = ""


@dataclass(frozen=True)
class Stop:
    """``session.stop``."""


@dataclass(frozen=True)
class Snapshot:
    """``snapshot``, of a router: the session as bytes (:class:`rest_fast.serving.saved.Saved`)."""


@dataclass(frozen=True)
class Leave:
    """``session.leave``, of a router: the same, and nothing more is shown here."""


Control = Start | End | InterruptNow | Ping | Stop | Snapshot | Leave
TYPES: dict[str, type[Any]] = {
    "session.start": Start,
    "audio.end": End,
    "interrupt": InterruptNow,
    "ping": Ping,
    "session.stop": Stop,
}
ROUTER_TYPES: dict[str, type[Any]] = {"snapshot": Snapshot, "session.leave": Leave}  # what a router says besides
RANGES: dict[str, tuple[int, int]] = {"sample_rate": (8000, 96000), "seed": (0, 2**53 - 1), "quality": (1, 100)}
LONGEST = 200  # characters of a text field


def read_control(text: str, routed: bool = False) -> Control:
    """``routed``: from a router. Raises: :class:`ProtocolError`."""
    types = TYPES | ROUTER_TYPES if routed else TYPES
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("BAD_MESSAGE", "message: expected a JSON object, got text that is none") from None
    if not isinstance(raw, dict):
        raise ProtocolError("BAD_MESSAGE", f"message: expected a JSON object, got a {type(raw).__name__}")
    kind = raw.pop("type", None)
    if not isinstance(kind, str) or kind not in types:
        raise ProtocolError("BAD_MESSAGE", f"type: expected one of {', '.join(types)}, got {short(kind)}")
    made = types[kind]
    known = {f.name: f for f in fields(made)}
    unknown = sorted(set(raw) - set(known))
    if unknown:
        names = ", ".join(known) or "no fields"
        raise ProtocolError("BAD_MESSAGE", f"{kind}: expected {names}, got {short(unknown[0])}")
    for name, value in raw.items():
        _check(kind, name, value)
    if made is Start and "avatar" not in raw:
        raise ProtocolError("BAD_MESSAGE", f"{kind}: avatar: expected the name of one, got none")
    control: Control = made(**raw)
    return control


def _check(kind: str, name: str, value: Any) -> None:
    if name in RANGES:
        low, high = RANGES[name]
        if type(value) is not int or not low <= value <= high:
            message = f"{kind}: {name}: expected an integer in {low}..{high}, got {short(value)}"
            raise ProtocolError("BAD_MESSAGE", message)
    elif not isinstance(value, str) or len(value) > LONGEST:
        message = f"{kind}: {name}: expected text of at most {LONGEST} characters, got {short(value)}"
        raise ProtocolError("BAD_MESSAGE", message)
    elif name == "format" and value not in FORMATS:
        raise ProtocolError("BAD_MESSAGE", f"{kind}: format: expected {', '.join(FORMATS)}, got {short(value)}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def frame_message(shown: Shown, picture: bytes, encoding: str) -> bytes:
    """One frame and its sound (s16le), as a binary message."""
    sound = shown.sound.astype("<i2").tobytes()
    flags = IDLE * shown.idle | HELD * shown.held | SEGMENT_END * shown.segment_end
    about = (MAGIC, flags, ENCODINGS[encoding], 0, shown.epoch, shown.segment, shown.index, shown.pts)
    return HEADER.pack(*about, len(picture), len(sound)) + picture + sound


@dataclass(frozen=True, eq=False)
class FrameMessage:
    """What :func:`frame_message` wrote."""

    flags: int
    encoding: str
    epoch: int
    segment: int
    index: int
    pts: float
    picture: bytes
    sound: bytes


def read_frame(data: bytes) -> FrameMessage:
    """Raises: :class:`ProtocolError`."""
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise ProtocolError("BAD_MESSAGE", f"frame: expected a header of {HEADER.size} bytes, got {len(data)} bytes")
    _, flags, encoding, _, epoch, segment, index, pts, picture, sound = HEADER.unpack_from(data)
    if len(data) != HEADER.size + picture + sound:
        raise ProtocolError("BAD_MESSAGE", f"frame: expected {picture + sound} bytes behind its header")
    name = {number: name for name, number in ENCODINGS.items()}[encoding]
    body = data[HEADER.size :]
    return FrameMessage(flags, name, epoch, segment, index, pts, body[:picture], body[picture:])


def text(kind: str, **values: Any) -> str:
    """A message to a client."""
    return json.dumps({"type": kind, **values})


def error(code: str, message: str) -> str:
    return text("error", code=code, message=message)


def schema() -> dict[str, Any]:
    """JSON schema of the messages that clients send."""
    variants = []
    for kind, made in TYPES.items():
        properties: dict[str, Any] = {"type": {"const": kind}}
        for f in fields(made):
            properties[f.name] = _schema_of(f.name)
        required = ["type", "avatar"] if made is Start else ["type"]
        about = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        variants.append({"title": kind, "description": str(made.__doc__), **about})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "rest_fast client", "oneOf": variants}


def _schema_of(name: str) -> dict[str, Any]:
    if name in RANGES:
        return {"type": "integer", "minimum": RANGES[name][0], "maximum": RANGES[name][1]}
    return {"enum": list(FORMATS)} if name == "format" else {"type": "string", "maxLength": LONGEST}
