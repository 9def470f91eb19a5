"""An hour of one stream, and five minutes where time is short: nothing grows or drifts, no sample is lost."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import rest_fast
from rest_fast.evaluation.streams import own_memory
from rest_fast.files import DEMO
from tests.kit.toys import photo, toy

RATE = 16000
CHUNK = 15360  # samples


def numbered(first: int, count: int) -> np.ndarray:
    """int16 [count] that tells one place of the hour from another: a prime's period, quiet enough to be speech."""
    return ((np.arange(first, first + count, dtype=np.int64) * 7919) % 4093 - 2046).astype(np.int16)


LOOKS = 36  # at the memory
CASES = [("toy", 300), *(pytest.param(kind, 3600, marks=pytest.mark.slow) for kind in ("toy", "demo"))]


@pytest.mark.parametrize("kind, seconds", CASES)
def test_a_long_stream(kind, seconds):
    model = toy() if kind == "toy" else rest_fast.load("demo", device="cpu")
    avatar = model.prepare(photo() if kind == "toy" else DEMO / "portrait.png", crop="center")
    options = {"steps": 1, "guidance": 1.0} if kind == "toy" else {}
    memory, blocks, chunks = [], 0, seconds * RATE // CHUNK
    with model.engine(sessions=1, admission=False, **options) as engine, engine.session(avatar, seed=9) as session:
        session.push_audio(numbered(0, 4000))  # what the features look ahead
        for i in range(chunks):
            session.push_audio(numbered(4000 + CHUNK * i, CHUNK))
            for block in session.blocks():
                assert block.pts == pytest.approx(0.32 * blocks, abs=1e-6)
                assert np.array_equal(block.audio, numbered(5120 * blocks, 5120))
                blocks += 1
            if i % (chunks // LOOKS) == 0:
                gc.collect()
                memory += own_memory()
        session.interrupt()  # so late, its context is rebuilt from where it is
        session.push_audio(numbered(0, CHUNK))
        session.end_segment()
        last = list(session.blocks())
        assert [b.epoch for b in last] == [1] * 3 and last[0].pts == pytest.approx(0.32 * blocks, abs=1e-6)
        assert all(np.std(b.video) > 1 for b in last)
        report = session.metrics()
    assert blocks == 3 * chunks and report.blocks == blocks + 3 and report.queued == pytest.approx(0, abs=0.01)
    # Decoding takes up to 35 MB for a moment, and what is given back at once depends on the system: the least that was
    # held does not. What grows by 4.5 MB in all grows by 3 from the first third to the last.
    early, late = memory[1 : LOOKS // 3], memory[-LOOKS // 3 :]
    assert not memory or min(late) - min(early) < 3, memory
