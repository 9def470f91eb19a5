"""One whole DiT block: ours, through the cache in place, against the block as public video stacks write it.

The same weights, the same window (reference, one chunk of context, the current chunk), two lanes. Peers: the styles of
``peers.py`` in eager PyTorch (on the CPU two of them at rest-512), and torch.compile of ``roll`` and ``write``, without
the time to compile. Text and audio keys are ready for all, and so is our audio update. A call at demo width runs four
blocks one after another, as a step does its layers, and counts a quarter of it: weights come from L3, code is warm.

Where the time goes is measured inside separate calls: a clock around each linear layer, each attention, and the groups
of the rest. *Outside* is the whole less linear layers, GELU and attention. Attention to text and audio counts with the
norm of its query, on both sides; self-attention by SDPA without what is copied around the call.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import kit, peers
from benchmarks.kit import DTYPES, LAYERS
from rest_fast import ops, preset
from rest_fast.config import ModelConfig
from rest_fast.models import cross_attention, dit_block
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.dit_block import Workspace
from rest_fast.ops import rope
from rest_fast.streaming.cache import IDContextCache

LANES = 2
SELF_ATTENTION = ops.sink_ring_attention
SPLIT = ("ours", "roll", "write")  # measured inside as well
PRODUCTS = ("linear", "attention", "gelu")  # on the CPU ours has the GELU inside a linear layer
Parts = dict[str, list[tuple[Any, str]]]  # what a clock stands around: owner and name of a function
PARTS: Parts = {
    "linear": [(F, "linear"), (dit_block, "linear"), (cross_attention, "linear")],  # ours with the GELU inside
    "attention": [
        (F, "scaled_dot_product_attention"),
        (ops, "sink_ring_attention"),
        (ops, "frame_cross_attention"),
        (ops, "frame_audio_update"),  # the projection behind it included
        (peers, "cross_attention"),
    ],
    "norm, modulate, gate": [(ops, "gate_norm_modulate"), (peers, "modulate"), (peers, "gated")],
    "q and k norm, rotation, cache": [
        (ops, "qk_norm_rope_cache"),
        (peers, "heads"),
        *((peers.Window, style) for style in peers.STYLES),
    ],
    "gelu": [(F, "gelu")],
}


class Layer:
    """A model of one block with random weights, its cache in the steady state, and the same window for the peers."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, seed: int):
        torch.manual_seed(seed)
        device, tokens = kit.device(), config.stream.chunk * config.tokens
        self.config = config.replace(dit__layers=1)
        self.dit = randomise(StreamingDiT(self.config)).to(device, dtype).eval().requires_grad_(False)
        self.block, width = self.dit.blocks[0], config.dit.width
        # the block alone: no projection before or behind it
        self.dit.proj_in, self.dit.output = nn.Identity(), lambda x, final: x
        # a session with guidance: its branches begin with the same latents, and the second hears nothing
        self.x = torch.randn(1, tokens, width).repeat(LANES, 1, 1).to(device, dtype)
        self.cache = steady(IDContextCache(self.config, LANES, dtype=dtype, device=device))
        self.lanes = self.cache.lanes(list(range(LANES)), sessions=1)
        self.window = {style: window(self.cache, style) for style in peers.STYLES}
        self.work = Workspace(LANES, tokens, self.config.dit, self.x)
        t = torch.rand(LANES, config.stream.chunk).to(device)
        self.six, self.mod = self.dit.time(t)[0].to(dtype), self.dit.modulation(t)
        codes = torch.randn(LANES, config.stream.chunk, config.speech.tokens, config.speech.width).to(device, dtype)
        codes[1:] = 0  # which the peers compute, too
        self.text, self.audio = self.dit.text_kv(), self.dit.hear(codes[:1])
        self.audio_kv = self.block.audio.keys_values(codes)
        base = self.dit.positions.base(2) + torch.arange(config.stream.chunk)
        table = rope.token_table(self.dit.positions.time(base), self.dit.positions.y, self.dit.positions.x, width)
        self.tables = peers.pair_tables(table)

    def ours(self) -> torch.Tensor:
        return self.dit.step(self.x[:1], self.mod, self.lanes, self.work, self.text, self.audio)

    def peer(self, style: str, function: Callable[..., torch.Tensor] = peers.block) -> torch.Tensor:
        remember, heads = getattr(self.window[style], style), self.config.dit.heads
        return function(self.block, self.x, self.six, self.tables, remember, self.text[0], self.audio_kv, heads)

    def exact(self) -> torch.Tensor:
        """The peers' block one precision up: float64 for fp32, fp32 for the rest."""
        wide = torch.float64 if self.x.dtype == torch.float32 else torch.float32
        window = self.window["write"]
        remember = peers.Window(window.k.to(wide), window.v.to(wide), window.sink, window.chunk).write
        text, audio = (None if kv is None else tuple(t.to(wide) for t in kv) for kv in (self.text[0], self.audio_kv))
        tables = tuple(t.to(wide) for t in self.tables)
        weights = self.block.to(wide)
        heads = self.config.dit.heads
        out = peers.block(weights, self.x.to(wide), self.six.to(wide), tables, remember, text, audio, heads)
        self.block.to(self.x.dtype)  # what was rounded once comes back unchanged
        return out


