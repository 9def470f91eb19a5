"""End to end: sound in to uint8 frames out, the demo model on this machine.

Every stage is inside: features, SpeechAE, all denoising steps of both guidance branches, VAE decode, uint8. The first
four chunks (filling the window, warm-up) are not timed.
"""

from __future__ import annotations

import numpy as np
import pytest

import rest_fast
from rest_fast.model import ASSETS

CHUNK = 24 * 640  # samples of a chunk at 16 kHz


@pytest.mark.parametrize("guidance", [None, 1.0], ids=["preset", "no-guidance"])
def test_demo_chunk(benchmark, guidance):
    model = rest_fast.load("demo")
    avatar = model.prepare(ASSETS / "demo" / "portrait.png")
    speech = 0.1 * np.random.default_rng(0).standard_normal(CHUNK).astype(np.float32)
    with model.session(avatar, guidance=guidance) as session:

        def chunk():
            session.push_audio(speech)
            return sum(len(block.video) for block in session.blocks())

        session.push_audio(speech[: session.model.features.ahead])
        for _ in range(4):
            chunk()
        frames = benchmark.pedantic(chunk, rounds=20, iterations=1)
        assert frames == 24
        times = np.array(benchmark.stats.stats.data) * 1000
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        benchmark.extra_info.update(
            chunk_ms_p50=float(p50), chunk_ms_p95=float(p95), chunk_ms_p99=float(p99), real_time_factor=float(p50 / 960)
        )
        benchmark.extra_info["stages"] = session.metrics()["stages"]
