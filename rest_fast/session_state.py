"""A live session as data: tensors and a few integers, to continue elsewhere bit-equal."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from rest_fast.models.vae import StreamState

if TYPE_CHECKING:
    from rest_fast.session import Latent, Session

_COUNTERS = ("_noise_index", "_next", "_decoded", "_delivered", "_stale_context", "epoch")


class StateError(ValueError):
    """A snapshot that does not fit the session, or bytes that are none."""


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
        except (SafetensorError, KeyError, ValueError) as e:
            raise StateError(f"restore: expected the bytes of a session snapshot, got something else ({e})") from None
        return cls(tensors, meta)


def identity(session: Session) -> dict[str, Any]:
    """What two sessions must share for a snapshot of one to fit the other."""
    face = hashlib.sha256(session.avatar.reference.cpu().contiguous().numpy().tobytes()).hexdigest()
    return {
        "model": session.model.fingerprint,
        "avatar": face,
        "seed": session.seed,
        "sample_rate": session._sound.rate,
        "sampling": repr(session.sampling),
    }


def capture(session: Session) -> SessionState:
    tensors: dict[str, torch.Tensor] = {}
    rows = [r for r in (session._branches.cond, session._branches.uncond) if r is not None]
    committed = []
    for row in rows:
        tensors[f"k.{row}"], tensors[f"v.{row}"], count = session._cache.snapshot(row)
        committed.append(count)
    for name, latents in (("pending", session._pending), ("history", session._history)):
        for i, latent in enumerate(latents):
            tensors[f"{name}.{i}.z"], tensors[f"{name}.{i}.code"] = latent.z.clone(), latent.code.clone()
    for i, state in enumerate(session._states):
        tensors |= {f"decoder.{i}.{path}": h.clone() for path, h in state.to_tensors().items()}
    sound = session._sound
    tensors["sound"] = torch.from_numpy(sound.raw(sound.start, sound.end).copy())
    meta = {
        "identity": identity(session),
        "committed": committed,
        "segments": list(session._segments),
        "idle": {n: [x.idle for x in q] for n, q in (("pending", session._pending), ("history", session._history))},
        "states": len(session._states),
        "sound_start": sound.start,
        "sound_fixed": sound.fixed,
    }
    return SessionState(tensors, meta | {name: getattr(session, name) for name in _COUNTERS})


def apply(session: Session, state: SessionState) -> None:
    from rest_fast.session import Latent

    t, meta = state.tensors, state.meta
    here, there = identity(session), meta.get("identity")
    if here != there:
        other = {k: v for k, v in (there or {}).items() if here.get(k) != v}
        raise StateError(f"restore: expected a snapshot of this session's {', '.join(here)}, got one with {other}")
    device = session.model.device

    def latents(name: str) -> list[Latent]:
        idle = meta["idle"][name]
        return [
            Latent(t[f"{name}.{i}.z"].to(device), t[f"{name}.{i}.code"].to(device), on) for i, on in enumerate(idle)
        ]

    rows = [r for r in (session._branches.cond, session._branches.uncond) if r is not None]
    for row, count in zip(rows, meta["committed"], strict=True):
        session._cache.restore(row, (t[f"k.{row}"].to(device), t[f"v.{row}"].to(device), count))
    session._pending = deque(latents("pending"))
    session._history = deque(latents("history"), maxlen=session._history.maxlen)
    session._segments = deque((end, last) for end, last in meta["segments"])
    session._states = deque(
        (_decoder_state(t, i, device) for i in range(meta["states"])), maxlen=session._states.maxlen
    )
    session._decoder.restore(session._states[-1])
    session._sound = type(session._sound)(session._sound.rate)
    sound = session._sound
    sound.data, sound.start, sound.fixed = t["sound"].numpy().copy(), meta["sound_start"], meta["sound_fixed"]
    session._format = (np.dtype(sound.data.dtype), sound.data.shape[1:]) if sound.fixed else None
    session._inbox.clear()
    for name in _COUNTERS:
        setattr(session, name, meta[name])


def _decoder_state(tensors: dict[str, torch.Tensor], index: int, device: torch.device) -> StreamState:
    prefix = f"decoder.{index}."
    return StreamState.from_tensors(
        {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}
    )