def steady(cache: IDContextCache) -> IDContextCache:
    """Two chunks committed in every row; keys are random, since only their places matter."""
    for row in range(cache.rows):
        sink = cache.k.new_zeros(cache.k.shape[0], cache.reference, *cache.k.shape[-2:])
        cache.open(row, sink, sink)
    for buffer in (cache.k, cache.v):
        buffer.normal_()
    for _ in range(2):
        cache.commit(list(range(cache.rows)))
    return cache


def window(cache: IDContextCache, style: str, layer: int = 0, rows: Any = slice(None)) -> peers.Window:
    """The same keys and values for a peer, in the order of time: sink, evicted chunk or nothing, context, and room for
    the current chunk where none left. What it evicts stands first in the window that has yet to roll."""
    at, sink, chunk = cache.write_slot(0), cache.sink, cache.chunk
    current = [slice(at, at + chunk)]
    context = [slice(a, a + chunk) for a in range(sink, cache.slots, chunk) if a != at]
    places = [slice(sink), *(current + context if style == "roll" else context + current)]
    k, v = (torch.cat([slots[layer, rows, 0, place] for place in places], 1) for slots in (cache.k, cache.v))
    return peers.Window(k, v, sink, chunk)


def randomise(dit: StreamingDiT) -> StreamingDiT:
    """Weights that keep every branch near the size of the stream: the zeros of a fresh model would hide mistakes."""
    tables = {id(block.table) for block in dit.blocks}
    for parameter in dit.parameters():
        if parameter.ndim > 1 and id(parameter) not in tables:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[-1]))
        else:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    return dit


def fused() -> bool:
    """Whether our GELU runs inside a linear layer, where no clock sees it."""
    return kit.device().type == "cpu" and torch.float32 in dit_block.linear.__globals__["DTYPES"]


Runs = dict[str, Callable[[Layer], torch.Tensor]]


def variants(styles: Sequence[str] = peers.STYLES, compiler: Callable | None = kit.compiled) -> Runs:
    runs: Runs = {"ours": Layer.ours}
    for style in styles:
        runs[style] = lambda x, style=style: x.peer(style)
    if compiler is not None:
        for style in ("roll", "write"):
            function = compiler(peers.block)
            runs[f"{style}, compiled"] = lambda x, style=style, function=function: x.peer(style, function)
    return runs


def once(layer: Layer, run: Callable[[Layer], torch.Tensor]) -> torch.Tensor:
    """What a variant computes; windows that it rolls are put back, so that the next meets the same keys."""
    kept = {style: (w.k.clone(), w.v.clone()) for style, w in layer.window.items()}
    out = run(layer).clone()
    for style, (k, v) in kept.items():
        layer.window[style].k.copy_(k), layer.window[style].v.copy_(v)
    return out


def check(layer: Layer, runs: Runs) -> None:
    """The gate."""
    kit.gate({name: [once(layer, run)] for name, run in runs.items()}, [layer.exact()], "write")


