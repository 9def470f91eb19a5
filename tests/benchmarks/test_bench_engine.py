"""The engine's benches on the toy model, and tables of what they store."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.kit.bench import module, script

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
bench, tables = module("bench_engine"), script("engine_tables")
FEW = bench.Options(chunks=2, crowd=2, rounds=1, seconds=1.4)


@pytest.fixture
def benchmark_of(model, avatar, monkeypatch):
    """In place of pytest-benchmark's fixture, with the toy model and few rounds."""
    monkeypatch.setattr(bench, "place", lambda: (model, avatar))
    monkeypatch.setattr(bench, "OPTIONS", FEW)
    monkeypatch.setattr(bench, "TURNS", FEW)
    found = types.SimpleNamespace(extra_info={}, stats=None)
    found.pedantic = lambda call, args=(), rounds=1: call(*args)
    return found


def test_what_a_chunk_stores(benchmark_of):
    bench.test_chunk_by_turns(benchmark_of)
    found = benchmark_of.extra_info
    assert set(found["variants"]) == {"engine", "apart", "batched", "reference"} and found["rounds"] == 2
    assert set(found["ratios"]) == {f"{way}_over_engine" for way in ("apart", "batched", "reference")}


def test_what_several_sessions_store(benchmark_of):
    bench.test_crowd(benchmark_of, 2)
    info = {"name": "crowd[2]", **benchmark_of.extra_info}
    assert tables.crowd_table([info]).splitlines()[2].startswith("| 2 | engine | ")


def test_what_viewers_store(benchmark_of, monkeypatch):
    monkeypatch.setattr(bench, "OPTIONS", dataclasses.replace(FEW, seconds=0.5))
    bench.test_viewers(benchmark_of, 1)
    json.dumps(benchmark_of.extra_info)
    assert [row["way"] for row in benchmark_of.extra_info["viewers"]] == list(bench.SERVED)
    assert len(tables.viewers_table([benchmark_of.extra_info]).splitlines()) == 2 + 3


# -- tables


def info(name: str, **variants: float) -> dict:
    times = {way: {"median_us": us, "p95_us": us + 2e3, "p99_us": us + 3e3} for way, us in variants.items()}
    return {"name": name, "rounds": 9, "variants": times}


def test_tables():
    results = [
        info("chunk", engine=150e3),
        info("interrupt", engine=120e3, apart=250e3),
        info("chunk_by_turns", engine=1e4),
        info("parts", decode=2e3),
    ]
    assert tables.waits_table(results).splitlines()[2:] == [
        "| a chunk, from its sound | 9 | 150 | 152 | 153 | 2 |",
        "| first new frame after an interrupt | 9 | 120 | 122 | 123 | 2 |",
        "| first new frame after an interrupt, apart | 9 | 250 | 252 | 253 | 2 |",
    ]
    assert tables.turns_table(results).splitlines()[2:] == [
        "| engine | 9 | 10 | 12 | 13 |",
        "| of it: decode | 9 | 2 | 4 | 5 |",
    ]


def test_viewers_who_got_nothing():
    row = {"sessions": 16, "way": "apart", "deadlines_met": 0.0, "unserved": 16, "underruns": 0, "stalled_s": 0.0}
    line = tables.viewers_table([{"viewers": [row]}]).splitlines()[2]
    assert line == "| 16 | apart | 0.0% | 16 | 0 | 0 | - | - | - | - |"


def test_memory_in_words():
    assert tables.memory([{"memory": {"rss_anon_mib": 8.4, "cuda_mib": None}}]) == "8 MiB"
    assert tables.memory([{"memory": {"rss_anon_mib": 8.4, "cuda_mib": 1640.0}}]) == "8 MiB, 1640 MiB of the GPU"


@pytest.mark.slow
def test_the_suite_from_end_to_end(tmp_path):
    """The demo, through pytest-benchmark into a file that it reads again."""
    out = tmp_path / "out.json"
    command = [BIN / "pytest", "benchmarks/bench_engine.py", "-q", "--benchmark-only", f"--benchmark-json={out}"]
    variables = os.environ | {"BENCH_ROUNDS": "2"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([BIN / "pytest-benchmark", "compare", out], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\ntest_") >= 11, done.stdout + done.stderr
