"""``sink_ring_attention`` under each of its tiles, cuDNN's and flash attention on the same slots, and with a cache that
is concatenated, in graphs: and what the plan's cost model may be corrected by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import graphs, kit
from benchmarks.bench_attention import DEMO, SHAPES, Layer, Shape
from rest_fast import ops

DTYPE = torch.bfloat16
Run = Callable[[Layer], torch.Tensor]
LIBRARIES = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def shapes(tiny: bool) -> dict[str, Shape]:
    """rest-512's own size first."""
    if tiny:
        return {"demo": DEMO}
    names = sorted(set(SHAPES) - {"demo"}, key=lambda name: (name != "rest-512-768", SHAPES[name].queries))
    return {name: SHAPES[name] for name in names}


def jobs(tiny: bool) -> dict[str, Any]:
    return {name: functools.partial(measure, shape) for name, shape in shapes(tiny).items()}


def layer(shape: Shape, seed: int) -> Layer:
    return Layer(shape, DTYPE, seed)


def ours(layer: Layer) -> dict[str, Run]:
    """The call as dispatched and, where that is Triton, under each tile with the keys whole and halved."""
    runs: dict[str, Run] = {"op": Layer.op}
    if "triton" not in able(layer):
        return runs
    from rest_fast.kernels import sink_ring_attention as package
    from rest_fast.kernels.sink_ring_attention.plan import HALF, LARGE, Plan

    def under(chosen: Plan, x: Layer) -> torch.Tensor:
        indices = (x.row_index, x.bank_index, x.n_valid)
        package.launch_plan(chosen, x.q, x.k_cache, x.v_cache, x.out, *indices, x.scale)
        return x.out

    for name, tile in (("LARGE", LARGE), ("HALF", HALF)):
        for splits, keys in ((1, "whole"), (2, "halved")):
            runs[f"{name}, keys {keys}"] = functools.partial(under, Plan(tile, splits))
    return runs


def able(layer: Layer) -> list[str]:
    """The backends that take the call."""
    names = ("row_index", "bank_index", "n_valid", "host_n_valid", "scale")
    op, indices = ops.sink_ring_attention, {name: getattr(layer, name) for name in names}
    return [
        name for name, ok, _ in op.report(op.check(layer.q, layer.k_cache, layer.v_cache, layer.out, **indices)) if ok
    ]


def others(layer: Layer) -> dict[str, Run]:
    """SDPA of each library on the slots where they lie, and on keys that a peer's cache joins first."""
    runs: dict[str, Run] = {"dense": Layer.dense, "concatenate": lambda x: x.peer("concatenate")}
    if kit.device().type == "cuda":
        for name, backend in LIBRARIES.items():
            runs[f"dense, {name}"] = functools.partial(by, backend, Layer.dense)
            runs[f"concatenate, {name}"] = functools.partial(by, backend, runs["concatenate"])
        for name in ("flash_attn_3", "flash_attn_4", "cuda"):  # those taken only by name
            runs[name] = functools.partial(Layer.forced, backend=name)
    return runs


def by(backend: SDPBackend, run: Run, x: Layer) -> torch.Tensor:
    with sdpa_kernel(backend):
        return run(x)


def measure(shape: Shape) -> dict[str, Any]:
    work = shape.work(DTYPE)
    copies = graphs.copies(work.bytes)
    layers = [layer(shape, seed) for seed in range(copies)]
    runs = ours(layers[0]) | others(layers[0])
    left_out = kit.without_failures(runs, set(runs) - {"op", "dense"}, lambda run: run(layers[0]))
    found = kit.errors({name: [run(layers[0]).clone()] for name, run in runs.items()}, [layers[0].exact()])
    for name in [name for name in runs if name != "op"]:  # a wrong peer is no result, but keeps no other from being one
        try:
            kit.judge({key: found[key] for key in ("dense", name)}, "dense", {0: torch.finfo(DTYPE).eps}, 8)
        except AssertionError as e:
            left_out[name] = str(e)
            del runs[name]
    kit.judge({key: found[key] for key in ("dense", "op")}, "dense", {0: torch.finfo(DTYPE).eps}, 8)
    calls = {name: (lambda i, run=run: run(layers[i])) for name, run in runs.items()}
    times, more = graphs.interleaved(calls, copies)
    about: dict[str, Any] = {"shape": vars(shape) | {"slots": shape.slots}, "flop": work.flop}
    about |= {"left_out": left_out | more, "errors": {name: float(f"{e[0]:.3g}") for name, e in found.items()}}
    return about | kit.report(times, "op")
