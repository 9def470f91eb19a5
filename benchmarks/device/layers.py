"""Every convolution of the decoders with all that its store does: our kernel as planned, with three and with four
stages, and cuDNN, in graphs. From these lines the plan's stages and the dispatcher's choice per layer are filled in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks import graphs, kit
from benchmarks.bench_vae_layers import Convolution
from benchmarks.device import right
from benchmarks.roofline import Work
from rest_fast import ops

DTYPE = torch.bfloat16
STAGES = (3, 4)
Call = Callable[[int], Any]


def jobs(tiny: bool) -> dict[str, Any]:
    return {name: functools.partial(measure, *case) for name, case in right.convolutions(tiny).items()}


def ours(cases: list[Convolution]) -> dict[str, Call]:
    """Our kernel as dispatched, and under other numbers of stages where Triton takes the call."""
    calls: dict[str, Call] = {"ours": lambda i: cases[i]()}
    if "triton" not in cases[0].backends():
        return calls
    from rest_fast.kernels import causal_conv3d as package

    case = cases[0]
    chosen = package.planned(case.buffer, case.weight, list(case.layer.factors))
    for stages in STAGES:
        plan = replace(chosen, tile=replace(chosen.tile, stages=stages))
        calls[f"{stages} stages"] = lambda i, plan=plan: under(plan, cases[i])
    return calls


def under(plan: Any, case: Convolution) -> None:
    from rest_fast.kernels import causal_conv3d as package

    operands = dict.fromkeys(("noise", "noise_scale", "scale", "shift", "pictures"))
    operands |= {name: getattr(case, name) for name in ("bias", "residual", "out", "normed")}
    options = {"factors": list(case.layer.factors), "drop": 0, "keep": case.frames, "first": False, "eps": 1e-8}
    package.launch_plan(plan, case.buffer, case.history, case.weight, operands, **options)


def library(cases: list[Convolution], i: int) -> None:
    with ops.use_backend("library"):
        cases[i]()


def left_by(call: Call, case: Convolution) -> list[torch.Tensor]:
    """What a call makes, from the same history."""
    history = case.history.clone()
    call(0)
    case.history.copy_(history)
    return [x.clone() for x in (case.out, case.normed) if x is not None]


def measure(layer: Any, latents: int) -> dict[str, Any]:
    work = Work(torch.finfo(DTYPE).bits // 8 * layer.numbers(latents), layer.flop(latents))
    torch.backends.cudnn.benchmark = True  # cuDNN may look for its fastest algorithm
    copies = graphs.copies(work.bytes)
    cases = [Convolution(layer, latents, DTYPE, seed) for seed in range(copies)]
    calls = ours(cases) | {"library": functools.partial(library, cases)}
    left_out = kit.without_failures(calls, set(calls) - {"ours"}, lambda call: call(0))
    wanted = left_by(calls["ours"], cases[0])
    same = {name: all(map(torch.equal, left_by(call, cases[0]), wanted)) for name, call in calls.items()}
    times, more = graphs.interleaved(calls, copies, rounds=7)
    about = {"layer": {**asdict(layer), "ends": layer.ends}, "latents": latents, "flop": work.flop, "bytes": work.bytes}
    return about | {"same_bits": same, "left_out": left_out | more} | kit.report(times, "ours")
