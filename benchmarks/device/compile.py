"""Compile every Triton kernel that the later steps launch, by launching it as they do, into the cache that they read.

Triton's key covers the kernel's source, the types, constants and alignment of its arguments, its options, Triton itself
and a few variables, and no path. So processes side by side fill one cache for all. A launch by the same code cannot
miss, where a list of cases compiled beforehand might: alignment is seen only in a real call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import bench_block, bench_vae, bench_vae_layers, kit
from benchmarks.device import attention, captured, decode, layers, right
from rest_fast import preset


def jobs(tiny: bool) -> dict[str, Any]:
    """The longest first. The block and the decode come last: what they launch is mostly compiled by then."""
    convolved = {name: functools.partial(convolution, *case) for name, case in right.convolutions(tiny).items()}
    attended = {f"attention, {name}": functools.partial(attend, tiny, name) for name in attention.shapes(tiny)}
    size = right.TINY if tiny else kit.SIZES["rest-512"]
    called = {name: functools.partial(op, name, size) for name in right.jobs(tiny) if name not in convolved}
    whole: dict[str, Any] = {"block": functools.partial(block, tiny), "step": functools.partial(step, tiny)}
    whole |= {f"decode of {n} latents": functools.partial(decoded, tiny, n) for n in (1, bench_vae.CHUNK)}
    return convolved | attended | called | whole


def launched(calls: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run them, and wait: a kernel that cannot be loaded says so here. All but the first may be left out."""
    names = list(calls)
    calls[names[0]]()
    left_out = kit.without_failures(calls, names[1:], lambda call: call())
    if kit.device().type == "cuda":
        torch.cuda.synchronize()
    return {"launches": len(calls), "left_out": left_out}


def convolution(layer: Any, latents: int) -> dict[str, Any]:
    case = bench_vae_layers.Convolution(layer, latents, torch.bfloat16)
    return launched({name: functools.partial(call, 0) for name, call in layers.ours([case]).items()})


def attend(tiny: bool, name: str) -> dict[str, Any]:
    layer = attention.layer(attention.shapes(tiny)[name], 0)
    return launched({name: functools.partial(run, layer) for name, run in attention.ours(layer).items()})


def op(name: str, size: kit.Size) -> dict[str, Any]:
    case = right.case_of(name, size)
    return launched({"op": functools.partial(case.variants(None)["op"], case.layers[0])})


def step(tiny: bool) -> dict[str, Any]:
    """A whole model takes seconds to make; one chunk of it has every kernel of a step and of a commit."""
    return launched({"chunks": captured.Pool(tiny, 1, captured=False).chunks})


def block(tiny: bool) -> dict[str, Any]:
    layer = bench_block.Layer(preset("demo" if tiny else "rest-512"), torch.bfloat16, 0)
    return launched({"block": layer.ours})


def decoded(tiny: bool, latents: int) -> dict[str, Any]:
    chunk = decode.chunk("0.9.5", tiny)
    stream = chunk.vae.stream(mode=chunk.case.mode)
    pieces = [z[:, :, :latents] for z in chunk.latents[:2]]
    return launched({"decode": lambda: [stream.decode(z) for z in pieces]})
