"""Our decode of a chunk against diffusers' decoder, channels last, with the same weights.

Three latents in one call and one at a time. Called as usual, where a slow host counts, and in graphs, where what can be
captured is. diffusers' decoder is not compiled: that takes minutes, which ``PART=vae`` has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import graphs, kit
from benchmarks.bench_vae import CHUNK, Case, Chunk, Decode

RELEASES = ("0.9.5", "0.9.1")


def jobs(tiny: bool) -> dict[str, Any]:
    """A capture that fails may take the device with it: it comes after what is called as usual."""
    return {
        f"{release}, {way.__name__}": functools.partial(measure, release, way, tiny)
        for release in RELEASES
        for way in (called, captured)
    }


def chunk(release: str, tiny: bool) -> Chunk:
    return Chunk(Case(release, "causal", 16, 32, brief=True) if tiny else Case(release, "causal", brief=True))


def streams(chunk: Chunk) -> dict[str, Callable[[], Decode]]:
    """Ours, which a chunk may enter whole or latent by latent."""

    def singly() -> Decode:
        stream = chunk.vae.stream(mode=chunk.case.mode)
        return lambda z: torch.cat([stream.decode(piece) for piece in z.split(1, 2)], 2)

    whole = chunk.streams()
    return {"ours": whole["ours"], "ours, uint8": whole["ours, uint8"], "ours, one latent a call": singly}


def measure(release: str, way: Callable[..., dict[str, Any]], tiny: bool) -> dict[str, Any]:
    torch.backends.cudnn.benchmark = True  # for everyone
    found = chunk(release, tiny)
    clips, left_out = found.clips(compile_peers=False)
    own = streams(found)
    errors = found.check({"ours": own["ours"]}, clips)
    calls = found.calls({name: own[name] for name in ("ours", "ours, uint8")}, clips)
    decode = own["ours, one latent a call"]()
    for z in found.latents[:2]:
        decode(z)
    calls["ours, one latent a call"] = lambda i: decode(found.latents[i])
    about = {"frames_new": 8 * CHUNK, "errors": {name: float(f"{off:.2g}") for name, off in errors.items()}}
    return about | {"left_out": left_out} | way(calls, tiny)


def called(calls: dict[str, kit.Call], tiny: bool) -> dict[str, Any]:
    return kit.report(kit.interleaved(calls, budget=0.1 if tiny else 2.0, least=2 if tiny else 7), "ours")


def captured(calls: dict[str, kit.Call], tiny: bool) -> dict[str, Any]:
    found, left_out = graphs.interleaved(calls, kit.LAYERS, rounds=2 if tiny else 5)
    return {"not_captured": left_out} | (kit.report(found, next(iter(found))) if found else {})
