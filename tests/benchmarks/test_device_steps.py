"""What the GPU suite's short part runs on a device, rehearsed on the CPU; times in graphs; the table of products."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
import torch

from tests.cuda_shim import built
from tests.kernels.fitness import unfit
from tests.kit.bench import BENCHMARKS, module

graphs, kit = module("graphs"), module("kit")
products, right, run = (module(f"device.{name}") for name in ("products", "right", "run"))
evidence = module("gpu_suite.evidence")
SLOW = {"decode", "block", "flashhead"}  # diffusers and torch.compile are imported; a model of many layers
PROGRAMS = ("compile", "right", "captured", "engine", "attention", "products", "layers", "decode", "block", "flashhead")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Where the evidence of a step of that name lies, and what it is."""

    def of(name: str) -> evidence.Evidence:
        found = evidence.Evidence(tmp_path / "part.jsonl", name, "digest")
        for key, value in found.environment().items():
            monkeypatch.setenv(key, value)
        return found

    return of


@pytest.mark.skipif(torch.cuda.is_available(), reason="compiles kernels on a GPU")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in PROGRAMS])
def test_a_rehearsal(name, written):
    here = written(name)
    assert run.main([name, "--tiny"]) == 0
    progress = here.progress()
    assert progress.jobs == len(progress.found) > 0 and not progress.failed
    if name in ("attention", "products", "layers"):
        assert all(line["variants"] and line["ratios"] is not None for line in progress.found.values())


def test_programs_are_those_of_the_suite():
    files = {path.stem for path in (BENCHMARKS / "device").glob("*.py")}
    assert files == {*PROGRAMS, "run"}


def test_every_op_is_checked_at_real_sizes():
    found = right.jobs(tiny=False)
    assert set(module("bench_ops").TABLE) <= set(found) and len(found) > 30
    assert len(right.convolutions(False)) == 2 * len(module("bench_vae_layers").distinct(1, 512)), "names are unique"


def test_a_wrong_result_is_a_failure_with_its_numbers():
    exact = [torch.linspace(-1, 1, 100, dtype=torch.float64)]
    rounded = [exact[0].bfloat16()]
    good = right.verdict({"op": rounded, "eager": rounded}, exact, "eager")
    assert 2**-10 < good["largest"]["op"][0] < 2**-8
    assert "failed" not in good and good["errors"]["op"][0] < good["at_most"][0]
    bad = right.verdict({"op": [rounded[0] * 1.02], "eager": rounded}, exact, "eager")
    assert bad["failed"].startswith("op: result 0: expected an error of at most") and bad["errors"]["op"][0] > 0.01


def test_workers_share_the_jobs(tmp_path):
    """Each is run once, whoever does it; one that fails is a line and an exit code."""
    text = f"""
import os, sys, types
sys.path.insert(0, {str(BENCHMARKS.parent)!r})
from benchmarks.device import run
from benchmarks import device
def job(n): return {{"by": os.getpid(), "answer": 1 / (n - 3)}}
fake = types.ModuleType("benchmarks.device.fake")
fake.jobs = lambda tiny: {{str(n): (lambda n=n: job(n)) for n in range(6)}}
sys.modules["benchmarks.device.fake"] = fake
raise SystemExit(run.main(["fake", "--tiny", "--workers", "2"]))
"""
    path = tmp_path / "program.py"
    path.write_text(text)
    here = evidence.Evidence(tmp_path / "part.jsonl", "fake", "digest")
    done = subprocess.run([sys.executable, path], env=os.environ | here.environment(), capture_output=True, text=True)
    progress = here.progress()
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in here.path.read_text().splitlines()]
    assert sorted(line["name"] for line in lines if "name" in line) == list("012345")
    assert list(progress.failed) == ["3"] and "ZeroDivisionError" in progress.failed["3"]


