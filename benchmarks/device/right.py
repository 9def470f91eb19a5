"""Every op in bf16 at the sizes of rest-512, and every convolution of the decoders: right or not, one line each.

Backends that are taken only by name until a GPU has seen them are judged beside the op's own choice. What is right is
computed on the GPU, ops in float64 and convolutions in float32, since data and reference of these sizes take minutes on
a CPU. An op may be off by twice what plain PyTorch in bf16 is off, or twice a single rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from benchmarks import bench_ops, bench_vae_layers, kit

FACTOR = 2.0
ROUNDING = 0.25  # of the spacing: root mean square of one rounding to nearest, over numbers of that size
BYTES = 8e-3  # of pictures in 8 bits, whose neighbours are 1 apart
Line = dict[str, Any]
TINY = replace(kit.SIZES["demo"], text=20, pixels=(2, 64))


def jobs(tiny: bool) -> dict[str, Any]:
    size = TINY if tiny else kit.SIZES["rest-512"]
    found = {name: functools.partial(op, name, size) for name in bench_ops.TABLE}
    return found | {name: functools.partial(convolution, *case) for name, case in convolutions(tiny).items()}


def convolutions(tiny: bool) -> dict[str, tuple]:
    """Name -> layer and latents."""
    layers = bench_vae_layers.distinct(16, 32) if tiny else bench_vae_layers.distinct(1, 512)
    pieces = (1,) if tiny else (1, bench_vae_layers.CHUNK)
    cases = [(layer, n) for n in pieces for layer in layers]
    return {f"{x.stage}, {x.channels} to {x.outputs}, {x.ends or 'alone'}, {n} latents": (x, n) for x, n in cases}


def case_of(name: str, size: kit.Size) -> bench_ops.Case:
    """One layer of an op's data, in bf16."""
    return bench_ops.Case(replace(bench_ops.TABLE[name], copies=1), size, torch.bfloat16)


def op(name: str, size: kit.Size) -> Line:
    case = case_of(name, size)
    runs = case.variants(None)
    results = {variant: runs[variant](case.fresh(poison=True)) for variant in ("op", "eager", *case.unproven)}
    return {"backend": case.chosen, **verdict(results, case.exact(), "eager")}


def convolution(layer: Any, latents: int) -> Line:
    case = bench_vae_layers.Convolution(layer, latents, torch.bfloat16)
    results = {name: case.results(name) for name in (*case.backends(), "reference")}
    return verdict(results, case.exact(), "reference")


def verdict(results: dict[str, Any], exact: Any, eager: str) -> Line:
    """Errors of each variant's results and, where one is too large, ``failed``: the errors are evidence either way.

    ``errors``: root mean square over that of the result, held to ``at_most``. ``largest``: the largest single one, over
    the largest number of the result.
    """
    found = kit.errors(results, exact)
    unit = {n: rounding(x.dtype) for n, x in enumerate(results[eager])}
    line: Line = {"errors": {name: short(values) for name, values in found.items()}}
    line["at_most"] = short(FACTOR * max(v, unit[n]) for n, v in enumerate(found[eager]))
    line["largest"] = {name: short(map(largest, outputs, exact)) for name, outputs in results.items()}
    try:
        kit.judge(found, eager, unit, FACTOR)
    except AssertionError as e:
        line["failed"] = str(e)
    return line


def largest(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got.double() - truth.double()).abs().max() / truth.double().abs().max().clamp_min(1e-30))


def short(values: Iterable[float]) -> list[float]:
    """Three digits of each."""
    return [float(f"{value:.3g}") for value in values]


def rounding(dtype: torch.dtype) -> float:
    return ROUNDING * torch.finfo(dtype).eps if dtype.is_floating_point else BYTES
