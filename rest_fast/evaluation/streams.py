"""Minutes of one stream, with the sink and without it, and whether streaming equals one pass over a clip."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast.model import Model
from rest_fast.models.dit_block import Workspace
from rest_fast.models.vae import to_latents
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.metrics import Metrics
from rest_fast.training.synthetic.clips import generator
from rest_fast.training.synthetic.portraits import GEOMETRY, MOTION, Identity, draw, mouth_geometry, neutral
from rest_fast.training.synthetic.speech import utterance
from rest_fast.training.synthetic.visemes import MOUTH, mouth_track
from rest_fast.units import FRAME, RATE

Array = NDArray[Any]
FIRST_IDENTITY = 20_000  # clip of the split `test` whose person speaks first: none of those that were written as clips


@dataclass(frozen=True, eq=False)
class Talk:
    """A person of the split `test` who only speaks: ``photo`` uint8 [S, S, 3], ``samples`` [n] at 16 kHz, ``gap``
    [n / 640] of the true mouth in pixels of a 128 px picture."""

    photo: Array
    samples: Array
    gap: Array

    @classmethod
    def random(cls, index: int, seconds: int, size: int = 128) -> Talk:
        rng = generator("test", FIRST_IDENTITY + index)
        person = Identity.random(rng)
        said = utterance(rng, "test", seconds)
        frames = len(said.samples) // FRAME
        motion = np.zeros((frames, len(MOTION)), np.float32)
        motion[:, [MOTION.index(name) for name in MOUTH]] = mouth_track(said.phonemes, said.samples, frames)
        gap = mouth_geometry(person, motion)[:, GEOMETRY.index("gap")]
        return cls(draw(person, neutral(), size)[0], said.samples, gap)


@dataclass(frozen=True)
class Playback:
    """What one session took of the machine."""

    memory_mb: list[float]  # after each second; empty where the system does not tell
    metrics: Metrics  # of the session

    @property
    def memory_growth_mb(self) -> float:
        """From second 10 to the highest later point."""
        return max(self.memory_mb[9:]) - self.memory_mb[9] if len(self.memory_mb) > 9 else float("nan")

    @property
    def chunk_ms(self) -> float:
        """Median time of a chunk: features, denoising and the decoding of its latents."""
        return sum(self.metrics.stages[name].p50_ms for name in ("features", "denoise", "decode"))


def play(model: Model, photo: Array, samples: Array, *, seed: int = 0) -> Playback:
    """A session that gets its sound [n] at 16 kHz second by second; no video is kept."""
    memory: list[float] = []
    # "center": a face finder would cut another square than the one whose mouth is known
    with model.session(model.prepare(photo, crop="center"), seed=seed) as session:
        for start in range(0, len(samples), RATE):
            session.push_audio(samples[start : start + RATE])
            if start + RATE >= len(samples):
                session.end_segment()
            for _ in session.blocks():
                pass
            memory += own_memory()
        return Playback(memory, session.metrics())


def own_memory() -> list[float]:
    """[MB that this process itself holds], mapped files not counted; [] where /proc does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return [int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")]


@contextlib.contextmanager
def no_sink(model: Model) -> Iterator[None]:
    """Inside, the reference is an ordinary first context: a stream's first chunk sees it, later chunks do not.

    An ablation at inference: the weights were trained with the sink.
    """
    config, _ = model.config, model.fingerprint  # that of the model as it is, which avatars belong to
    model.config = config.replace(stream__sink=False)
    model.dit.stream = model.config.stream
    try:
        yield
    finally:
        model.config, model.dit.stream = config, config.stream


@torch.no_grad()
def streaming_error(model: Model, chunks: int = 4, seed: int = 0) -> float:
    """Largest difference of velocities: steps through the cache, and one masked pass over the whole clip."""
    config, dit, g = model.config, model.dit, torch.Generator().manual_seed(seed)
    speech, chunk, tokens = config.speech, config.stream.chunk, config.tokens
    frames = 1 + chunks * chunk
    z = torch.randn(1, frames * tokens, config.vae.latent_channels, generator=g).to(dit.table)
    t = torch.rand(1, frames, generator=g).to(dit.table)
    codes = torch.randn(1, frames, speech.tokens, speech.width, generator=g).to(dit.table)
    t[:, 0], codes[:, 0] = 0, 0
    whole = dit(z, t, codes, "streaming")
    cache = IDContextCache(config, 1, dtype=model.dtype, device=model.device)
    cache.open(0, *model.sink(z[:, :tokens]))
    worst = 0.0
    for first in range(1, frames, chunk):
        now, here = slice(first, first + chunk), slice(first * tokens, (first + chunk) * tokens)
        work = Workspace(1, chunk * tokens, config.dit, dit.table)
        lanes, mod = cache.lanes([0]), dit.modulation(t[:, now])
        v = dit.step(z[:, here], mod, lanes, work, model.text, dit.hear(codes[:, now]))
        cache.commit([0])
        worst = max(worst, float((v - whole[:, here]).abs().max()))
    return worst


@torch.no_grad()
def decoding_error(model: Model, photo: Array, count: int = 6, seed: int = 0) -> float:
    """Largest difference of pixels in -1..1: latents decoded one by one, and all at once, behind a photo [H, W, 3].

    In the dtype of the weights: how a lower one rounds depends on the size of a piece.
    """
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, count * model.config.tokens, model.config.vae.latent_channels, generator=g)
    z = to_latents(tokens.to(model.device, model.dtype), model.config.grid)
    pieces, whole = (model.vae.stream(reference=model.pixels(photo)) for _ in range(2))
    pieces.dtype = whole.dtype = None
    return float((torch.cat([pieces.decode(piece) for piece in z.split(1, 2)], 2) - whole.decode(z)).abs().max())
