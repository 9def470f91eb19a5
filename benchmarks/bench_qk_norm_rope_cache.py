"""``qk_norm_rope_cache`` on the CPU: C++ against the in-place reference and against eager PyTorch.

*eager* is what one writes without the op: the functional reference with its rotary table made beforehand, then K and V
copied into their slots. *reference* also gathers the table, which the C++ does too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional, native, rope

EPS = 1e-5
LAYERS = 4  # buffers taken in turn, as the layers of a step do: no call finds its cache warm from the last one


@dataclass(frozen=True)
class Size:
    heads: int
    side: int  # latent rows and columns
    rounds: int
    head_dim: int = 64
    frames: int = 3
    window: int = 7  # latent frames of a cache row
    lanes: int = 2  # one session with guidance


SIZES = {"demo": Size(heads=3, side=4, rounds=400), "rest-512": Size(heads=32, side=16, rounds=60)}


class Layer:
    """Random tensors of one layer, and the three ways to run the op on them."""

    def __init__(self, size: Size, dtype: torch.dtype):
        self.size, width = size, size.heads * size.head_dim
        tokens = size.frames * size.side**2
        self.qkv = torch.randn(size.lanes, tokens, 3 * width).to(dtype)
        self.q_weight, self.k_weight = (torch.randn(width).to(dtype) for _ in range(2))
        freqs, cells = rope.frequencies(width, 1e4), torch.arange(size.side)
        t = rope.axis_table(torch.arange(size.window), 0.32, 20.0, freqs)
        y = rope.axis_table(cells, 32.0, 2048.0, freqs)
        self.tables = (t, y, y.clone())
        shape = (size.lanes, 1, size.window * size.side**2, size.heads, size.head_dim)
        self.k_cache, self.v_cache = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.q_out = torch.empty(size.lanes, tokens, size.heads, size.head_dim, dtype=dtype)
        self.slot, base = size.side**2, 4
        self.row_index = torch.arange(size.lanes, dtype=torch.int32)
        self.ring_index = torch.zeros(size.lanes, dtype=torch.int32)
        self.write_slot, self.base = (torch.full((size.lanes,), v, dtype=torch.int32) for v in (self.slot, base))
        self.table = rope.token_table(t[base : base + size.frames], y, y, width)

    def op(self, backend: str) -> None:
        with ops.use_backend(backend):
            ops.qk_norm_rope_cache(
                self.qkv,
                self.q_weight,
                self.k_weight,
                *self.tables,
                self.k_cache,
                self.v_cache,
                self.q_out,
                row_index=self.row_index,
                ring_index=self.ring_index,
                write_slot=self.write_slot,
                base=self.base,
                eps=EPS,
            )

    def cpp(self) -> None:
        self.op("cpp")

    def reference(self) -> None:
        self.op("reference")

    def eager(self) -> None:
        q, k, v = functional.qk_norm_rope(
            self.qkv, self.q_weight, self.k_weight, self.table, heads=self.size.heads, eps=EPS
        )
        here = slice(self.slot, self.slot + k.shape[1])
        self.q_out = q
        self.k_cache[:, 0, here] = k
        self.v_cache[:, 0, here] = v

    def bytes_moved(self) -> int:
        """Least traffic: qkv read once, q, k and v written once."""
        return 2 * self.qkv.numel() * self.qkv.element_size()


def interleaved(variants: dict[str, Callable[[int], None]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of every round, the variants taking turns, so that a busy machine is busy for all of them."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 3):
        for name, call in variants.items():
            start = time.perf_counter_ns()
            call(i % LAYERS)
            if i >= 3:  # the first rounds fault pages in and warm the dispatch
                times[name].append((time.perf_counter_ns() - start) / 1e3)
    return times


def summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    p95 = ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]
    return {"median_us": round(statistics.median(ordered), 1), "p95_us": round(p95, 1)}


def same_result(layer: Layer, dtype: torch.dtype) -> None:
    """A fast wrong answer is no result."""
    results = []
    for run in (layer.cpp, layer.eager):
        layer.q_out.zero_(), layer.k_cache.zero_(), layer.v_cache.zero_()
        run()
        results.append([x.clone().float() for x in (layer.q_out, layer.k_cache, layer.v_cache)])
    unit = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}[dtype]  # bf16: the two may round to neighbours
    for fast, slow in zip(*results):
        torch.testing.assert_close(fast, slow, rtol=unit, atol=20 * unit if dtype == torch.float32 else unit)


@pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_qk_norm_rope_cache(benchmark, name, dtype):
    size = SIZES[name]
    torch.manual_seed(0)
    layers = [Layer(size, dtype) for _ in range(LAYERS)]
    same_result(layers[0], dtype)
    variants = {
        "cpp": lambda i: layers[i].cpp(),
        "reference": lambda i: layers[i].reference(),
        "eager": lambda i: layers[i].eager(),
    }
    times = interleaved(variants, size.rounds)
    medians = {variant: statistics.median(t) for variant, t in times.items()}
    benchmark.extra_info |= {
        "shape": {"B": size.lanes, "N": size.frames * size.side**2, "H": size.heads, "D": size.head_dim},
        "dtype": str(dtype).removeprefix("torch."),
        "rounds": size.rounds,
        **{variant: summary(t) for variant, t in times.items()},
        "reference_over_cpp": round(medians["reference"] / medians["cpp"], 1),
        "eager_over_cpp": round(medians["eager"] / medians["cpp"], 1),
        "cpp_gb_per_s": round(layers[0].bytes_moved() / medians["cpp"] / 1e3, 2),
    }
    benchmark.pedantic(layers[0].cpp, rounds=size.rounds, warmup_rounds=3)