def test_without_a_device_real_sizes_are_refused(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(SystemExit):
        run.main(["products"])
    assert "expected a CUDA device, got none" in capsys.readouterr().err


# --- what only a GPU takes, in Triton's interpreter ---

INTERPRETED = """
import torch
from tests.kit.bench import module
from rest_fast.ops.memory_layouts import haloed
attention, layers, bench = (module(n) for n in ("device.attention", "device.layers", "bench_vae_layers"))
kit = module("kit")
torch.set_grad_enabled(False)
attention.DTYPE = torch.float16
layer = attention.layer(attention.shapes(True)["demo"], 0)
runs = attention.ours(layer)
assert len(runs) == 5, runs
results = {}
for name, run in runs.items():
    layer.out.fill_(torch.nan)
    results[name] = [run(layer).clone()]
kit.gate(results, [layer.exact()], "op")
for one in bench.distinct(8, 32)[:3]:
    case = bench.Convolution(one, 1, torch.float16)
    for name in ("buffer", "history", "normed"):
        x = getattr(case, name)
        if x is not None:
            room = 2 * (name == "normed")  # its buffer has frames in front
            shape = (*x.shape[:2], x.shape[2] + room, *x.shape[3:])
            setattr(case, name, haloed(shape, dtype=x.dtype, device=x.device)[:, :, room:].copy_(x))
    calls = layers.ours([case])
    assert len(calls) == 3, calls
    wanted = layers.left_by(calls["ours"], case)
    for call in calls.values():
        assert all(map(torch.equal, layers.left_by(call, case), wanted))
"""


@pytest.mark.skipif(bool(unfit()), reason=unfit() or "the interpreter works")
def test_our_plans_compute_the_same(tmp_path):
    variables = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(words, capture_output=True, text=True, env=variables, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr[-3000:]


# --- evidence ---


def test_a_line_that_was_cut_costs_no_other(tmp_path):
    here = evidence.Evidence(tmp_path / "a.jsonl", "step", "digest")
    here.left("ab")
    here.add("a", {"us": 1})
    with here.path.open("a") as file:
        file.write('{"step": "step", "digest": "di')
    here.add("b", {"us": 2})
    assert here.progress().found == {"a": {"us": 1}, "b": {"us": 2}} and str(here.progress()) == "2 of 2"


def test_what_failed_comes_back_last(tmp_path):
    here = evidence.Evidence(tmp_path / "a.jsonl", "step", "digest")

    def broken():
        raise RuntimeError("an illegal memory access")

    assert here.run({"a": broken, "b": dict}) == 1
    assert here.left("abc") == ["c", "a"]
    assert here.run({"a": dict, "b": broken, "c": dict}) == 0, "b is done"
    assert not here.progress().failed


# --- times ---


def test_variants_take_turns_on_every_copy():
    seen: list[tuple[str, int]] = []
    calls = {name: (lambda i, name=name: seen.append((name, i))) for name in ("a", "b")}
    times, left_out = graphs.interleaved(calls, 3, rounds=4)
    assert {name: len(found) for name, found in times.items()} == {"a": 4, "b": 4} and not left_out
    if kit.device().type == "cpu":
        assert sorted(seen) == sorted([(name, i) for name in "ab" for i in range(3)] * 5), "one round warms up"


def test_what_cannot_be_captured_is_left_out(monkeypatch):
    def refuse(call, copies):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "captured", refuse)
    monkeypatch.setattr(graphs, "looped", refuse)
    times, left_out = graphs.interleaved({"a": print}, 1)
    assert not times and left_out == {"a": "RuntimeError: operation not permitted when stream is capturing"}


def test_a_graph_holds_calls_enough_for_its_events(monkeypatch):
    """On a GPU that is played: a call or a replay takes 0.3 ms by the events, and the graph what fills 1.5 ms."""
    seen: list[int] = []
    event = {"record": lambda self: None, "synchronize": lambda self: None, "elapsed_time": lambda self, other: 0.3}
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: type("Event", (), event)())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"replay": lambda self: None}))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    replay = graphs.captured(seen.append, 2)
    assert seen == [0, 1, 0, *[0, 1] * 3], "each copy warmed up, one timed, then captured"
    assert replay() == pytest.approx(300 / 6)


def test_copies_are_colder_than_a_cache(monkeypatch):
    monkeypatch.setattr(kit, "device", lambda: torch.device("cuda"))
    assert [graphs.copies(n) for n in (0, 40 << 20, 1 << 30)] == [graphs.MOST, 7, 2]


# --- the table of products ---


def test_an_estimate_says_so_and_chooses_nothing(tmp_path):
    table = products.table({})
    entries = [entry for row in table["products"] for entry in row["candidates"].values()]
    assert {entry["from"] for entry in entries} == {"estimate"} and {row["fastest"] for row in table["products"]} == {
        None
    }
    assert len(table["products"]) == len(products.ROWS) * len(products.SHAPES)
    (qkv,) = [row for row in table["products"] if (row["kind"], row["rows"]) == ("qkv", 1536)]
    assert qkv["candidates"]["linear"]["us"] == pytest.approx(1e6 * 2 * 1536 * 2048 * 6144 / 790e12, abs=0.1)


def test_what_was_measured_is_in_the_table(tmp_path):
    """fp8 is in it, and is not chosen: it computes something else."""
    name = products.Product("up", 1536, 2048, 8192).name
    medians = {"linear then gelu": 90.0, "addmm_activation": 80.0, "fp8, operand ready, then gelu": 50.0}
    line = {"step": "products", "digest": "x", "name": name, "errors": dict.fromkeys(medians, 0.003)}
    line["variants"] = {candidate: {"median_us": us} for candidate, us in medians.items()}
    (tmp_path / "short.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({"step": "products", "jobs": 1}) + "\n")
    assert products.main([str(tmp_path / "short.jsonl"), str(tmp_path / "table.json")]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["products"]
    (row,) = [row for row in rows if row["fastest"]]
    assert (row["kind"], row["rows"], row["fastest"]) == ("up", 1536, "addmm_activation")
    assert row["candidates"]["addmm_activation"] == {"us": 80.0, "from": "measured", "error": 0.003}


@torch.no_grad()
def test_candidates_of_a_product_agree():
    for product in products.products(tiny=True):
        operands = products.Operands(product, 0)
        exact = operands.exact(product)
        for name in product.candidates:
            limit = 0.06 if "fp8" in name else 0.01
            try:
                got = operands.run(name)
            except (RuntimeError, NotImplementedError):
                assert "fp8" in name, "others run everywhere"
                continue
            assert (got.float() - exact).norm() / exact.norm() < limit, name


def test_what_runs_only_by_name_is_compared_too():
    """CUDA C++ beside what dispatch takes, where there is such a backend that can run."""
    line = right.op("cfg_euler_step", right.TINY)
    assert set(line["errors"]) == {"op", "eager"} and "failed" not in line
    with built.everywhere() as ran:
        line = right.op("cfg_euler_step", right.TINY)
    assert set(line["errors"]) == {"op", "eager", "cuda"} and "failed" not in line
    assert ran == {"cfg_euler_step": 2}, "the shim's own choice is CUDA as well"