# -- inside a block


class Clock:
    """Spans of time around functions while they are patched; on a GPU by events.

    ``glue``: whether what self-attention copies around SDPA is no attention.
    """

    def __init__(self, parts: Parts = PARTS, *, glue: bool = True) -> None:
        self.parts, self.glue = parts, glue
        self.spans: list[tuple[str, Any, Any]] = []
        self.inside: str | None = None
        self.now = self._event if kit.device().type == "cuda" else kit.host_clock()

    def split(self, run: Callable[[], Any]) -> dict[str, float]:
        """Microseconds of one call: whole, outside, and each part."""
        self.spans.clear()
        with self._patched():
            start = self.now()
            run()
            whole = self._between(start, self.now())
        parts = dict.fromkeys(self.parts, 0.0)
        for label, start, stop in self.spans:
            parts[label] += self._between(start, stop)
        return {"whole": whole, "outside": whole - sum(parts.get(p, 0.0) for p in PRODUCTS), **parts}

    def around(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a span around it; what runs inside it under the same label is part of that span."""
        transparent = self.glue and function is SELF_ATTENTION

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.inside == label:
                return function(*args, **kwargs)
            outer, before = self.inside, len(self.spans)
            if not transparent:
                self.inside = label
            start = self.now()
            result = function(*args, **kwargs)
            stop = self.now()
            self.inside = outer
            if not transparent or len(self.spans) == before:
                self.spans.append((label, start, stop))
            return result

        return timed

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for label, functions in self.parts.items():
                for owner, name in functions:
                    stack.enter_context(mock.patch.object(owner, name, self.around(label, getattr(owner, name))))
            yield

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _between(start: Any, stop: Any) -> float:
        if isinstance(start, int):
            return (stop - start) / 1e3
        stop.synchronize()
        return 1e3 * start.elapsed_time(stop)


def summarised(splits: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Median microseconds of every part of a variant, and the time outside of the peers over ours."""
    medians = {
        name: {part: round(float(np.median([s[part] for s in found])), 1) for part in found[0]}
        for name, found in splits.items()
    }
    ours = medians["ours"]["outside"]
    ratios = {f"{n}_over_ours": round(m["outside"] / ours, 2) for n, m in medians.items() if n != "ours"}
    return {"inside_us": medians, "outside_ratios": ratios}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["demo", "rest-512"])
@torch.no_grad()
def test_block(benchmark, name, precision):
    config, dtype, demo = preset(name), DTYPES[precision], name == "demo"
    copies = LAYERS if demo else 1  # a block of rest-512 is larger than any cache
    layers = [Layer(config, dtype, seed) for seed in range(copies)]
    runs = variants(peers.STYLES if demo or kit.device().type == "cuda" else ("roll", "write"))
    left_out = kit.without_failures(runs, ["roll, compiled", "write, compiled"], lambda run: once(layers[0], run))
    check(layers[0], runs)
    clock, splits = Clock(), {n: [] for n in SPLIT}
    calls = {n: (lambda i, run=run: [run(layer) for layer in layers]) for n, run in runs.items()}
    clocked = {n: (lambda i, n=n: splits[n].append(clock.split(lambda: calls[n](i)))) for n in SPLIT}
    if demo:  # where the clocks themselves weigh
        times = kit.interleaved(calls, budget=3)
        kit.interleaved(clocked)
    else:
        times = kit.interleaved(calls | clocked, least=4)
    rounds = len(times["ours"])
    times = {n: [t / copies for t in found] for n, found in times.items()}
    splits = {n: [{part: t / copies for part, t in s.items()} for s in found] for n, found in splits.items()}
    about = summarised({n: found[-rounds:] for n, found in splits.items()})
    sizes = {"lanes": LANES, "tokens": layers[0].x.shape[1], "width": config.dit.width, "slots": layers[0].cache.slots}
    about |= {"preset": name, "dtype": precision, "shape": sizes, "left_out": left_out}
    kit.store(benchmark, times, "ours", calls["ours"], **about)
