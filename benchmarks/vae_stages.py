"""Where a decode's time goes: convolutions of a decoder with their FLOP and bytes, and clocks around its stages.

Ideal is the larger of two times: FLOP at the rate of this machine's matrix product, and bytes at that of its copy,
where weights, inputs, results and residuals are moved once each.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks import kit
from benchmarks.roofline import Roof, Work
from rest_fast.config import STRIDES, ConvVAEConfig
from rest_fast.models.vae.ltx import ConvDecoder, Upsampler

TAPS = 27


@dataclass(frozen=True)
class Layer:
    """One convolution in a stream; frames, rows and columns of one latent. ``outputs`` before depth to space.

    ``out``: its result is needed as it is; ``normed``: after the next norm and SiLU; ``pixels``: it ends the decoder.
    """

    stage: str
    channels: int
    outputs: int
    frames: int
    rows: int
    columns: int
    factors: tuple[int, int, int] = (1, 1, 1)
    residual: bool = False
    noise: bool = False
    out: bool = True
    normed: bool = True
    pixels: bool = False

    @property
    def ends(self) -> str:
        """What its store does, in words."""
        parts = {"noise": self.noise, "depth to space": self.factors != (1, 1, 1), "residual": self.residual}
        parts |= {"out": self.out, "normed": self.normed}
        return ", ".join(name for name, there in parts.items() if there)

    def flop(self, latents: int) -> int:
        return 2 * TAPS * self.channels * self.outputs * self.frames * self.rows * self.columns * latents

    def numbers(self, latents: int) -> int:
        """Weights, input, residual and results, each once."""
        pixels = self.frames * self.rows * self.columns * latents
        upsamples = self.factors != (1, 1, 1)
        added = (self.channels if upsamples else self.outputs) if self.residual else 0
        moved = self.channels + added + self.outputs * (self.out + self.normed)
        return TAPS * self.channels * self.outputs + pixels * moved


def layers(config: ConvVAEConfig, rows: int, columns: int) -> list[Layer]:
    """Every convolution of a decoder without blocks that change the width, for latents of this grid."""
    assert not config.decoder_widen
    frames, width = 1, config.decoder_channels[0]
    found = [Layer("conv_in", config.latent_channels, width, frames, rows, columns)]
    for i, count in enumerate(config.decoder_layers):
        if i > 0:
            found[-1] = replace(found[-1], normed=False)  # an upsampler reads what was stored
            stride, after = STRIDES[config.decoder_up[i - 1]], config.decoder_channels[i]
            size = (width, after * prod(stride), frames, rows, columns)
            found.append(Layer(f"up{i - 1}", *size, factors=stride, residual=config.decoder_residual))
            frames, rows, columns, width = frames * stride[0], rows * stride[1], columns * stride[2], after
        size, noise = (width, width, frames, rows, columns), config.decoder_noise[i]
        found += [
            Layer(f"S{i}", *size, noise=noise, out=False),
            Layer(f"S{i}", *size, noise=noise, residual=True),
        ] * count
    found[-1] = replace(found[-1], out=False)
    p = config.patch_size
    size = (width, 3 * p * p, frames, rows, columns)
    return [*found, Layer("conv_out", *size, factors=(1, p, p), normed=False, pixels=True)]


@dataclass(frozen=True)
class Stage:
    """What one stage of a piece has to do."""

    name: str
    convolutions: int
    shape: tuple[int, int, int]  # rows, columns, frames
    work: Work


def stages(config: ConvVAEConfig, latents: int, rows: int, columns: int, element: int) -> list[Stage]:
    """The stages of a decode of so many latents, numbers of ``element`` bytes."""
    found: dict[str, list[Layer]] = {}
    for layer in layers(config, rows, columns):
        found.setdefault(layer.stage, []).append(layer)
    result = []
    for name, parts in found.items():
        first = parts[0]
        shape = first.rows, first.columns, first.frames * latents
        work = Work(element * sum(p.numbers(latents) for p in parts), sum(p.flop(latents) for p in parts))
        result.append(Stage(name, len(parts), shape, work))
    return result


# -- clocks


class Clock:
    """Spans of the stages of one pass; on a GPU by events, which are read after the pass has ended."""

    def __init__(self, parts: Iterable[tuple[str, Any, str]]):
        """``parts``: stage, module, name of the method that runs it."""
        self.parts, self.spans = list(parts), []
        self.now: Callable[[], Any] = _event if kit.device().type == "cuda" else time.perf_counter_ns

    def split(self, run: Callable[[], Any]) -> dict[str, float]:
        """Microseconds of each stage, of ``rest`` (copies, launches, what lies between) and of the ``whole``."""
        self.spans = []
        with self._patched():
            start = self.now()
            run()
            stop = self.now()
        whole = _between(start, stop)
        found: dict[str, float] = {}
        for stage, begun, ended in self.spans:
            found[stage] = found.get(stage, 0.0) + _between(begun, ended)
        return found | {"rest": whole - sum(found.values()), "whole": whole}

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for stage, module, name in self.parts:
                stack.enter_context(mock.patch.object(module, name, self._timed(stage, getattr(module, name))))
            yield

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = function(*args, **kwargs)
            self.spans.append((stage, start, self.now()))
            return result

        return timed


def our_parts(decoder: ConvDecoder) -> list[tuple[str, nn.Module, str]]:
    """Each block's pass in place. Norms belong to the convolution that writes them."""
    parts: list[tuple[str, nn.Module, str]] = [("conv_in", decoder.conv_in, "step")]
    for block, stage in zip(decoder.blocks, decoder.stages, strict=True):
        parts.append((f"up{stage - 1}" if isinstance(block, Upsampler) else f"S{stage}", block, "step"))
    return [*parts, ("conv_out", decoder.conv_out, "step")]


def their_parts(decoder: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """The same of diffusers' decoder; its last norm and the rearranging of patches are its ``rest``."""
    parts = [("conv_in", decoder.conv_in, "forward")]
    parts += [("S0", resnet, "forward") for resnet in decoder.mid_block.resnets]
    for i, block in enumerate(decoder.up_blocks):
        parts.append((f"up{i}", block.upsamplers[0], "forward"))
        parts += [(f"S{i + 1}", resnet, "forward") for resnet in block.resnets]
    return [*parts, ("conv_out", decoder.conv_out, "forward")]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, stop: Any) -> float:
    if isinstance(start, int):
        return (stop - start) / 1e3
    stop.synchronize()
    return 1e3 * start.elapsed_time(stop)


# -- what is stored


def stage_rows(found: list[Stage], roof: Roof, medians: dict[str, dict[str, float]], base: str) -> list[dict[str, Any]]:
    """A row for each stage, and one for all: what is stored."""
    rows = []
    for stage in found:
        ideal = roof.least_us(stage.work)
        row = {"stage": stage.name, "convolutions": stage.convolutions, "shape": list(stage.shape)}
        row |= {"gflop": stage.work.flop / 1e9, "mbytes": stage.work.bytes / 1e6, "ideal_us": ideal}
        rows.append(row | {"us": {name: split[stage.name] for name, split in medians.items()}})
    whole: dict[str, Any] = {"stage": "all", "convolutions": sum(r["convolutions"] for r in rows), "shape": []}
    whole |= {key: sum(r[key] for r in rows) for key in ("gflop", "mbytes", "ideal_us")}
    rows.append(whole | {"us": {name: split["whole"] for name, split in medians.items()}})
    for row in rows:
        row["of_roof"] = row["ideal_us"] / row["us"][base]
    return rows
