"""One whole denoising evaluation of several lanes: all layers, guidance and the Euler step, ours and as peers run it.

On the CPU the demo's configuration, where each call has the lanes of one session; on a GPU rest-512, where all sessions
share a call. Weights are random, the window is full. *Ours* is the step as sessions run it: plain calls on the CPU, a
captured graph on a GPU, where *eager* is the same without the graph. *Reference* is ours with the reference of every
op. Peers (``peers.py``): the dearest and the cheapest cache in eager PyTorch; the cheapest by torch.compile, one graph
for all layers, without the time to compile; on a GPU that one captured as well. Constants of a chunk and of a noise
level are ready for all; the commit, once a chunk, is no part of an evaluation.

Where the time of ours goes is measured in calls of their own: on the CPU by a clock around each function, on a GPU by
the profiler, from the kernels of the graph. *The rest* is what no part has: gathered vectors and latents, projections
of latents where they are no linear layer's, guidance, Python. ``host_us`` is what the host does before an evaluation is
launched: checks, integers, and their copy.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import bench_block, kit, peers
from benchmarks.bench_block import Clock, Parts
from benchmarks.kit import DTYPES
from rest_fast import ops, preset
from rest_fast.config import ModelConfig
from rest_fast.models import cross_attention, dit_block
from rest_fast.models.dit import PositionwiseLinear, StreamingDiT
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.graphs import Capture, Graphs, graphs_of
from rest_fast.streaming.sampler import noise_levels
from rest_fast.streaming.step import Branches, Step, Turn

GPU = kit.device().type == "cuda"
PRESET, PRECISION, LANES = ("rest-512", "bf16", (2, 4, 8, 16)) if GPU else ("demo", "fp32", (1, 2, 4))
STYLES = ("roll", "write")
COMPILED = "write, compiled"
REPLAYS = 5  # under the profiler
CALLS = 200  # of the host's part
PARTS: Parts = {
    "linear": [
        (F, "linear"),
        (dit_block, "linear"),  # with the GELU inside
        (cross_attention, "linear"),
        (PositionwiseLinear, "forward"),
    ],
    "attention": [(ops, "sink_ring_attention"), (ops, "frame_cross_attention")],
    "audio update": [(ops, "frame_audio_update")],
    "norm, modulate, gate": [(ops, "gate_norm_modulate"), (F, "layer_norm")],
    "q and k norm, rotation, cache": [(ops, "qk_norm_rope_cache")],
    "gelu": [(F, "gelu")],
}
KERNELS = {  # of the same parts: what their names on a GPU contain; the first that fits
    "audio update": "^update_kernel",
    "q and k norm, rotation, cache": "qk_norm_rope_cache",
    "norm, modulate, gate": "gate_norm_modulate|layer_norm",
    "attention": "sink_ring_attention|^combine_kernel|^few_keys|^many_keys|^norm_kernel|flash|fmha|attention|sdpa",
    "gelu": "gelu",
    "linear": "gemm|gemv|nvjet|cutlass|cublas|splitk",
}


class Run(NamedTuple):
    """A variant: what it does, and the latents [S, N, C] that it moves."""

    call: Callable[[], Any]
    z: torch.Tensor


@functools.cache
def model(name: str, dtype: torch.dtype) -> tuple[ModelConfig, StreamingDiT]:
    torch.manual_seed(0)
    config = preset(name)
    dit = StreamingDiT(config).to(kit.device(), dtype).eval().requires_grad_(False)
    return config, bench_block.randomise(dit)


class Case:
    """Sessions at the second step of a chunk, with a full window: two lanes each, or the only one without guidance.

    ``together``: whether they share one call.
    """

    def __init__(self, name: str, lanes: int, dtype: torch.dtype, together: bool = GPU):
        self.config, self.dit = model(name, dtype)
        torch.manual_seed(lanes)
        config, device, count = self.config, kit.device(), max(1, lanes // 2)
        self.lanes, self.dtype, self.levels = lanes, dtype, noise_levels(config.sampling)
        self.cache = bench_block.steady(IDContextCache(config, lanes, dtype=dtype, device=device))
        self.dt, self.guidance = self.levels[2] - self.levels[1], config.sampling.guidance if lanes > 1 else 1.0
        sessions = [Branches(s, count + s if lanes > 1 else None, s) for s in range(count)]
        self.turns = [Turn(session, 1, 0, self.dt, self.guidance) for session in sessions]
        self.calls = [self.turns] if together else [[turn] for turn in self.turns]
        frames, audio = config.stream.chunk, (config.speech.tokens, config.speech.width)
        self.z = torch.randn(count, frames * config.tokens, self.dit.channels).to(device)
        self.codes = torch.randn(count, frames, *audio).to(device, dtype)
        self.known = [self._known(turns) for turns in self.calls]

    def step(self) -> Step:
        made = Step(self.dit, self.cache, self.levels, slots=len(self.z), lanes=self.lanes, hearing=len(self.z))
        for slot in range(len(self.z)):
            made.load(slot, self.z[slot : slot + 1], self.codes[slot : slot + 1])
        return made

    def _known(self, turns: list[Turn]) -> peers.Known:
        """Constants and windows of one call for the peers."""
        dit, slots = self.dit, [turn.session.slot for turn in turns]
        rows = slots + [turn.session.uncond for turn in turns if turn.session.uncond is not None]
        codes = torch.cat([self.codes[slots], self.codes.new_zeros(len(rows) - len(slots), *self.codes.shape[1:])])
        t = torch.full((len(rows), codes.shape[1]), self.levels[1], device=codes.device)
        six, embedded = dit.time(t)
        final = (dit.table + embedded[..., None, :]).permute(2, 0, 1, 3)
        first = dit.positions.base(2)
        tables = peers.pair_tables(dit.positions.tokens_at(torch.arange(first, first + codes.shape[1])))
        layers = range(len(dit.blocks))
        windows = {style: [bench_block.window(self.cache, style, i, rows) for i in layers] for style in STYLES}
        audio = [None if block.audio is None else block.audio.keys_values(codes) for block in dit.blocks]
        return peers.Known(six, final, tables, windows, dit.text_kv(), audio)

    def ours(self, step: Step, *calls: list[Turn], backend: str | None = None) -> Run:
        def call() -> None:
            with ops.use_backend(backend):
                step.run(*calls or self.calls)

        return Run(call, step.z[: len(self.z)])

    def peer(self, style: str, function: Callable[..., torch.Tensor] = peers.block) -> Run:
        return self._peer(self.dit, self.z.clone(), self.known, style, function)

    def exact(self) -> torch.Tensor:
        """The velocity, one precision up: float64 for fp32, fp32 for the rest."""
        wide = torch.float64 if self.dtype == torch.float32 else torch.float32
        known, z = [one.to(wide, "write") for one in self.known], self.z.to(wide, copy=True)
        self._peer(copy.deepcopy(self.dit).to(wide), z, known, "write").call()
        return (z - self.z) / self.dt

    def _peer(self, dit: StreamingDiT, z: torch.Tensor, known: list[peers.Known], style: str, *function: Any) -> Run:
        def call() -> None:
            for part, one in zip(z.chunk(len(known)), known, strict=True):
                peers.step(dit, part, one, style, self.guidance, self.dt, *function)

        return Run(call, z)

    def velocity(self, run: Run) -> torch.Tensor:
        """What a variant computes; windows that it rolls are put back, so that the next meets the same keys."""
        rolled = [t for one in self.known for window in one.windows["roll"] for t in (window.k, window.v)]
        kept = [t.clone() for t in rolled]
        run.z.copy_(self.z)
        run.call()
        for window, before in zip(rolled, kept, strict=True):
            window.copy_(before)
        return ((run.z - self.z) / self.dt).to(self.dtype)

    def check(self, runs: dict[str, Run]) -> None:
        """The gate: the peer's rounding errors grow with the layers, nobody's are more than twice as large."""
        results = {name: [self.velocity(run)] for name, run in runs.items()}
        kit.gate(results, [self.exact()], "write", units=8 + 2 * len(self.dit.blocks), times=2)


def variants(case: Case, compiler: Callable | None = kit.compiled, graphs: Graphs | None = None) -> dict[str, Run]:
    step = eager = case.step()
    runs = {"ours": case.ours(step)}
    if graphs is not None:
        step.capture(graphs("denoising step"))
        eager = case.step()
        runs["eager"] = case.ours(eager)
    elif len(case.calls) > 1:
        runs["ours, one call"] = case.ours(step, case.turns)
    runs["reference"] = case.ours(eager, backend="reference")
    runs |= {style: case.peer(style) for style in STYLES}
    if compiler is not None:
        runs[COMPILED] = run = case.peer("write", compiler(peers.block))
        if graphs is not None:
            runs[f"{COMPILED}, captured"] = captured(graphs("compiled peer"), run)
    return runs


def captured(graph: Capture, run: Run) -> Run:
    """A variant as a graph, which is recorded when it is first called; that moves the latents, which are put back."""

    @functools.cache
    def replay() -> Callable[[], None]:
        before = run.z.clone()
        recorded = graph(run.call)
        run.z.copy_(before)
        return recorded

    return Run(lambda: replay()(), run.z)


# -- inside


def by_clock(call: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of each part, the whole and the rest: medians of calls with clocks inside."""
    clock, found = Clock(PARTS, glue=False), []
    kit.interleaved({"ours": lambda i: found.append(clock.split(call))})
    for split in found:
        split["rest"] = split["whole"] - sum(split[part] for part in PARTS)
    return rounded({part: float(np.median([split[part] for split in found])) for part in ("whole", *PARTS, "rest")})


