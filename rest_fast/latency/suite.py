"""The measures of ``rest-fast bench``, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rest_fast.avatar import Avatar
from rest_fast.latency import measures
from rest_fast.latency.measures import Options
from rest_fast.model import Model

PEERS = ("apart", "batched")
Steps = dict[str, Callable[[Model, Avatar, Options], Any]]


def quick(sessions: Sequence[int] = (1,), peers: bool = False) -> Steps:
    """Without waiting for a voice where it can be avoided; several sessions have all their sound."""
    ways = ("engine", *PEERS, "reference") if peers else ("engine",)
    served = ("engine", *PEERS) if peers else ("engine",)
    crowds = {
        f"chunk of {count} sessions, {way}": _with(measures.crowd, count, way)
        for count in sessions
        for way in served
        if count > 1
    }
    return {
        "memory of a session": measures.memory,
        "chunk, cold": measures.chunk_cold,
        "chunk, warm": _with(measures.chunk_warm, ways),
        "part": measures.parts,
        "interrupt to a new frame": measures.interrupt,
        "first frame": measures.first_frame,
        **crowds,
    }


def realtime(sessions: Sequence[int] = (1, 2, 4), peers: bool = False) -> Steps:
    """Viewers by number; a voice that begins in silence."""
    served = ("engine", *PEERS) if peers else ("engine",)
    watched = {f"{count} viewers, {way}": _with(measures.live, count, way) for count in sessions for way in served}
    return {"speech out of silence": measures.onset, **watched}


def run(
    steps: Steps,
    model: Model,
    avatar: Avatar,
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """What was measured by name; viewers are a list of their own."""
    found: dict[str, Any] = {}
    measures.chunk_cold(model, avatar, Options(rounds=1))  # what is only made once in a process
    for done, (name, measure) in enumerate(steps.items()):
        progress(done, len(steps))
        result = measure(model, avatar, options)
        if isinstance(result, dict) and "way" in result and "deadlines_met" in result:
            found.setdefault("viewers", []).append(result)
        else:
            found[name] = result
    progress(len(steps), len(steps))
    return found


def _with(measure: Callable[..., Any], *more: Any) -> Callable[[Model, Avatar, Options], Any]:
    return lambda model, avatar, options: measure(model, avatar, options, *more)
