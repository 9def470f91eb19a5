"""G6 of the goals, for one block of the DiT: ours eager and in a graph, peers' caches likewise, and torch.compile.

Peers clone, roll and concatenate their cache and attend by SDPA (``peers.py``). Compiling is bounded by the limit of
the step: the variants without a compiler come first, and each compiled one is a job of its own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from benchmarks import graphs, kit
from benchmarks.bench_block import Layer, Runs, check, variants
from rest_fast import preset

COMPILED = ("write", "roll")


def jobs(tiny: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"eager and captured": functools.partial(uncompiled, tiny)}
    return found | {f"{style}, compiled": functools.partial(compiled, style, tiny) for style in COMPILED}


def layer(tiny: bool) -> Layer:
    return Layer(preset("demo" if tiny else "rest-512"), torch.bfloat16, 0)


def uncompiled(tiny: bool) -> dict[str, Any]:
    return measure(layer(tiny), variants(compiler=None), tiny)


def compiled(style: str, tiny: bool) -> dict[str, Any]:
    """In a rehearsal only traced, since a compiler for the CPU is no part of the suite."""
    tracing = functools.partial(torch.compile, backend="eager", dynamic=False)
    found = variants((), tracing if tiny else kit.compiled)
    name = f"{style}, compiled"
    runs = {"ours": found["ours"], "write": variants(("write",), None)["write"], name: found[name]}
    return measure(layer(tiny), runs, tiny)


def measure(block: Layer, runs: Runs, tiny: bool) -> dict[str, Any]:
    """One copy: a block of rest-512 is larger than any cache."""
    check(block, runs)
    calls = {name: (lambda i, run=run: run(block)) for name, run in runs.items()}
    times = kit.interleaved(calls, budget=0.1 if tiny else 1.0, least=2 if tiny else 20)
    captured, left_out = graphs.interleaved(calls, 1, rounds=2 if tiny else 15)
    about: dict[str, Any] = {"not_captured": left_out, "called": kit.report(times, "ours")}
    return about | {"in_graphs": kit.report(captured, "ours") if "ours" in captured else captured}
