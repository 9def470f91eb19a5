"""What the benchmarks share: sizes, the gate before timing, variants that take turns, what is stored.

    python benchmarks/kit.py benchmarks/results/ops_cpu.json     # any stored result as tables (stored.py)

``BENCH_ROUNDS=2`` times every variant twice and no more: to see whether a bench runs, not how fast.
``BENCH_CLOCK=cpu``, with one thread, counts the time that the thread computes: for a machine that others keep busy.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

LAYERS = (
    4  # copies of every buffer, taken in turn as the layers of a step are: no call finds warm what the last one left
)
LONG = 0.5  # seconds of a round, above which the first one is warm-up enough
FLUSH = 256 << 20  # bytes written between two timed calls on a GPU: several times its L2
CACHED = 64 << 20  # bytes of all copies together that a CPU may keep in its caches
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
CLOCKS = {"wall": time.perf_counter_ns, "cpu": time.thread_time_ns}

Call = Callable[[int], Any]  # one variant on copy i of the buffers


@dataclass(frozen=True)
class Size:
    """Shapes of a preset, as its denoising steps and its decoder have them."""

    heads: int
    side: int  # latent rows and columns
    head_dim: int = 64
    frames: int = 3  # latent frames of a chunk
    lanes: int = 2  # one session with guidance
    depth: int = 1  # layers in one cache tensor
    channels: int = 128  # of a latent
    audio: int = 2  # audio tokens of a latent frame
    text: int = 0  # text tokens
    conv: tuple[int, int, int] = (64, 4, 32)  # channels, frames, side of a decoder stage
    norm: tuple[int, int, int] = (64, 4, 32)
    upsampled: tuple[int, int, int] = (96, 4, 32)
    factors: tuple[int, int, int] = (2, 4, 4)
    pixels: tuple[int, int] = (8, 128)  # frames and side of a block of video
    maps: tuple[int, int, int] = (32, 24, 40)  # channels, frames, side of the motion VAE's, at any size of pictures

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def cells(self) -> int:
        """Tokens of a latent frame."""
        return self.side**2

    @property
    def tokens(self) -> int:
        """Tokens of a chunk."""
        return self.frames * self.cells

    @property
    def slots(self) -> int:
        """Reference, one chunk of context, current chunk."""
        return self.cells + 2 * self.tokens


SIZES = {
    "demo": Size(heads=3, side=4, depth=6, audio=4),
    "rest-512": Size(
        heads=32,
        side=16,
        depth=4,  # of 28: already far larger than any cache
        text=128,
        conv=(512, 2, 32),
        norm=(128, 8, 128),
        upsampled=(1024, 4, 64),
        factors=(2, 2, 2),
        pixels=(8, 512),
        maps=(64, 24, 16),
    ),
}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# -- the gate


def gate(
    results: dict[str, Sequence[torch.Tensor]],
    exact: Sequence[torch.Tensor],
    eager: str,
    *,
    units: float = 8,
    times: float = 8,
) -> None:
    """Raise unless every variant computes the same thing: a fast wrong answer is no result.

    ``results`` maps variants to what they computed, ``exact`` is the same in higher precision. The variant ``eager``
    may be off by ``units`` of its precision (root mean square), the others by so many ``times`` what it is off, or
    one unit. This finds a wrong answer; precision is the tests' matter.
    """
    unit = {n: _unit(x.dtype) for n, x in enumerate(results[eager])}
    judge(errors(results, exact), eager, unit, units, times)


Errors = dict[str, list[float]]  # variant -> root mean square of each result's error, over that of the result


def errors(results: dict[str, Sequence[torch.Tensor]], exact: Sequence[torch.Tensor]) -> Errors:
    sizes = [_rms(truth) or 1.0 for truth in exact]
    return {
        name: [_rms(got.double() - truth.double()) / size for got, truth, size in zip(outputs, exact, sizes)]
        for name, outputs in results.items()
    }


def judge(found: Errors, eager: str, unit: Mapping[int, float], units: float, times: float | None = None) -> None:
    """Raise unless ``eager`` is off by at most so many ``units``, the others by so many ``times`` that, or one unit.

    ``times``: as many as ``units`` where None.
    """
    times = units if times is None else times
    for n, allowed in enumerate(found[eager]):
        for name, off in found.items():
            limit = units * unit[n] if name == eager else times * max(allowed, unit[n])
            if not off[n] <= limit:
                raise AssertionError(f"{name}: result {n}: expected an error of at most {limit:.2g}, got {off[n]:.2g}")


def _unit(dtype: torch.dtype) -> float:
    """Relative size of one rounding; of an integer, some neighbour here and there."""
    return torch.finfo(dtype).eps if dtype.is_floating_point else 1e-4


def _rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a variant, for these shapes only. The gate makes the first call, so compiling is never timed."""
    torch._dynamo.reset()  # a new case is no recompilation of the last one
    return torch.compile(function, dynamic=False)