def by_profiler(call: Callable[[], Any]) -> dict[str, float]:
    """Microseconds that a GPU spends on each part: from the profiler, the kernels of replays."""
    kinds = torch.profiler.ProfilerActivity
    call()
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        for _ in range(REPLAYS):
            call()
        torch.cuda.synchronize()
    on_gpu = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return by_kernel([(e.name, e.time_range.elapsed_us() / REPLAYS) for e in on_gpu])


def by_kernel(spans: list[tuple[str, float]]) -> dict[str, float]:
    """Kernels and their times, by part; ``whole`` is their sum."""
    found = dict.fromkeys((*PARTS, "rest"), 0.0)
    for name, us in spans:
        fitting = (part for part, words in KERNELS.items() if re.search(words, name, re.IGNORECASE))
        found[next(fitting, "rest")] += us
    return rounded({"whole": sum(found.values()), **found})


def rounded(parts: dict[str, float]) -> dict[str, float]:
    return {part: round(us, 1) for part, us in parts.items()}


def host_us(step: Step, calls: list[list[Turn]], graph: bool) -> float:
    """Median microseconds of the host's own part of an evaluation."""
    now, times = kit.host_clock(), []
    for _ in range(CALLS):
        start = now()
        for turns in calls:
            step._check(turns)
            step.inputs[0].fill(step._entries(turns, captured=graph))
        times.append((now() - start) / 1e3)
    return round(float(np.median(times)), 1)


@pytest.mark.parametrize("lanes", LANES, ids=[f"lanes{lanes}" for lanes in LANES])
@torch.no_grad()
def test_step(benchmark, lanes):
    case, graphs = Case(PRESET, lanes, DTYPES[PRECISION]), graphs_of("auto", kit.device())
    runs = variants(case, graphs=graphs)
    with torch._dynamo.config.patch(error_on_recompile=True):  # one graph for all layers, or none
        left_out = kit.without_failures(runs, [name for name in runs if COMPILED in name], case.velocity)
    case.check(runs)
    calls = {name: (lambda i, run=run: run.call()) for name, run in runs.items()}
    times = kit.interleaved(calls, budget=10)
    config, inside = case.config, (by_profiler if graphs else by_clock)(runs["ours"].call)
    shape = {"lanes": lanes, "calls": len(case.calls), "layers": config.dit.layers, "width": config.dit.width}
    shape |= {"tokens": case.z.shape[1], "slots": case.cache.slots}
    about = {"preset": PRESET, "dtype": PRECISION, "shape": shape, "left_out": left_out, "inside_us": inside}
    about["host_us"] = host_us(case.step(), case.calls, graphs is not None)
    kit.store(benchmark, times, "ours", calls["ours"], **about)
