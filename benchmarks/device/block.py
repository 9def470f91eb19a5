"""One block of the DiT: ours eager and in a graph, peers' caches likewise, and torch.compile.

Peers clone, roll and concatenate their cache and attend by SDPA (``peers.py``). Compiling is bounded by the limit of
the step: the variants without a compiler come first, and each compiled one is a job of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import graphs, kit
from benchmarks.bench_block import Layer, Runs, check, variants
from rest_fast import preset

COMPILED = ("write", "roll")


def jobs(tiny: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"called": functools.partial(uncompiled, called, tiny)}
    found["in graphs"] = functools.partial(uncompiled, captured, tiny)
    return found | {f"{style}, compiled": functools.partial(compiled, style, tiny) for style in COMPILED}


def layer(tiny: bool) -> Layer:
    return Layer(preset("demo" if tiny else "rest-512"), torch.bfloat16, 0)


def uncompiled(way: Callable[..., dict[str, Any]], tiny: bool) -> dict[str, Any]:
    return way(checked(layer(tiny), variants(compiler=None)), tiny)


def compiled(style: str, tiny: bool) -> dict[str, Any]:
    """In a rehearsal only traced, since a compiler for the CPU is no part of the suite."""
    tracing = functools.partial(torch.compile, backend="eager", dynamic=False)
    name, found = f"{style}, compiled", variants((), tracing if tiny else kit.compiled)
    runs = {"ours": found["ours"], "write": variants(("write",), None)["write"], name: found[name]}
    calls = checked(layer(tiny), runs)
    return {"called": called(calls, tiny), "in_graphs": captured(calls, tiny)}


def checked(block: Layer, runs: Runs) -> dict[str, kit.Call]:
    """Calls on one copy, which is larger than any cache at rest-512. Right now: one that rolls leaves other keys."""
    check(block, runs)
    return {name: (lambda i, run=run: run(block)) for name, run in runs.items()}


def called(calls: dict[str, kit.Call], tiny: bool) -> dict[str, Any]:
    """As a step calls it, where a host that is slower than the GPU counts."""
    return kit.report(kit.interleaved(calls, budget=0.1 if tiny else 1.0, least=2 if tiny else 20), "ours")


def captured(calls: dict[str, kit.Call], tiny: bool) -> dict[str, Any]:
    times, left_out = graphs.interleaved(calls, 1, rounds=2 if tiny else 15)
    return {"not_captured": left_out} | (kit.report(times, next(iter(times))) if times else {})
