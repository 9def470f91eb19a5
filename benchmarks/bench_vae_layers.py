"""Every convolution of the LTX-Video decoders at 512 x 512 by itself, with all that its store does, on each backend.

What a dispatcher's table can be filled from: ``python benchmarks/vae_tables.py STORED --layers FILE``. On a CPU the
widths are an eighth and the pictures a quarter of that, to see that it runs.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import asdict

import pytest
import torch

from benchmarks import kit, vae_peers, vae_stages
from benchmarks.bench_vae import CHUNK, DTYPE, ON_GPU, RELEASES, roof, settings
from benchmarks.roofline import Work
from rest_fast import ops
from rest_fast.ops.memory_layouts import haloed

__all__ = ["settings"]  # a fixture, used by being here


def distinct(shrink: int, side: int) -> list[vae_stages.Layer]:
    """Each convolution of the decoders of both releases that differs in more than its noise."""
    found: dict[tuple, vae_stages.Layer] = {}
    for release in RELEASES:
        config = vae_peers.config(release, causal=True, shrink=shrink)
        for layer in vae_stages.layers(config, side // config.spatial, side // config.spatial):
            found.setdefault((layer.stage, layer.residual), layer)
    return list(found.values())


LAYER_CASES = [(layer, n) for layer in distinct(1, 512) for n in (1, CHUNK)] if ON_GPU else [
    (layer, CHUNK) for layer in distinct(8, 128)
]  # fmt: skip


class Convolution:
    """A layer's tensors where the decoder has them, and its call."""

    def __init__(self, layer: vae_stages.Layer, latents: int, dtype: torch.dtype, seed: int = 0):
        self.layer, device = layer, kit.device()
        generator = torch.Generator(device).manual_seed(seed)
        shape = (1, layer.channels, layer.frames * latents, layer.rows, layer.columns)
        frames, (p1, p2, p3) = shape[2], layer.factors
        cells = p1 * p2 * p3
        made = (1, layer.outputs // cells, frames * p1, layer.rows * p2, layer.columns * p3)

        def place(*shape: int) -> torch.Tensor:
            if device.type == "cuda":
                return haloed(shape, dtype=dtype, device=device)  # type: ignore[arg-type]
            return torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        def last(x: torch.Tensor) -> torch.Tensor:
            return x.contiguous(memory_format=torch.channels_last_3d)

        self.buffer, self.history = place(*shape[:2], frames + 2, *shape[3:]), place(*shape[:2], 2, *shape[3:])
        self.buffer[:, :, 2:] = draw(*shape)
        self.history.copy_(draw(*self.history.shape))
        self.weight = last(draw(layer.outputs, layer.channels, 3, 3, 3) / (27 * layer.channels) ** 0.5)
        self.bias = 0.1 * draw(layer.outputs)
        added = shape[1] if cells > 1 else layer.outputs
        self.residual = last(draw(1, added, *shape[2:])) if layer.residual else None
        self.out = last(draw(*made)) if layer.out else None
        self.normed = place(*made[:2], made[2] + 2, *made[3:])[:, :, 2:] if layer.normed else None
        self.frames, self.made = frames, made

    def __call__(self) -> None:
        ops.causal_conv3d(
            self.buffer, self.history, self.weight, self.bias, None, None, self.residual, None, None, self.out,
            self.normed, None, factors=list(self.layer.factors), drop=0, keep=self.frames, first=False, reflect=False,
            eps=1e-8,
        )  # fmt: skip

    def results(self, backend: str) -> list[torch.Tensor]:
        """What a call leaves, from the same start."""
        history = self.history.clone()
        with ops.use_backend(backend):
            self()
        found = [x.clone() for x in (self.out, self.normed, self.history) if x is not None]
        self.history.copy_(history)
        return found

    def exact(self) -> list[torch.Tensor]:
        """The same numbers in a higher precision."""
        wide, higher = object.__new__(Convolution), torch.float32 if ON_GPU else torch.float64
        for name, value in vars(self).items():
            setattr(wide, name, value.to(higher) if isinstance(value, torch.Tensor) else value)
        return wide.results("reference")

    def backends(self) -> list[str]:
        """Those that take the call, but for the reference where there is another."""
        names = []
        for backend in ops.causal_conv3d.backends[:-1]:
            with contextlib.suppress(ops.OpError), ops.use_backend(backend.name):
                self()
                names.append(backend.name)
        return names if len(names) > 1 else [*names, "reference"]


@pytest.mark.parametrize(("layer", "latents"), LAYER_CASES, ids=lambda v: v.stage if hasattr(v, "stage") else str(v))
def test_layer(benchmark, layer, latents):
    copies = [Convolution(layer, latents, DTYPE, seed) for seed in range(kit.LAYERS)]
    names = copies[0].backends()
    results = {name: copies[0].results(name) for name in [*names, "reference"]}
    kit.gate(results, copies[0].exact(), "reference")

    def call(i: int, name: str) -> None:
        with ops.use_backend(name):
            copies[i]()

    calls = {name: functools.partial(call, name=name) for name in names}
    times = kit.interleaved(calls, budget=0.5)
    work = Work(torch.finfo(DTYPE).bits // 8 * layer.numbers(latents), layer.flop(latents))
    about = {"layer": {**asdict(layer), "ends": layer.ends}, "latents": latents, "dtype": kit.NAMES[DTYPE]}
    about |= {"ideal_us": roof(DTYPE).least_us(work), "flop": work.flop, "bytes": work.bytes}
    kit.store(benchmark, times, names[0], calls[names[0]], **about)
