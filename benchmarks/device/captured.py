"""A step of the whole DiT of ``rest-512`` in a CUDA graph, with random weights: the same bits as eager, and how fast.

A rehearsal without a GPU repeats the calls in place of a graph, with the preset ``toy``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import kit
from rest_fast import preset
from rest_fast.config import ModelConfig
from rest_fast.models.dit import StreamingDiT
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.graphs import Capture, CudaGraphs
from rest_fast.streaming.sampler import ChunkSampler, noise_levels
from rest_fast.streaming.step import Branches, Step

SESSIONS = 2  # guided, so twice as many lanes
CHUNKS = 3  # the window is full, and keys have been turned
Latents = list[torch.Tensor]  # of each session, [1, N, C]


def jobs(tiny: bool) -> dict[str, Any]:
    """The bits come first; a capture that fails may take the device with it, so eager times come before those."""
    found: dict[str, Any] = {"eager times": functools.partial(eager_times, tiny)}
    found["bits"] = functools.partial(bits, tiny)
    for lanes in (2, 4) if tiny else (2, 4, 8, 16):
        found[f"times, {lanes} lanes"] = functools.partial(times, tiny, lanes)
    return found | {"kernels": functools.partial(kernels, tiny)}


class Pool:
    """Guided sessions in one step, each in the middle of a stream: noise and codes of a chunk are random."""

    def __init__(self, tiny: bool, sessions: int, *, captured: bool = True, chunk: bool = False):
        self.config, self.device = config_of(tiny), kit.device()
        self.dit, dtype = model_of(tiny)
        rows = 2 * sessions
        self.cache = IDContextCache(self.config, rows, dtype=dtype, device=self.device)
        self.sessions = [Branches(i, sessions + i, i) for i in range(sessions)]
        levels = noise_levels(self.config.sampling)
        self.step = Step(self.dit, self.cache, levels, slots=sessions, lanes=rows, hearing=sessions)
        self.sampler = ChunkSampler(self.step, self.config.sampling)
        if captured:
            self.step.capture(graph_of(self.device), evaluations=len(self.evaluations()) if chunk else 0)
        self.generator = torch.Generator(self.device).manual_seed(0)
        for row in range(rows):
            sink = (self.config.dit.layers, self.config.tokens, self.config.dit.heads, self.config.dit.head_dim)
            self.cache.open(row, *(self.normal(*sink).to(dtype) for _ in range(2)))

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def load(self) -> None:
        speech, frames = self.config.speech, self.config.stream.chunk
        for session in self.sessions:
            noise = self.normal(1, frames * self.config.tokens, self.config.vae.latent_channels)
            self.step.load(session.slot, noise, self.normal(1, frames, speech.tokens, speech.width))

    def evaluations(self, order: Callable[[list[Branches]], list[Branches]] = list) -> list[list[Any]]:
        return self.sampler.evaluations(order(self.sessions))

    def chunks(
        self, order: Callable[[list[Branches]], list[Branches]] = list, poisoned: bool = False, at_once: bool = False
    ) -> Latents:
        """Latents after :data:`CHUNKS` chunks of all sessions that ``order`` names, in those lanes."""
        for _ in range(CHUNKS):
            self.load()
            evaluations = self.evaluations(order)
            for turns in [evaluations] if at_once else [[turn] for turn in evaluations]:
                if poisoned:
                    self.poison()
                self.step.run(*turns)
            self.step.commit([row for session in order(self.sessions) for row in session.rows])
        return [self.step.latents(session.slot) for session in self.sessions]

    def poison(self) -> None:
        work = self.step.work
        for buffer in (work.x, work.y, work.q, work.out):
            buffer.fill_(torch.nan)


def bits(tiny: bool) -> dict[str, Any]:
    """What a captured step computes, against the eager one and against itself in other company. Fails on a difference.

    "alone" and "other lanes" ask whether a library chooses another algorithm for other lanes of the same product.
    """
    want = Pool(tiny, SESSIONS, captured=False).chunks()
    pool = Pool(tiny, SESSIONS)
    found = {
        "graph": pool.chunks(),
        "a chunk at once": Pool(tiny, SESSIONS, chunk=True).chunks(at_once=True),
        "again": Pool(tiny, SESSIONS).chunks(),
        "poisoned buffers": Pool(tiny, SESSIONS).chunks(poisoned=True),
        "other lanes": Pool(tiny, SESSIONS).chunks(lambda sessions: sessions[::-1]),
        "alone": Pool(tiny, SESSIONS).chunks(lambda sessions: sessions[:1])[:1],
    }
    off = {name: max(float((a - b).abs().max()) for a, b in zip(got, want)) for name, got in found.items()}
    differ = {name: error for name, error in off.items() if error != 0}
    assert all(torch.isfinite(z).all() for z in want), "expected finite latents"
    assert not differ, f"expected the bits of eager calls, largest differences: {differ}"
    return {"largest_difference": off, "chunks": CHUNKS}


def eager_times(tiny: bool) -> dict[str, Any]:
    """Microseconds of an evaluation of one guided session as plain calls, where a slow host counts."""
    pool = Pool(tiny, 1, captured=False)
    pool.chunks()
    return report(pool, {"evaluation": lambda: pool.step.run(pool.evaluations()[0])})


def times(tiny: bool, lanes: int) -> dict[str, Any]:
    """Microseconds of an evaluation in a graph, and of a chunk: all its evaluations in one graph, and its commit."""
    pool = Pool(tiny, lanes // 2, chunk=True)
    pool.chunks()
    evaluations = pool.evaluations()
    rows = [row for session in pool.sessions for row in session.rows]

    def chunk() -> None:
        pool.step.run(*evaluations)
        pool.step.commit(rows)

    runs = {"evaluation": lambda: pool.step.run(evaluations[0]), "chunk": chunk}
    return report(pool, runs) | {"lanes": lanes, "evaluations": len(evaluations)}


def kernels(tiny: bool) -> dict[str, Any]:
    """The kernels of one replay by the time that they take."""
    pool = Pool(tiny, 1)
    pool.chunks()
    turns = pool.evaluations()[0]
    cuda = pool.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        pool.step.run(turns)
        if cuda:
            torch.cuda.synchronize()
    rows = [(e.key[:100], e.count, e.self_device_time_total if cuda else e.self_cpu_time_total)
            for e in profile.key_averages()]  # fmt: skip
    rows.sort(key=lambda row: -row[2])
    return {"kernels": [{"name": n, "calls": c, "us": round(us, 1)} for n, c, us in rows[:25]], "of": len(rows)}


def report(pool: Pool, runs: dict[str, Callable[[], None]]) -> dict[str, Any]:
    calls = {name: (lambda i, run=run: run()) for name, run in runs.items()}
    few = pool.device.type == "cpu"
    found = kit.report(kit.interleaved(calls, budget=0.05 if few else 2.0, least=2 if few else 15), next(iter(calls)))
    if pool.device.type == "cuda":
        found["allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


def config_of(tiny: bool) -> ModelConfig:
    return preset("toy" if tiny else "rest-512")


@functools.cache
def model_of(tiny: bool) -> tuple[StreamingDiT, torch.dtype]:
    """Random weights that do something in every part, made on the device."""
    device, dtype = kit.device(), torch.float32 if tiny else torch.bfloat16
    with torch.device(device):
        dit = StreamingDiT(config_of(tiny))
    generator = torch.Generator(device).manual_seed(0)
    for parameter in dit.parameters():
        deviation = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data.normal_(0, deviation, generator=generator)
    return dit.to(device, dtype).eval().requires_grad_(False), dtype


def graph_of(device: torch.device) -> Capture:
    return CudaGraphs(device, "denoising step") if device.type == "cuda" else repeated


def repeated(work: Callable[[], None]) -> Callable[[], None]:
    """In place of a graph, where there are none."""
    work()
    return work