def without_failures(runs: dict[str, Any], names: Iterable[str], call: Callable[[Any], Any]) -> dict[str, str]:
    """Take out of ``runs`` those of these variants that raise when called; variant -> why.

    A compiler that is missing, or cannot compile this, is no result and no failure either.
    """
    left_out = {}
    for name in set(names) & set(runs):
        try:
            call(runs[name])
        except Exception as e:
            left_out[name] = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"[:300]
            del runs[name]
    return left_out


# -- timing


def interleaved(variants: dict[str, Call], *, budget: float = 2.0, least: int = 5, most: int = 400) -> dict[str, Any]:
    """Microseconds of every round, the variants taking turns, so that a busy machine is busy for all of them.

    The order changes from round to round, and what takes one copy of its data at a time takes another than the variant
    before it: whoever came second on the same copy would find it in the cache.
    As many rounds as fit into ``budget`` seconds, within ``least`` and ``most``; ``BENCH_ROUNDS`` overrides.
    """
    clock, seconds = stopwatch(), 0.0
    for i in range(LAYERS):  # touches all copies; dispatch has decided at the gate
        if seconds < LONG:
            start = time.perf_counter()
            for call in variants.values():
                clock(call, i)
            seconds = time.perf_counter() - start
    fitting = int(os.environ.get("BENCH_ROUNDS") or min(max(budget / seconds, least), most))
    times: dict[str, list[float]] = {name: [] for name in variants}
    names, shuffled = list(variants), random.Random(0)
    for i in range(fitting):
        shuffled.shuffle(names)
        for turn, name in enumerate(names):
            times[name].append(clock(variants[name], (i + turn) % LAYERS))
    return times


def stopwatch() -> Callable[[Call, int], float]:
    """Microseconds of one call. On a GPU by events, behind a large write: cold L2, and the launch is not waited for."""
    if device().type == "cpu":
        now = host_clock()

        def span(call: Call, i: int) -> float:
            start = now()
            call(i)
            return (now() - start) / 1e3

        return span
    scratch = torch.empty(FLUSH, dtype=torch.uint8, device=device())

    def events(call: Call, i: int) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        scratch.zero_()
        start.record()
        call(i)
        stop.record()
        stop.synchronize()
        return 1e3 * start.elapsed_time(stop)

    return events


def cold(moved: int) -> bool:
    """Whether calls that take turns over so many bytes find them in memory, so that its rate limits them."""
    return device().type == "cuda" or moved > CACHED


def host_clock() -> Callable[[], int]:
    """Nanoseconds on the host: of the wall, or of this thread alone, which is the whole only if there is no other."""
    name = os.environ.get("BENCH_CLOCK", "wall")
    if name not in CLOCKS or (name == "cpu" and torch.get_num_threads() > 1):
        raise ValueError(
            f"BENCH_CLOCK: expected wall, or cpu with one thread, got {name} with {torch.get_num_threads()}"
        )
    return CLOCKS[name]


def summary(times: Iterable[float]) -> dict[str, float]:
    """Median, tails, and the spread between the quartiles as a share of the median."""
    values = np.array(list(times))
    p25, p50, p75, p95, p99 = (float(v) for v in np.percentile(values, [25, 50, 75, 95, 99]))
    spread = (p75 - p25) / p50 if p50 else math.nan
    return {k: round(v, 1) for k, v in (("median_us", p50), ("p95_us", p95), ("p99_us", p99))} | {
        "spread": round(spread, 3)
    }


def report(times: dict[str, list[float]], base: str) -> dict[str, Any]:
    """What is stored of a run: each variant, and how many times longer than ``base`` the others take (medians)."""
    variants = {name: summary(t) for name, t in times.items()}
    medians = {name: float(np.median(t)) for name, t in times.items()}
    ratios = {f"{name}_over_{base}": round(m / medians[base], 2) for name, m in medians.items() if name != base}
    return {"base": base, "rounds": len(times[base]), "variants": variants, "ratios": ratios}


def store(benchmark: Any, times: dict[str, list[float]], base: str, call: Call, **about: Any) -> None:
    """Put a run into the benchmark's ``extra_info``. What pytest-benchmark shows and compares is the base alone, in
    the same rounds: a call that took no turns with the others would be another measurement."""
    if device().type == "cpu" and host_clock() is CLOCKS["cpu"]:
        about["note"] = "a thread's own time, beside other work on the machine"
    benchmark.extra_info |= {**about, "device": str(device()), **report(times, base)}
    benchmark.pedantic(call, args=(0,), rounds=1)
    if benchmark.stats is not None:  # as with --benchmark-disable
        benchmark.stats.stats.data[:] = [us / 1e6 for us in times[base]]


def main() -> None:
    from stored import main  # beside this file, which is run as one here

    main()


if __name__ == "__main__":
    main()
