"""The matrix products of a rest-512 block, by every way that PyTorch has to compute them, in graphs.

    python benchmarks/device/products.py EVIDENCE.jsonl TABLE.json     the table of candidates, from what was measured

Rows: one, two and four lanes of 768 tokens. fp8 is scaled by row, once with its operand ready (as a norm or a GELU
would leave it) and once with the product's own quantisation. In the table a candidate without a measurement has an
estimate, and says so: FLOP at :data:`RATES` and bytes at :data:`BANDWIDTH`, which are readings of one H200 and, for
fp8, twice that; nothing that was measured of these products.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

DTYPE = torch.bfloat16
FP8 = torch.float8_e4m3fn
ROWS = (768, 1536, 3072)
SHAPES = {"qkv": (2048, 6144), "square": (2048, 2048), "up": (2048, 8192), "down": (8192, 2048)}
PLAIN = ("linear", "mm then bias", "fp8, operand ready", "fp8, quantised here")
WITH_GELU = ("linear then gelu", "addmm_activation", "fp8, operand ready, then gelu")
RATES = {"bf16": 790e12, "fp8": 1580e12}  # FLOP a second
BANDWIDTH = 4.3e12  # bytes a second, read and written


@dataclass(frozen=True)
class Product:
    """x [rows, inputs] times a weight of [outputs, inputs], plus a bias; then GELU (tanh form) where asked for."""

    kind: str
    rows: int
    inputs: int
    outputs: int

    @property
    def gelu(self) -> bool:
        return self.kind == "up"

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.rows} x {self.inputs} to {self.outputs}"

    @property
    def candidates(self) -> tuple[str, ...]:
        return WITH_GELU if self.gelu else PLAIN

    @property
    def flop(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs

    @property
    def bytes(self) -> int:
        return 2 * (self.rows * (self.inputs + self.outputs) + self.inputs * self.outputs)

    def estimate_us(self, candidate: str) -> float:
        """The larger of two least times; a pass of its own moves its tensor once more each way."""
        rate = RATES["fp8" if candidate.startswith("fp8") else "bf16"]
        passes = {"mm then bias": self.outputs, "fp8, quantised here": self.inputs}
        extra = self.outputs if "then gelu" in candidate else passes.get(candidate, 0)
        least = max(self.flop / rate, self.bytes / BANDWIDTH)
        return 1e6 * (least + 4 * self.rows * extra / BANDWIDTH)


def products(tiny: bool) -> list[Product]:
    if tiny:
        return [Product(kind, 32, 64, 128) for kind in ("qkv", "up")]
    return [Product(kind, rows, *size) for rows in (ROWS[1], ROWS[0], ROWS[2]) for kind, size in SHAPES.items()]


class Operands:
    """One copy of everything that the candidates read."""

    def __init__(self, product: Product, seed: int):
        from benchmarks import kit

        device = kit.device()
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device)

        self.x = normal(product.rows, product.inputs).to(DTYPE)
        self.weight = (normal(product.outputs, product.inputs) / product.inputs**0.5).to(DTYPE)
        self.bias = normal(product.outputs).to(DTYPE)
        self.x8, self.x_scale = quantised(self.x)
        self.weight8, self.weight_scale = quantised(self.weight)

    def exact(self, product: Product) -> torch.Tensor:
        y = F.linear(self.x.float(), self.weight.float(), self.bias.float())
        return F.gelu(y, approximate="tanh") if product.gelu else y

    def scaled(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        scales = {"scale_a": scale, "scale_b": self.weight_scale.t()}
        return torch._scaled_mm(x, self.weight8.t(), **scales, bias=self.bias, out_dtype=DTYPE, use_fast_accum=True)

    def run(self, candidate: str) -> torch.Tensor:
        return CANDIDATES[candidate](self)


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row by row: fp8 numbers, and the fp32 scale [rows, 1] that undoes it."""
    scale = x.abs().amax(-1, keepdim=True).float() / torch.finfo(FP8).max
    return (x.float() / scale).to(FP8), scale


CANDIDATES: Mapping[str, Callable[[Operands], torch.Tensor]] = {
    "linear": lambda o: F.linear(o.x, o.weight, o.bias),
    "mm then bias": lambda o: torch.mm(o.x, o.weight.t()).add_(o.bias),
    "fp8, operand ready": lambda o: o.scaled(o.x8, o.x_scale),
    "fp8, quantised here": lambda o: o.scaled(*quantised(o.x)),
    "linear then gelu": lambda o: F.gelu(F.linear(o.x, o.weight, o.bias), approximate="tanh"),
    "addmm_activation": lambda o: torch._addmm_activation(o.bias, o.x, o.weight.t(), use_gelu=True),
    "fp8, operand ready, then gelu": lambda o: F.gelu(o.scaled(o.x8, o.x_scale), approximate="tanh"),
}


def jobs(tiny: bool) -> dict[str, Any]:
    return {product.name: functools.partial(measure, product) for product in products(tiny)}


def measure(product: Product) -> dict[str, Any]:
    """Errors are stored beside times, for whoever chooses: fp8 is no bf16, and erf is no tanh."""
    from benchmarks import graphs, kit

    copies = graphs.copies(product.bytes)
    operands = [Operands(product, seed) for seed in range(copies)]
    runs: dict[str, Any] = {name: name for name in product.candidates}
    left_out = kit.without_failures(runs, product.candidates[1:], operands[0].run)
    results = {name: [operands[0].run(name)] for name in runs}
    errors = kit.errors(results, [operands[0].exact(product)])
    calls = {name: (lambda i, name=name: operands[i].run(name)) for name in runs}
    times, more = graphs.interleaved(calls, copies)
    about = {"flop": product.flop, "left_out": left_out | more}
    about |= {"errors": {name: float(f"{e[0]:.3g}") for name, e in errors.items()}}
    return about | kit.report(times, product.candidates[0])


# -- the table


def table(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of every product at its real sizes: each candidate's microseconds, and whether measured or an estimate.

    ``fastest`` names a bf16 candidate that was measured, or is None: an estimate chooses nothing.
    """
    rows = []
    for product in products(tiny=False):
        line = found.get(product.name, {})
        row: dict[str, Any] = {"kind": product.kind, "rows": product.rows, "inputs": product.inputs}
        row |= {"outputs": product.outputs, "candidates": {}}
        for name in product.candidates:
            us = line.get("variants", {}).get(name, {}).get("median_us")
            entry = {"us": round(product.estimate_us(name), 1) if us is None else us}
            entry["from"] = "estimate" if us is None else "measured"
            if us is not None:
                entry["error"] = line["errors"][name]
            row["candidates"][name] = entry
        measured = {n: e["us"] for n, e in row["candidates"].items() if e["from"] == "measured" and "fp8" not in n}
        rows.append(row | {"fastest": min(measured, key=measured.__getitem__) if measured else None})
    return {"dtype": "bf16", "products": rows}


def main(words: list[str]) -> int:
    """The evidence may be missing: then every entry is an estimate."""
    evidence, target = map(Path, words)
    found: dict[str, Any] = {}
    for text in evidence.read_text().splitlines() if evidence.exists() else ():
        line = json.loads(text)
        if line.get("step") == "products" and "variants" in line:
            found[line["name"]] = line
    target.write_text(json.dumps(table(found), indent=1) + "\n")
    count = sum(e["from"] == "measured" for row in table(found)["products"] for e in row["candidates"].values())
    print(f"{target.name}: {count} candidates measured, the others are estimates")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
