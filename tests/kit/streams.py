"""Play a stream to its end; compare two streams bit for bit."""

from __future__ import annotations

import numpy as np


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


def same(a, b):
    """Bit equality of two lists of blocks, every field."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x.video, y.video)
        assert np.array_equal(x.audio, y.audio)
        for field in ("pts", "epoch", "idle", "segment_end", "true_samples", "degraded"):
            assert getattr(x, field) == getattr(y, field)
