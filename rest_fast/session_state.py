"""A live session as data: tensors and a few integers, to continue elsewhere bit-equal."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from rest_fast.block import Latent
from rest_fast.errors import StateError as StateError
from rest_fast.sound import SoundTimeline

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
        except (SafetensorError, KeyError, ValueError) as e:
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
    rows = [r for r in (session._branches.cond, session._branches.uncond) if r is not None]
    committed = []
    for row in rows:
        tensors[f"k.{row}"], tensors[f"v.{row}"], count = session._cache.snapshot(row)
        committed.append(count)
    for name, latents in (("pending", session._pending), ("history", session._history)):
        for i, latent in enumerate(latents):
            tensors[f"{name}.{i}.z"], tensors[f"{name}.{i}.code"] = latent.z.clone(), latent.code.clone()
    tensors |= {f"decoder.{name}": tensor for name, tensor in session._decoder.to_tensors().items()}
    sound = session._sound
    tensors["sound"] = torch.from_numpy(sound.raw(sound.start, sound.end).copy())
    meta = {
        "identity": identity(session),
        "committed": committed,
        "segments": list(session._segments),
        "idle": {n: [x.idle for x in q] for n, q in (("pending", session._pending), ("history", session._history))},
        "sound_start": sound.start,
        "sound_fixed": sound.fixed,
    }
    return SessionState(tensors, meta | {name: getattr(session, name) for name in _COUNTERS})


def apply(session: Session, state: SessionState) -> None:
    """Build all parts first, then put them in: a state that does not fit leaves the session as it was."""
    here, there = identity(session), state.meta.get("identity") or {}
    if here != there:
        other = {k: there.get(k) for k in here if here[k] != there.get(k)}
        raise StateError(f"restore: expected a snapshot of this session's {', '.join(here)}, got one with {other}")
    try:
        parts, rows = _parts(session, state.tensors, state.meta)
        for row, content in rows.items():
            session._cache.restore(row, content)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        raise StateError(f"restore: expected a whole snapshot, got one without or with a wrong {e}") from None
    session._decoder.put(parts.pop("decoder"))
    for name, value in parts.items():
        setattr(session, name, value)
    session._ready = None
    session._inbox.clear()


def _parts(session: Session, t: dict[str, torch.Tensor], meta: dict[str, Any]) -> tuple[dict[str, Any], dict[int, Any]]:
    """(attributes of a session, contents of its cache rows) from a snapshot."""
    device = session.model.device

    def latents(name: str) -> list[Latent]:
        pairs = (
            (t[f"{name}.{i}.z"].to(device), t[f"{name}.{i}.code"].to(device)) for i in range(len(meta["idle"][name]))
        )
        return [Latent(*pair, idle) for pair, idle in zip(pairs, meta["idle"][name], strict=True)]

    sound = t["sound"].numpy().copy()
    decoder = {k.removeprefix("decoder."): v for k, v in t.items() if k.startswith("decoder.")}
    rows = [r for r in (session._branches.cond, session._branches.uncond) if r is not None]
    parts = {
        "_pending": deque(latents("pending")),
        "_history": deque(latents("history"), maxlen=session._history.maxlen),
        "_segments": deque((end, last) for end, last in meta["segments"]),
        "decoder": session._decoder.read(decoder),
        "_sound": SoundTimeline.restore(session._sound.rate, meta["sound_start"], sound, meta["sound_fixed"]),
        "_format": (sound.dtype, sound.shape[1:]) if meta["sound_fixed"] else None,
        **{name: meta[name] for name in _COUNTERS},
    }
    counts = zip(rows, meta["committed"], strict=True)
    return parts, {r: (t[f"k.{r}"].to(device), t[f"v.{r}"].to(device), n) for r, n in counts}
