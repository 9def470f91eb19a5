"""Every op, each backend that takes the call, against what one writes without the op and torch.compile of that.

*eager* is ordinary PyTorch in the dtype of the call: ``F.rms_norm``, ready rotary tables, copies into the cache where
one is kept. *compiled* is torch.compile of it, without the time to compile. Ratios are over ``op``, the backend that
dispatch chooses by itself. Where an op took the place of others of ours, *unfused* is what it replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from benchmarks import kit
from benchmarks.kit import DTYPES, SIZES, Size
from benchmarks.op_table import TABLE, Draw, Entry, Values
from benchmarks.roofline import Roof, Work, measure
from rest_fast import ops
from rest_fast.ops import native
from rest_fast.ops.memory_layouts import halo, haloed


class Case:
    """An op at one size in one dtype: its layers' values, and its variants by name."""

    def __init__(self, entry: Entry, size: Size, dtype: torch.dtype):
        self.entry, self.size, self.dtype = entry, size, dtype
        self.layers = [entry.make(size, Draw(dtype, seed)) for seed in range(entry.copies)]
        arguments = getattr(torch.ops.rest_fast, entry.op.name).default._schema.arguments
        self._positional = [a.name for a in arguments if not a.kwarg_only]
        self._named = [a.name for a in arguments if a.kwarg_only]
        args, kwargs = self.arguments(self.layers[0])
        spec = entry.op.check(*args, **kwargs)
        self.chosen = entry.op.choose(spec, None).name
        self.backends = [name for name, ok, _ in entry.op.report(spec) if ok]
        here = [b for b in entry.op.backends if b.supports(spec)[0]]
        self.unproven = [b.name for b in here if b.by_name == native.UNPROVEN]  # a GPU has to see them first

    def arguments(self, values: Values) -> tuple[list, Values]:
        return [values[n] for n in self._positional], {n: values[n] for n in self._named if n in values}

    def variants(
        self, compiler: Callable | None = kit.compiled
    ) -> dict[str, Callable[[Values], Sequence[torch.Tensor]]]:
        """Name -> run on the values of a layer, returning what was computed. ``op`` is dispatch's own choice."""
        runs: dict[str, Callable] = {"op": self._on(None)}
        runs |= {name: self._on(name) for name in (*self.backends, *self.unproven) if name != self.chosen}
        if self.entry.unfused is not None:
            runs["unfused"] = self._reading(self.entry.unfused)
        runs["eager"] = self._reading(self.entry.eager)
        if compiler is not None:
            runs["compiled"] = self._reading(compiler(self.entry.eager))
        return runs

    def _on(self, backend: str | None) -> Callable[[Values], list[torch.Tensor]]:
        def run(values: Values) -> list[torch.Tensor]:
            args, kwargs = self.arguments(values)
            if backend is None:
                self.entry.op(*args, **kwargs)
            else:
                with ops.use_backend(backend):
                    self.entry.op(*args, **kwargs)
            return [values[n] for n in self.entry.writes.split()]

        return run

    def _reading(self, function: Callable) -> Callable[[Values], Sequence[torch.Tensor]]:
        names = self.entry.reads.split()
        return lambda values: function(*(values[n] for n in names))

    def check(self, variants: dict[str, Callable]) -> None:
        """The gate: each variant on fresh copies of the first layer, outputs poisoned."""
        kit.gate({name: run(self.fresh(poison=True)) for name, run in variants.items()}, self.exact(), "eager")

    def exact(self) -> Sequence[torch.Tensor]:  # what eager computes in float64
        return self._reading(self.entry.eager)(self.fresh(widen=True))

    def fresh(self, *, widen: bool = False, poison: bool = False) -> Values:
        """A copy of the first layer's values, in float64 or with what is only written full of NaN, as asked."""
        outputs = set(self.entry.writes.split()) - set(self.entry.reads.split())
        copy = {}
        for name, value in self.layers[0].items():
            if isinstance(value, torch.Tensor):
                value = cloned(value)
                if poison and name in outputs:
                    value.fill_(torch.nan if value.is_floating_point() else 77)
                if widen and value.is_floating_point():
                    value = value.double()
            copy[name] = value
        return copy

    def work(self) -> Work:
        """Bytes and FLOP that no implementation can avoid."""
        values, moves = self.layers[0], self.entry.moves
        names = f"{self.entry.reads} {self.entry.writes}".split()
        moved = [values[n] for n in names] if moves is None else moves(values)
        sizes = [t.numel() * t.element_size() for t in moved if isinstance(t, torch.Tensor)]
        return Work(sum(sizes), self.entry.flop(self.size))


def cloned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the same place of its memory: ``clone`` leaves borders out, and a kernel may ask for them."""
    whole = halo(tensor) if tensor.ndim == 5 and not tensor.is_contiguous() else None
    if whole is None:
        return tensor.clone()
    return haloed(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)  # type: ignore[arg-type]


LEFT_OUT = {
    ("text_attention", "demo"),  # has no text
    ("sink_ring_attention", "rest-512"),  # bench_attention.py
}
CASES = [(name, preset) for name in TABLE for preset in SIZES if (name, preset) not in LEFT_OUT]


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def precision(request) -> tuple[torch.dtype, Roof]:
    """A dtype, and the rates of this machine for it, measured in this run."""
    dtype = DTYPES[request.param]
    return dtype, measure(kit.device(), dtype)


@pytest.mark.parametrize(("name", "preset"), CASES)
@torch.no_grad()
def test_op(benchmark, precision, name, preset):
    dtype, roof = precision
    case = Case(TABLE[name], SIZES[preset], dtype)
    variants = case.variants()
    left_out = kit.without_failures(variants, ["compiled"], lambda run: run(case.fresh()))
    case.check(variants)
    copies = len(case.layers)
    calls = {n: (lambda i, run=run: run(case.layers[i % copies])) for n, run in variants.items()}
    times = kit.interleaved(calls, budget=1)
    about: dict[str, Any] = {"op": name, "preset": preset, "dtype": kit.NAMES[dtype], "left_out": left_out}
    about["backend"] = case.chosen
    work, median = case.work(), kit.summary(times["op"])["median_us"]
    if kit.cold(work.bytes * copies):
        about |= {"bytes": work.bytes, "flop": work.flop, "of_roof": roof.share(work, median), "roof": roof.about()}
    kit.store(benchmark, times, "op", calls["op"], **about)
