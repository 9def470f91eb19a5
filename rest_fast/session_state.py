"""A live session as data: tensors and a few integers, to continue elsewhere bit-equal."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from rest_fast import media
from rest_fast.block import Latent
from rest_fast.config import TEMPORAL
from rest_fast.errors import StateError as StateError
from rest_fast.sound import SoundTimeline
from rest_fast.state_fields import Fields

if TYPE_CHECKING:
    from rest_fast.session import Session

_COUNTERS = ("_noise_index", "_next", "_delivered", "_floor", "_stale_context", "epoch")


@dataclass(frozen=True, eq=False)
class SessionState:
    """What :meth:`Session.snapshot` returns; ``to_bytes`` and ``from_bytes`` (safetensors) carry it anywhere."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]

    def to_bytes(self) -> bytes:
        meta = torch.frombuffer(bytearray(json.dumps(self.meta).encode()), dtype=torch.uint8)
        return save_tensors({k: v.cpu().contiguous() for k, v in self.tensors.items()} | {"meta": meta})

    @classmethod
    def from_bytes(cls, data: bytes) -> SessionState:
        try:
            tensors = load_tensors(data)
            meta = json.loads(bytes(tensors.pop("meta").numpy()))
            if not isinstance(meta, dict):
                raise ValueError(f"its meta is of type {type(meta).__name__}")
        except (SafetensorError, KeyError, ValueError, TypeError) as e:
            raise StateError(f"restore: expected the bytes of a session snapshot, got something else ({e})") from None
        return cls(tensors, meta)


def identity(session: Session) -> dict[str, Any]:
    """What two sessions must share for a snapshot of one to fit the other."""
    return {
        "model": session.model.fingerprint,
        "avatar": session.avatar.identity,
        "seed": session.seed,
        "sample_rate": session._sound.rate,
        "sampling": dataclasses.asdict(session.sampling),
        "decoder": session._decoder.kind,
    }


def capture(session: Session) -> SessionState:
    tensors: dict[str, torch.Tensor] = {}
    committed = []
    for row in _rows(session):
        tensors[f"k.{row}"], tensors[f"v.{row}"], count = session._cache.snapshot(row)
        committed.append(count)
    for i, latent in enumerate(session._history):  # what is pending are the latest of these
        tensors[f"history.{i}.z"], tensors[f"history.{i}.code"] = latent.z.clone(), latent.code.clone()
    tensors |= {f"decoder.{name}": tensor for name, tensor in session._decoder.to_tensors().items()}
    sound = session._sound
    tensors["sound"] = torch.from_numpy(sound.raw(sound.start, sound.end).copy())
    meta = {
        "identity": identity(session),
        "committed": committed,
        "segments": list(session._segments),
        "idle": [latent.idle for latent in session._history],
        "sound_start": sound.start,
        "sound_fixed": sound.fixed,
    }
    return SessionState(tensors, meta | {name: getattr(session, name) for name in _COUNTERS})


def apply(session: Session, state: SessionState) -> None:
    """Read all parts first, then put them in: a state that does not fit leaves the session as it was."""
    if not isinstance(state, SessionState):
        raise StateError(
            f"restore: expected a SessionState (SessionState.from_bytes reads one), got {type(state).__name__}"
        )
    fields, here, there = Fields(state.meta, state.tensors), identity(session), state.meta.get("identity")
    if not isinstance(there, dict):
        raise StateError(f"restore: identity: expected {', '.join(here)}, got {there!r}")
    if here != there:
        other = {k: there.get(k) for k in here if here[k] != there.get(k)}
        raise StateError(f"restore: expected a snapshot of this session's {', '.join(here)}, got one with {other}")
    counters = _counters(session, fields)
    history = _history(session, fields, counters)
    decoder = session._decoder.read(fields, *(counters[name] for name in ("_floor", "_delivered", "_next")))
    sound, form = _sound(session, fields, counters)
    segments = _segments(session, fields, counters, sound.end)
    rows = _cache_rows(session, fields, counters)
    # nothing above has changed the session, and nothing below can fail
    for row, content in rows.items():
        session._cache.restore(row, content)
    session._decoder.put(decoder)
    pending = counters["_next"] - counters["_delivered"]
    session._history = deque(history, maxlen=session._history.maxlen)
    session._pending = deque(history[len(history) - pending :])
    session._segments, session._sound = segments, sound
    session._format = form if sound.fixed else None
    for name, value in counters.items():
        setattr(session, name, value)
    session._ready = None
    session._inbox.clear()


