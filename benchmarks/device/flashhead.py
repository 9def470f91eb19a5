"""A chunk of SoulX-FlashHead with random weights, by stage: ours, eager and in graphs, and the published arithmetic.

Graphs must give the bits of eager calls. Then sessions of one engine, unpaced, from sound to frames on the host. A
rehearsal without a GPU has a narrow model of two blocks at 32 x 32, and calls are repeated in place of graphs.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from benchmarks import flashhead, kit
from benchmarks.device import engine
from benchmarks.device.captured import graph_of
from rest_fast.config.flashhead import FlashHeadConfig

SESSIONS = (1, 4, 8, 15)  # 15 is what docs/flashhead.md aims at
BUDGET = 2.0  # seconds of a stage


def jobs(tiny: bool) -> dict[str, Any]:
    """The bits come first; a capture that fails may take the device with it, so eager times come before those."""
    found: dict[str, Any] = {"eager": functools.partial(stages, tiny, captured=False)}
    found |= {"bits": functools.partial(bits, tiny), "captured": functools.partial(stages, tiny, captured=True)}
    opened = functools.cache(lambda: serving(tiny))
    counts = (1, 2) if tiny else SESSIONS
    return found | {f"{count} sessions": functools.partial(engine.measured, opened, count, tiny) for count in counts}


def config_of(tiny: bool) -> FlashHeadConfig:
    return flashhead.config_of(12, 32, layers=2) if tiny else flashhead.config_of(1, 512)


def stages(tiny: bool, *, captured: bool) -> dict[str, Any]:
    graphs = (lambda name: graph_of(kit.device())) if captured else None
    return flashhead.measured(config_of(tiny), 0.01 if tiny else BUDGET, graphs)


def bits(tiny: bool) -> dict[str, Any]:
    """Latents and pictures of a chunk in graphs against those of eager calls. Fails on a difference."""
    model, found = flashhead.random_model(config_of(tiny)), []
    for graphs in (None, lambda name: graph_of(kit.device())):
        chunk = flashhead.Chunk(model, graphs)
        pictures, frames = chunk.networks.show(chunk.latents, chunk.photo)
        motion = chunk.networks.encode(chunk.shown, chunk.posterior)[0]
        found.append([x.clone() for x in (chunk.evaluations(), pictures, frames, motion)])
    eager, captured = found
    off = [float((a.float() - b.float()).abs().max()) for a, b in zip(eager, captured, strict=True)]
    assert all(torch.isfinite(x.float()).all() for x in eager), "expected finite numbers"
    assert not any(off), f"expected the bits of eager calls, largest differences: {off}"
    return {"largest_difference": off}


def serving(tiny: bool) -> tuple[Any, Any, dict[str, Any]]:
    """An engine with places for all, an avatar, and what is not measured: seconds until both are there."""
    start = engine.synchronised()
    model = flashhead.random_model(config_of(tiny))
    photo = np.random.default_rng(0).integers(0, 256, (model.config.height, model.config.width, 3), dtype=np.uint8)
    avatar, made = model.prepare(photo, crop="center"), engine.synchronised()
    opened = model.engine(sessions=2 if tiny else max(SESSIONS), lanes=2 if tiny else 4, admission=False)
    about = {"model_seconds": round(made - start, 2), "engine_seconds": round(engine.synchronised() - made, 2)}
    return opened, avatar, {"lanes": opened.lanes} | about
