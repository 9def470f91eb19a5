"""``sink_ring_attention`` against what public video stacks and stock PyTorch do for the same keys and values.

At the demo's size, and at rest-512's heads for chunks of 256 to 1024 tokens; the window is a reference frame, one chunk
of context and the current chunk. ``op`` reads the slots where ``qk_norm_rope_cache`` wrote them; the peers get the
chunk's keys and values as tensors, as their rotary embedding leaves them, and put them behind the past:

* ``roll``, ``clone``, ``concatenate``, ``write``: see ``peers.py``;
* ``dense``: SDPA on the slots, lanes side by side, everything in place: what no cache can beat with that SDPA;
* ``mask``: SDPA on all slots with a boolean mask of the valid ones;
* ``flex``: flex_attention, compiled, on the dense range (time to compile not included; on the CPU at two sizes only).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import kit, peers
from benchmarks.kit import DTYPES, LAYERS
from benchmarks.roofline import Work, measure
from rest_fast import ops

BOTH = ("fp32", "bf16")


@dataclass(frozen=True)
class Shape:
    queries: int
    heads: int
    sink: int
    lanes: int = 2
    head_dim: int = 64

    @property
    def slots(self) -> int:
        return self.sink + 2 * self.queries

    def work(self, dtype: torch.dtype) -> Work:
        width, bytes_of = self.heads * self.head_dim, torch.finfo(dtype).bits // 8
        tokens = 2 * self.queries + 2 * self.slots  # q and out, k and v
        return Work(self.lanes * tokens * width * bytes_of, 4 * self.lanes * self.queries * self.slots * width)


DEMO = Shape(48, 3, 16)
SHAPES = {"demo": DEMO} | {f"rest-512-{n}": Shape(n, 32, 256) for n in (256, 512, 768, 1024)}
# fp32 at the one size that the model has: the others would only take time
CASES = [(n, d) for n in SHAPES for d in BOTH if d == "bf16" or n in ("demo", "rest-512-768")]


class Layer:
    """The same window twice: in slots, the chunk written; and in the order of time, the chunk apart."""

    def __init__(self, shape: Shape, dtype: torch.dtype, seed: int):
        device, lanes, n = kit.device(), shape.lanes, shape.queries
        generator = torch.Generator(device).manual_seed(seed)

        def normal(tokens: int) -> torch.Tensor:
            size = (lanes, tokens, shape.heads, shape.head_dim)
            return torch.randn(size, generator=generator, device=device).to(dtype)

        self.q, self.scale = normal(n), shape.head_dim**-0.5
        sinks, old, context, self.new = ((normal(s), normal(s)) for s in (shape.sink, n, n, n))
        self.out = torch.full_like(self.q, torch.nan)
        # the chunk lies where the evicted one lay
        self.k_cache, self.v_cache = (torch.cat(x, 1)[:, None] for x in zip(sinks, self.new, context))
        self.shifted = peers.Window(*(torch.cat(x, 1) for x in zip(sinks, context, context)), shape.sink, n)
        self.unshifted = peers.Window(*(torch.cat(x, 1) for x in zip(sinks, old, context)), shape.sink, n)
        self.row_index, self.bank_index, self.n_valid = (
            torch.tensor(x, dtype=torch.int32, device=device)
            for x in (list(range(lanes)), [0] * lanes, [shape.slots] * lanes)
        )
        self.host_n_valid = [shape.slots] * lanes
        self.mask = (torch.arange(shape.slots, device=device) < self.n_valid[:, None])[:, None, None]

    def op(self) -> torch.Tensor:
        indices = {name: getattr(self, name) for name in ("row_index", "bank_index", "n_valid", "host_n_valid")}
        ops.sink_ring_attention(self.q, self.k_cache, self.v_cache, self.out, **indices, scale=self.scale)
        return self.out

    def forced(self, backend: str) -> torch.Tensor:
        with ops.use_backend(backend):
            return self.op()

    def peer(self, style: str) -> torch.Tensor:
        window = self.unshifted if style == "roll" else self.shifted
        return peers.sdpa(self.q, *getattr(window, style)(*self.new))

    def dense(self) -> torch.Tensor:
        return peers.sdpa(self.q, self.k_cache[:, 0], self.v_cache[:, 0])

    def masked(self) -> torch.Tensor:
        return peers.sdpa(self.q, self.k_cache[:, 0], self.v_cache[:, 0], self.mask)

    def flex(self, function: Callable[..., torch.Tensor]) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k_cache[:, 0], self.v_cache[:, 0]))
        return function(q, k, v).transpose(1, 2)

    def exact(self) -> torch.Tensor:
        return peers.sdpa(self.q.double(), self.k_cache[:, 0].double(), self.v_cache[:, 0].double())


def variants(layer: Layer, compiler: Callable | None = kit.compiled) -> dict[str, Callable[[Layer], torch.Tensor]]:
    """Name -> run on a layer. ``op`` is dispatch's own choice; the reference, slow by design, is not among them."""
    op, names = ops.sink_ring_attention, ("row_index", "bank_index", "n_valid", "host_n_valid", "scale")
    spec = op.check(layer.q, layer.k_cache, layer.v_cache, layer.out, **{n: getattr(layer, n) for n in names})
    chosen, able = op.choose(spec, None).name, [name for name, ok, _ in op.report(spec) if ok]
    runs: dict[str, Callable[[Layer], torch.Tensor]] = {"op": Layer.op}
    for name in able:
        if name not in (chosen, "reference"):
            runs[name] = lambda x, name=name: x.forced(name)
    for style in peers.STYLES:
        runs[style] = lambda x, style=style: x.peer(style)
    runs |= {"dense": Layer.dense, "mask": Layer.masked}
    if compiler is not None:
        function = compiler(flex_attention)
        runs["flex"] = lambda x: x.flex(function)
    return runs


def check(layer: Layer, runs: dict[str, Callable[[Layer], torch.Tensor]]) -> None:
    """The gate, against float64; ``roll`` first, since the others do not move what it reads."""
    kit.gate({name: [run(layer).clone()] for name, run in runs.items()}, [layer.exact()], "dense")


@pytest.mark.parametrize(("name", "precision"), CASES)
@torch.no_grad()
def test_attention(benchmark, name, precision):
    shape, dtype = SHAPES[name], DTYPES[precision]
    layers = [Layer(shape, dtype, seed) for seed in range(LAYERS)]
    flex = kit.device().type == "cuda" or name in ("demo", "rest-512-768")
    runs = variants(layers[0], kit.compiled if flex else None)
    left_out = kit.without_failures(runs, ["flex"], lambda run: run(layers[0]))
    check(layers[0], runs)
    calls = {n: (lambda i, run=run: run(layers[i % LAYERS])) for n, run in runs.items()}
    times = kit.interleaved(calls, budget=3)
    about: dict = {"op": "sink_ring_attention", "shape": vars(shape) | {"slots": shape.slots}, "dtype": precision}
    about["left_out"] = left_out
    work = shape.work(dtype)
    if kit.cold(work.bytes * LAYERS):
        roof = measure(kit.device(), dtype)
        share = roof.share(work, kit.summary(times["op"])["median_us"])
        about |= {"bytes": work.bytes, "flop": work.flop, "of_roof": share, "roof": roof.about()}
    kit.store(benchmark, times, "op", calls["op"], **about)