def _rows(session: Session) -> list[int]:
    return [row for row in (session._branches.cond, session._branches.uncond) if row is not None]


def _counters(session: Session, fields: Fields) -> dict[str, Any]:
    """Latents are drawn before they are generated, generated before delivered, delivered before they are forgotten."""
    drawn = fields.integer("_noise_index", 0)
    fields.require(drawn % session._chunk == 0, "_noise_index", f"a multiple of {session._chunk}", drawn)
    generated = fields.integer("_next", 0, drawn)
    delivered = fields.integer("_delivered", 0, generated)
    floor = fields.integer("_floor", max(0, delivered - session.lead), delivered)
    stale, epoch = fields.flag("_stale_context"), fields.integer("epoch", 0)
    return dict(zip(_COUNTERS, (drawn, generated, delivered, floor, stale, epoch), strict=True))


def _history(session: Session, fields: Fields, counters: dict[str, Any]) -> list[Latent]:
    """The latest latents, and before the first one the reference as often as a context or the decoder needs it."""
    idle, config = fields.array("idle", bool), session.model.config
    z, code = (config.tokens, config.vae.latent_channels), (config.speech.tokens, config.speech.width)
    low = session._before + counters["_next"] - counters["_floor"]
    high = min(session._before + counters["_next"], session._history.maxlen or 0)
    fields.require(low <= len(idle) <= high, "idle", f"{low} to {high} of them", len(idle))
    device, wide = session.model.device, [torch.float32] + [torch.float64] * (session.model.dtype == torch.float64)
    return [
        Latent(
            fields.tensor(f"history.{i}.z", z, *wide).to(device),
            fields.tensor(f"history.{i}.code", code, session.model.dtype).to(device),
            flag,
        )
        for i, flag in enumerate(idle)
    ]


def _sound(session: Session, fields: Fields, counters: dict[str, Any]) -> tuple[SoundTimeline, Any]:
    """From no later than the oldest window that can be asked for, to no earlier than the last latent; its format."""
    fixed = fields.flag("sound_fixed")
    found = fields.tensors.get("sound")
    try:
        samples = media.own_pcm(found)
    except media.MediaError as e:
        raise StateError(f"restore: sound: {e}") from None
    silent = samples.ndim == 1 and samples.dtype == np.float32 and not samples.any()
    fields.require(fixed or silent, "sound", "float32 silence, since sound_fixed is false", "something else")
    oldest = session._sound.oldest(TEMPORAL * (counters["_floor"] - 1), session.model.features.back)
    start = fields.integer("sound_start", 0, max(0, oldest))
    end, made = start + len(samples), session._sound.sample_of(TEMPORAL * counters["_next"])
    fields.require(end >= made, "sound", f"samples up to {made}, what is generated", f"{start} to {end}")
    return SoundTimeline.restore(session._sound.rate, start, samples, fixed), (samples.dtype, samples.shape[1:])


def _segments(session: Session, fields: Fields, counters: dict[str, Any], end: int) -> deque[tuple[int, int]]:
    """(latent where a segment ends, its last true sample), in order, within the sound."""
    pairs, before = fields.pairs("segments"), 0
    for latent, last in pairs:
        a, b = (session._sound.sample_of(TEMPORAL * i) for i in (latent - 1, latent))
        ok = before < latent and a < last <= b <= end
        fields.require(ok, "segments", f"ends in order and within {end} samples", pairs)
        before = latent
    return deque(pairs)


def _cache_rows(session: Session, fields: Fields, counters: dict[str, Any]) -> dict[int, Any]:
    """Contents of the session's rows. What no step reads before it is written may be anything."""
    cache, rows = session._cache, _rows(session)
    most = counters["_noise_index"] // session._chunk + session.model.config.stream.context_chunks
    committed = fields.array("committed", int)
    same = len(committed) == len(rows) and len(set(committed)) == 1 and 0 <= committed[0] <= most
    fields.require(same, "committed", f"one number from 0 to {most}, {len(rows)} times", committed)
    held = cache.held(committed[0])
    contents = {}
    for row in rows:
        pair = []
        for letter, pool in (("k", cache.k), ("v", cache.v)):
            tensor = fields.shaped(f"{letter}.{row}", tuple(pool[:, row].shape), pool.dtype)
            fields.finite(f"{letter}.{row}", tensor[:, :, held])
            pair.append(tensor.to(session.model.device))
        contents[row] = (*pair, committed[0])
    return contents
