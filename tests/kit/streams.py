"""Play a stream to its end; compare two streams bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from rest_fast.streaming.snapshot import SessionState

Script = list[tuple[str, Any]]


def play(session, samples, cuts=(), end=True):
    """Push in pieces, taking blocks after each; all blocks."""
    blocks, start = [], 0
    for cut in [*cuts, len(samples)]:
        session.push_audio(samples[start:cut])
        blocks += session.blocks()
        start = cut
    if end:
        session.end_segment()
    return blocks + list(session.blocks())


def alone(model, avatar, samples, **options):
    """What a session of its own shows of a sound."""
    with model.session(avatar, **options) as session:
        return play(session, samples)


def same(a, b):
    """Bit equality of two lists of blocks, every field."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x.video, y.video)
        assert np.array_equal(x.audio, y.audio)
        for field in ("pts", "duration", "epoch", "segment", "idle", "segment_end", "true_samples", "degraded"):
            assert getattr(x, field) == getattr(y, field)


def perform(script: Script, open_session, **options) -> list:
    """The blocks of a script of ("push", samples), ("end", None), ("take", count or None for all), ("idle", count),
    ("interrupt", None, or how many latents back) and ("move", None): a snapshot, continued in another session.

    Where the stream goes on after an interrupt stands among the blocks. ``open_session(**options)`` gives what has a
    session's calls.
    """
    session, blocks, shown = open_session(**options), [], 0.0  # shown: pts behind the latest block
    for step, value in script:
        if step == "push":
            session.push_audio(value)
        elif step == "end":
            session.end_segment()
        elif step in ("take", "idle"):
            taken = list(itertools.islice(session.blocks(idle=step == "idle"), value))
            blocks += taken
            shown = taken[-1].pts + 0.32 if taken else shown
        elif step == "interrupt":
            shown = session.interrupt(None if value is None else shown - 0.32 * value)
            blocks.append(f"goes on at {shown:.2f}")
        elif hasattr(session, "snapshot"):
            state, session = session.snapshot().to_bytes(), open_session(**options)
            session.restore(SessionState.from_bytes(state))
    return blocks
