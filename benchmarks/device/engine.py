"""Sessions of ``rest-512`` with random weights, from sound to frames on the host: one, and several at once.

Nothing is paced: a session's next chunk begins when its last one was taken. Times are those of the wall, and the device
is waited for at the end. One engine serves all jobs. A rehearsal without a GPU has the preset ``toy`` and few chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib.util
import time
from typing import Any

import numpy as np
import torch

from benchmarks import kit
from rest_fast import Model, preset
from rest_fast.avatar import Avatar
from rest_fast.config import ModelConfig
from rest_fast.latency.measures import WARM, percentiles
from rest_fast.latency.viewers import Feed
from rest_fast.streaming.engine import Engine
from rest_fast.units import RATE

SESSIONS = (1, 2, 4, 8, 16)
CHUNKS, EACH = 100, 20  # of one session, and of each of several
SECONDS, FEWER = 25.0, 8.0  # that a job of one session measures at most, and of several
LOGMEL = {"features": "logmel", "positions": 20, "channels": 80, "position_ms": 10, "history_ms": 160}


def jobs(tiny: bool) -> dict[str, Any]:
    counts = (1, 2, 4) if tiny else SESSIONS
    opened = functools.cache(lambda: serving(tiny))
    found = {f"{count} sessions": functools.partial(measured, opened, count, tiny) for count in counts}
    return found | {"memory": lambda: memory(opened()[0])}


def measured(opened: Any, count: int, tiny: bool) -> dict[str, Any]:
    engine, avatar, about = opened()
    chunks, limit = (3, 1.0) if tiny else (CHUNKS, SECONDS) if count == 1 else (EACH, FEWER)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(engine.session(avatar, seed=i)) for i in range(count)]
        times, took = asyncio.run(fed(sessions, chunks, limit))
    served = engine.metrics()
    return {
        **about,
        "sessions": count,
        "chunks": len(times),
        "chunk": percentiles(times),
        "chunks_per_second": round(len(times) / took, 3),
        "made_ms": round(served.chunk_ms, 3),  # on the host: launches, and waits for what was queued before
        "pieces": vars(served.pieces),
    }


async def fed(sessions: list[Any], chunks: int, limit: float) -> tuple[list[float], float]:
    """Seconds of each chunk, and of all of them together."""
    sound = 0.1 * np.random.default_rng(0).standard_normal(20 * RATE).astype(np.float32)
    feeds = [Feed(session, sound) for session in sessions]
    for _ in range(WARM):
        await asyncio.gather(*(feed.chunk() for feed in feeds))
    times: list[float] = []
    start = synchronised()

    async def one(feed: Feed) -> None:
        for _ in range(chunks):
            if times and time.monotonic() - start > limit:
                return
            times.append(await feed.chunk())

    await asyncio.gather(*map(one, feeds))
    took = synchronised() - start
    for feed in feeds:
        await feed.close()
    return times, took


def memory(engine: Engine) -> dict[str, Any]:
    """GiB with all places, after all sessions."""
    if kit.device().type != "cuda":
        return {"seats": engine.seats}
    peak, now = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    return {"seats": engine.seats, "peak_gib": round(peak / 2**30, 2), "allocated_gib": round(now / 2**30, 2)}


def serving(tiny: bool) -> tuple[Engine, Avatar, dict[str, Any]]:
    """An engine with places for all, an avatar, and what is not measured: seconds until both are there."""
    start = synchronised()
    model, features = random_model(tiny)
    config = model.config
    photo = np.random.default_rng(0).integers(0, 256, (config.height, config.width, 3), dtype=np.uint8)
    avatar, made = model.prepare(photo, crop="center"), synchronised()
    engine = model.engine(sessions=4 if tiny else max(SESSIONS), admission=False)
    about = {"model_seconds": made - start, "engine_seconds": synchronised() - made}
    return engine, avatar, {"features": features, "lanes": engine.lanes} | {k: round(v, 2) for k, v in about.items()}


def random_model(tiny: bool) -> tuple[Model, str]:
    """Made on the device; and what its features are: Whisper's where transformers is installed."""
    config, device = preset("toy" if tiny else "rest-512"), kit.device()
    whisper = random_whisper(config, device)
    if config.speech.features == "whisper" and whisper is None:
        config = dataclasses.replace(config, speech=dataclasses.replace(config.speech, **LOGMEL))
    with torch.device(device):
        model = Model(config, whisper=whisper)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        deviation = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(0, deviation, generator=generator)
    model = model.to(device, torch.float32 if tiny else torch.bfloat16).eval().requires_grad_(False)
    model.vae.pack()
    return model, config.speech.features


def random_whisper(config: ModelConfig, device: torch.device) -> Any:
    """A Whisper of the smallest size, whose hidden states a configuration asks for; None where there is none."""
    if config.speech.features != "whisper" or importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    with torch.device(device):
        return transformers.WhisperModel(transformers.WhisperConfig()).eval().requires_grad_(False)


def synchronised() -> float:
    """Now, when the device has done all that was queued."""
    if kit.device().type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()
