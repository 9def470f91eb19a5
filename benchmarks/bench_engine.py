"""What viewers of the demo wait for: the engine, and its peers in the same run (``rest_fast.latency``).

``BENCH_ROUNDS=2`` makes two chunks of each and watches for two seconds: to see whether it runs.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest

import rest_fast
from benchmarks import kit
from rest_fast.avatar import Avatar
from rest_fast.latency import measures
from rest_fast.latency.measures import EXCLUDED, Options, Seconds
from rest_fast.latency.ways import WAYS
from rest_fast.model import ASSETS, Model

FEW = int(os.environ.get("BENCH_ROUNDS") or 0)
OPTIONS = (
    Options(chunks=FEW, crowd=FEW, rounds=FEW, seconds=float(FEW))
    if FEW
    else Options(chunks=1000, crowd=200, rounds=20, seconds=30.0)
)
TURNS = Options(chunks=FEW or 60)  # chunks of each way, where ways take turns
MANY = (2,) if FEW else (2, 4, 8, 16)
SERVED = ("engine", "apart", "batched")


@functools.cache
def place() -> tuple[Model, Avatar]:
    """The demo, when nothing has to be made for the first time any more."""
    model = rest_fast.load("demo")
    avatar = model.prepare(ASSETS / "demo" / "portrait.png", crop="center")
    measures.chunk_cold(model, avatar, Options(rounds=1))
    return model, avatar


def store(benchmark: Any, seconds: dict[str, Seconds], base: str, **about: Any) -> None:
    """The base's times as those of the bench."""
    times = {name: [1e6 * one for one in found] for name, found in seconds.items()}
    kit.store(benchmark, times, base, lambda i: None, excluded=EXCLUDED, **about)


def test_memory(benchmark):
    """First: what the process has freed before would be used again. The time is that of the measure."""
    found: dict[str, float | None] = {}
    benchmark.pedantic(lambda: found.update(measures.memory(*place(), OPTIONS)), rounds=1)
    benchmark.extra_info |= {"memory": found}


def test_chunk_by_turns(benchmark):
    store(benchmark, measures.chunk_warm(*place(), TURNS, tuple(WAYS)), "engine")


def test_chunk(benchmark):
    store(benchmark, measures.chunk_warm(*place(), OPTIONS), "engine")


def test_chunk_cold(benchmark):
    store(benchmark, {"engine": measures.chunk_cold(*place(), OPTIONS)}, "engine")


def test_parts(benchmark):
    store(benchmark, measures.parts(*place(), TURNS), "denoise")


def test_first_frame(benchmark):
    store(benchmark, measures.first_frame(*place(), OPTIONS), "from its sound")


def test_onset(benchmark):
    store(benchmark, measures.onset(*place(), OPTIONS), "from its sound")


def test_interrupt(benchmark):
    store(benchmark, {way: measures.interrupt(*place(), OPTIONS, way) for way in ("engine", "apart")}, "engine")


@pytest.mark.parametrize("count", MANY)
def test_crowd(benchmark, count):
    found = {way: measures.crowd(*place(), OPTIONS, count, way) for way in SERVED}
    rates = {way: round(one["chunks_per_second"], 3) for way, one in found.items()}
    seconds = {way: one["seconds"] for way, one in found.items()}
    store(benchmark, seconds, "engine", sessions=count, chunks_per_second=rates)


@pytest.mark.parametrize("count", (1, *MANY))
def test_viewers(benchmark, count):
    """The time of the bench is that of all ways together, and means nothing."""
    found: list[dict[str, Any]] = []
    benchmark.pedantic(lambda: found.extend(measures.live(*place(), OPTIONS, count, way) for way in SERVED), rounds=1)
    rows = [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in found]
    benchmark.extra_info |= {"viewers": rows, "excluded": EXCLUDED}
