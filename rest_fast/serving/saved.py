"""A visitor's session as bytes, from which another server goes on: a session's snapshot, and what its pacer and its
transport know besides. Frames that were made and not yet shown are in it, so that nothing is lost and nothing comes
twice where a session is moved while it stands still.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rest_fast.errors import ProtocolError, StateError
from rest_fast.serving import protocol
from rest_fast.serving.pacer import Shown
from rest_fast.serving.protocol import Start
from rest_fast.streaming.snapshot import Fields, SessionState

MAGIC = b"RFS1"
# of a frame that waits; its sound has that many samples
COLUMNS = {"pts": float, "epoch": int, "segment": int, "idle": bool, "end": bool, "samples": int, "spoken": int}


@dataclass(frozen=True, eq=False)
class Saved:
    """What a viewer's ``save`` returns, and what the session that goes on elsewhere begins with."""

    start: Start  # what the client has asked for
    state: SessionState  # of the session
    waiting: list[Shown]  # frames that were made and not yet shown
    ids: list[str]  # of the segments that were ended and not shown to their ends
    position: float | None  # seconds of the speech that is shown; None where none is
    pushed: bool  # whether the segment that has not ended has samples
    age: float  # seconds since the session was opened
    pts: float  # where the picture goes on

    def to_bytes(self) -> bytes:
        """What :meth:`from_bytes` reads: numbers and text, no code."""
        rows = [(f.pts, f.epoch, f.segment, f.idle, f.segment_end, len(f.sound), f.spoken) for f in self.waiting]
        columns = {name: [row[k] for row in rows] for k, name in enumerate(COLUMNS)}
        about = {"start": dataclasses.asdict(self.start), "ids": self.ids, "pushed": self.pushed, "columns": columns}
        times = {"age": self.age, "pts": self.pts, "position": self.position}
        tensors = dict(self.state.tensors)
        if rows:
            tensors["waiting.pictures"] = torch.from_numpy(np.stack([f.picture for f in self.waiting]))
            tensors["waiting.sounds"] = torch.from_numpy(np.concatenate([f.sound for f in self.waiting]))
        return MAGIC + SessionState(tensors, self.state.meta | {"viewer": about | times}).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Saved:
        """Raises: :class:`rest_fast.StateError`; what is in it of the session itself is read by its ``restore``."""
        if data[:4] != MAGIC:
            raise StateError(f"restore: expected a session that begins with {MAGIC.decode()}, got other bytes")
        state = SessionState.from_bytes(data[4:])
        about = state.meta.pop("viewer", None)
        if not isinstance(about, dict):
            raise StateError(f"restore: viewer: expected what a server has written, got {type(about).__name__}")
        columns = about.get("columns")
        table = Fields(columns if isinstance(columns, dict) else {}, state.tensors)
        fields, ids = Fields(about, state.tensors), Fields(about, {}).array("ids", str)
        waiting = _waiting(table)
        for name in ("waiting.pictures", "waiting.sounds"):
            state.tensors.pop(name, None)
        position = None if about.get("position") is None else _seconds(fields, "position")
        times = _seconds(fields, "age"), _seconds(fields, "pts")
        return cls(_start(about.get("start")), state, waiting, ids, position, fields.flag("pushed"), *times)


def _start(raw: Any) -> Start:
    try:
        found = protocol.read_control(json.dumps({"type": "session.start", **raw}))
    except (ProtocolError, TypeError) as e:
        raise StateError(f"restore: start: expected a session.start, got another message ({e})") from None
    assert isinstance(found, Start)
    return found


def _seconds(fields: Fields, name: str) -> float:
    value = fields.values.get(name)
    ok = isinstance(value, int | float) and 0 <= value < 1e9
    fields.require(ok, name, "seconds", repr(value))
    return float(value or 0.0)


def _waiting(table: Fields) -> list[Shown]:
    columns = {name: table.array(name, kind) for name, kind in COLUMNS.items()}
    counts = {len(column) for column in columns.values()}
    table.require(len(counts) == 1, "columns", "columns of one length", sorted(counts))
    (count,) = counts
    if not count:
        return []
    pictures = table.shaped("waiting.pictures", (count, -1, -1, 3), torch.uint8).numpy()
    sound = table.shaped("waiting.sounds", (-1,), torch.int16).numpy()
    lengths, spoken = columns["samples"], columns["spoken"]
    fits = all(0 <= s <= n for s, n in zip(spoken, lengths)) and sum(lengths) == len(sound)
    table.require(fits, "samples", f"numbers that sum up to {len(sound)}", lengths)
    whole = min([*columns["epoch"], *columns["segment"]]) >= -1 and np.isfinite(columns["pts"]).all()
    table.require(bool(whole), "columns", "times and numbers of frames", "others")
    sounds = np.split(sound, np.cumsum(lengths)[:-1])
    rows = zip(columns["pts"], columns["epoch"], columns["segment"], columns["idle"], columns["end"])
    return [
        Shown(pictures[k], sounds[k], 0, pts, epoch, segment, idle, False, end, spoken=spoken[k])
        for k, (pts, epoch, segment, idle, end) in enumerate(rows)
    ]
