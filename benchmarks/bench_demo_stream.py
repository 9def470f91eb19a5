"""End to end: sound in to uint8 frames out, the demo model on this machine; ways to sample take turns.

Every stage is inside: features, SpeechAE, all denoising steps of both guidance branches, VAE decode, uint8. The first
four chunks (filling the window, warm-up) are not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import rest_fast
from benchmarks import kit
from rest_fast.model import ASSETS
from rest_fast.streaming.session import Session

FRAMES = 24  # of a chunk: three latents
CHUNK = FRAMES * 640  # samples of one at 16 kHz
# Variant -> how the model is loaded, and how a session is opened.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "preset": ({}, {}),
    "no guidance": ({}, {"guidance": 1.0}),
    "preset, fp32": ({"dtype": torch.float32}, {}),
}


def chunk_of(session: Session, speech: np.ndarray) -> Callable[[int], None]:
    """One chunk of a stream that has its look-ahead, whichever copy is asked for: a stream has no copies."""
    session.push_audio(speech[: session.model.features.ahead])

    def call(_: int) -> None:
        session.push_audio(speech)
        frames = sum(len(block.video) for block in session.blocks())
        assert frames == FRAMES, frames

    return call


def test_demo_chunk(benchmark):
    speech = 0.1 * np.random.default_rng(0).standard_normal(CHUNK).astype(np.float32)
    sessions, calls = {}, {}
    for name, (load, options) in VARIANTS.items():
        model = rest_fast.load("demo", **load)
        sessions[name] = model.session(model.prepare(ASSETS / "demo" / "portrait.png"), **options)
        calls[name] = chunk_of(sessions[name], speech)
    times = kit.interleaved(calls, budget=25, least=20, most=60)
    stages = {name: session.metrics().as_dict()["stages"] for name, session in sessions.items()}
    kit.store(benchmark, times, "preset", calls["preset"], frames=FRAMES, stages=stages)
    for session in sessions.values():
        session.close()
