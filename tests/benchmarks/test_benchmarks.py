"""The benchmarks' variants agree at tiny sizes, the gate refuses a wrong one, and what is reported is arithmetic."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rest_fast import ops, preset
from rest_fast.ops import functional, rope
from tests.kit.bench import module
from tests.kit.captured import StandIn
from tests.kit.compare import assert_close

ROOT = Path(__file__).parents[2]
PYTEST = Path(sys.executable).parent / "pytest"
COMPARE = Path(sys.executable).parent / "pytest-benchmark"

kit, roofline, peers = module("kit"), module("roofline"), module("peers")
bench_ops, bench_attention, bench_block = module("bench_ops"), module("bench_attention"), module("bench_block")
bench_step = module("bench_step")

TINY = kit.Size(
    heads=2, side=2, head_dim=10, depth=2, channels=5, text=20, conv=(3, 2, 4), norm=(5, 2, 3), upsampled=(24, 2, 3),
    factors=(2, 3, 2), pixels=(2, 6),
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def traced(function):
    """In place of torch.compile: what it traces, run by PyTorch."""
    torch._dynamo.reset()
    return torch.compile(function, backend="eager", dynamic=False)


# -- the variants


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", bench_ops.TABLE)
def test_variants_of_an_op(name, dtype):
    case = bench_ops.Case(bench_ops.TABLE[name], TINY, dtype)
    variants = case.variants(None)
    assert {"op", "eager"} <= set(variants) and ("reference" in variants) == (case.chosen != "reference")
    case.check(variants)


def test_every_op_is_in_the_table():
    assert {e.op for e in bench_ops.TABLE.values()} == set(ops.ALL)


@pytest.mark.parametrize("name", bench_ops.TABLE)
def test_a_wrong_op_is_no_result(name):
    """A variant that leaves its outputs as it found them; the op's outputs are poisoned, what it changes is not."""
    case = bench_ops.Case(bench_ops.TABLE[name], TINY, torch.float32)
    variants = case.variants(None)
    variants["idle"] = lambda values: [values[n] for n in case.entry.writes.split()]
    with pytest.raises(AssertionError, match="idle: result"):
        case.check(variants)


def test_eager_variants_can_be_traced():
    """The dearest ones: in-place writes, and a table of rotations."""
    for name in ("qk_norm_rope_cache", "rotate_context", "gate_norm_modulate"):
        case = bench_ops.Case(bench_ops.TABLE[name], TINY, torch.float32)
        case.check(case.variants(traced))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_variants_of_attention(dtype):
    layer = bench_attention.Layer(bench_attention.Shape(queries=6, heads=2, sink=3, head_dim=8), dtype, 0)
    runs = bench_attention.variants(layer, lambda function: function)
    assert {"op", "roll", "clone", "concatenate", "write", "dense", "mask", "flex"} <= set(runs)
    bench_attention.check(layer, runs)


@pytest.mark.parametrize("changes", [
    {},
    {"dit__text_tokens": 0, "dit__text_channels": 0},
    {"stream__chunk": 2},
], ids=["text and audio", "audio alone", "another chunk"])  # fmt: skip
def test_variants_of_the_block(changes):
    """Peers and ours share nothing but weights, so this also checks our step in the steady state."""
    layer = bench_block.Layer(preset("toy").replace(**changes), torch.float32, 0)
    runs = bench_block.variants(compiler=traced if not changes else None)
    bench_block.check(layer, runs)


def test_a_wrong_block_is_no_result():
    layer = bench_block.Layer(preset("toy"), torch.float32, 0)
    runs = bench_block.variants(compiler=None)
    bench_block.check(layer, runs)
    layer.lanes.base -= 1
    with pytest.raises(AssertionError, match="ours: result 0"):
        bench_block.check(layer, runs)


@pytest.mark.parametrize("together", [False, True], ids=["a call each", "one call"])
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_variants_of_the_step(lanes, together):
    """Whole evaluations with the same latents, constants and windows: ours agrees with the peers', which share nothing
    with it but weights and the layers before and behind the blocks."""
    case = bench_step.Case("toy", lanes, torch.float32, together)
    runs = bench_step.variants(case, compiler=None)
    shared = {"ours, one call"} if lanes == 4 and not together else set()
    assert set(runs) == {"ours", "reference", "roll", "write"} | shared
    case.check(runs)
    assert case.exact().square().mean().sqrt() > 1, "there is something to compare"


def test_a_captured_step_and_a_compiled_peer():
    case = bench_step.Case("toy", 4, torch.bfloat16, together=True)
    runs = bench_step.variants(case, compiler=traced)
    with torch._dynamo.config.patch(error_on_recompile=True):
        case.check(runs)
    graph = StandIn()
    runs = bench_step.variants(case, compiler=None, graphs=lambda name: graph)
    assert "eager" in runs
    case.check(runs)
    assert graph.replays == 1
    runs["write, captured"] = bench_step.captured(graph, runs["write"])
    case.check(runs)
    assert graph.replays == 3


def test_a_wrong_step_is_no_result():
    case = bench_step.Case("toy", 2, torch.float32)
    runs = bench_step.variants(case, compiler=None)
    (turn,) = case.turns
    case.calls[0][0] = dataclasses.replace(turn, guidance=turn.guidance + 0.01)
    with pytest.raises(AssertionError, match="ours: result 0"):
        case.check(runs)


def test_a_step_is_split_into_its_parts(monkeypatch):
    monkeypatch.setenv("BENCH_ROUNDS", "2")
    case = bench_step.Case("demo", 2, torch.float32, together=False)
    run = bench_step.variants(case, compiler=None)["ours"]
    parts = bench_step.by_clock(run.call)
    assert all(us > 0 for part, us in parts.items() if part != "gelu") and set(parts) == {
        "whole",
        "rest",
        *bench_step.PARTS,
    }
    assert 0 < bench_step.host_us(case.step(), case.calls, graph=True) < parts["whole"]


def test_kernels_have_parts():
    names = {
        "linear": "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNT",
        "attention": "sink_ring_attention_kernel",
        "audio update": "update_kernel",
        "norm, modulate, gate": "gate_norm_modulate_kernel",
        "q and k norm, rotation, cache": "qk_norm_rope_cache_kernel",
        "gelu": "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",
        "rest": "cfg_euler_step_kernel",
    }
    found = bench_step.by_kernel([(name, 2.0**i) for i, name in enumerate(names.values())])
    assert found == {"whole": 127.0, **{part: 2.0**i for i, part in enumerate(names)}}
    ours = {path.parent.name for path in (ROOT / "kernels").glob("*/kernel.py")}
    assert {"sink_ring_attention", "gate_norm_modulate", "qk_norm_rope_cache", "frame_audio_update"} <= ours


# -- the peers


def test_a_window_rolls_as_its_name_says():
    """Sink 0, chunks 1 and 2; chunk 3 comes: what is seen, and what is kept."""
    order = torch.tensor([0, 1, 1, 2, 2]).view(1, 5, 1, 1).float()
    new = torch.full((1, 2, 1, 1), 3.0)
    seen = {"roll": [0, 2, 2, 3, 3], "clone": [0, 1, 1, 3, 3], "concatenate": [0, 1, 1, 3, 3], "write": [0, 1, 1, 3, 3]}
    for style in peers.STYLES:
        window = peers.Window(order.clone(), -order, sink=1, chunk=2)
        k, v = getattr(window, style)(new, -new)
        assert k.flatten().tolist() == seen[style] and torch.equal(v, -k), style
        kept = order.flatten().tolist() if style == "concatenate" else seen[style]
        assert window.k.flatten().tolist() == kept and torch.equal(window.v, -window.k), style


def test_peers_compute_what_the_reference_does():
    """In float64, where both are exact to rounding."""
    g = torch.Generator().manual_seed(0)
    qkv, weights = torch.randn(2, 6, 60, generator=g).double(), torch.randn(2, 20, generator=g).double()
    freqs = rope.frequencies(20, 100.0)
    t, y, x = (rope.axis_table(torch.arange(n), 1.0, 9.0, freqs).double() for n in (3, 1, 2))
    table = rope.token_table(t, y, x, 20)
    got = peers.heads(qkv, *weights, peers.pair_tables(table), 2, 1e-5)
    want = functional.qk_norm_rope(qkv, *weights, table, heads=2, eps=1e-5)
    for mine, reference in zip(got, want, strict=True):
        assert_close(mine, reference, atol=1e-12, reason="float64")
    kv = torch.randn(2, 2, 3, 4, 2, 10, generator=g).double()
    got = peers.cross_attention(qkv[..., :20], weights[0], tuple(kv), 1e-5)
    want = functional.frame_attention(qkv[..., :20], weights[0], *kv, eps=1e-5)
    assert_close(got, want, atol=1e-12, reason="float64")


# -- timing and tables


def test_variants_take_turns(monkeypatch):
    monkeypatch.setenv("BENCH_ROUNDS", "3")
    seen: list[tuple[str, int]] = []
    calls = {name: (lambda i, name=name: seen.append((name, i))) for name in "ab"}
    times = kit.interleaved(calls)
    assert [len(t) for t in times.values()] == [3, 3]
    rounds = [dict(seen[at : at + 2]) for at in range(len(seen) - 6, len(seen), 2)]
    assert all(set(r) == {"a", "b"} and r["a"] != r["b"] for r in rounds), "each once a round, on another copy"
    assert {i for _, i in seen} == set(range(kit.LAYERS)), "every copy is touched before the clock counts"


def test_clocks(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert kit.host_clock() is kit.time.perf_counter_ns
    monkeypatch.setenv("BENCH_CLOCK", "cpu")
    with pytest.raises(ValueError, match="expected wall, or cpu with one thread, got cpu with 2"):
        kit.host_clock()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert kit.host_clock() is kit.time.thread_time_ns


def test_rounds_fit_the_budget(monkeypatch):
    monkeypatch.delenv("BENCH_ROUNDS", raising=False)
    monkeypatch.setattr(kit, "stopwatch", lambda: lambda call, i: call(i) or 1.0)
    ticks = iter(range(10**6))
    monkeypatch.setattr(kit.time, "perf_counter", lambda: 0.05 * next(ticks))  # a round takes 0.05 s
    for budget, rounds in ((1.0, 20), (0.01, 5), (1e6, 400)):
        assert len(kit.interleaved({"a": lambda i: None}, budget=budget)["a"]) == rounds


def test_a_report_is_arithmetic():
    times = {"op": [4.0, 1.0, 2.0, 3.0, 2.0], "eager": [6.0] * 5}
    got = kit.report(times, "op")
    assert got["ratios"] == {"eager_over_op": 3.0} and got["rounds"] == 5
    assert got["variants"]["op"] == {"median_us": 2.0, "p95_us": 3.8, "p99_us": 4.0, "spread": 0.5}
    assert got["variants"]["eager"]["spread"] == 0


def test_the_roof():
    roof = roofline.Roof(copy=1e9, gemm=1e12)
    assert roof.share(roofline.Work(bytes=1000), 2.0) == 0.5
    assert roof.share(roofline.Work(bytes=1000, flop=4_000_000), 8.0) == 0.5, "the slower of the two limits"
    case = bench_ops.Case(bench_ops.TABLE["gate_norm_modulate"], TINY, torch.bfloat16)
    stream, vectors = 2 * 12 * 20 * 2, 2 * 3 * 20 * 2  # bytes: two lanes, 12 tokens or 3 frames, width 20
    assert case.work().bytes == 4 * stream + 3 * vectors  # x in and out, branch, out; gate, scale, shift
    rotate = bench_ops.Case(bench_ops.TABLE["rotate_context"], TINY, torch.float32)
    assert rotate.work().bytes == 2 * (2 * 2 * 12 * 8 * 4), (
        "a third of the context chunk, of two layers and lanes, both ways"
    )
    measured = roofline.measure(torch.device("cpu"), torch.float32, megabytes=1, side=64)
    assert measured.copy > 0 and measured.gemm > 0


def test_a_block_is_split_into_its_parts():
    layer, clock = bench_block.Layer(preset("toy"), torch.float32, 0), bench_block.Clock()
    for name, run in bench_block.variants(compiler=None).items():
        linear = F.linear
        split = clock.split(lambda: run(layer))  # noqa: B023
        assert F.linear is linear, "the patches are taken off again"
        inside = name == "ours" and bench_block.fused()
        assert all(us > 0 for part, us in split.items() if not (part == "gelu" and inside)), f"{name}: {split}"
        products = split["linear"] + split["attention"] + split["gelu"]
        rest = sum(us for part, us in split.items() if part not in ("whole", "outside", *bench_block.PRODUCTS))
        assert split["whole"] == pytest.approx(split["outside"] + products)
        assert rest < split["outside"], "no part counts twice"
    labels = [label for label, *_ in clock.spans]
    # the last variant, a peer: qkv, out, MLP; q and out of text and audio. Attention to self, text, audio
    assert labels.count("linear") == 4 + 4 and labels.count("attention") == 3


def test_a_clock_counts_sdpa_alone_where_the_op_calls_it(monkeypatch):
    """Copies around a call of SDPA are glue; another attention counts whole, once; so does an op that needs no SDPA."""
    clock = bench_block.Clock()
    sdpa = clock.around("attention", lambda: None)

    def spans(function, op):
        monkeypatch.setattr(bench_block, "SELF_ATTENTION", op)
        clock.now = itertools.count().__next__
        clock.spans.clear()
        clock.around("attention", function)()
        return [(start, stop) for _, start, stop in clock.spans]

    def calling():
        sdpa()

    def own():
        pass

    assert spans(calling, own) == [(0, 1)], "whole"
    assert spans(calling, calling) == [(1, 2)], "SDPA inside"
    assert spans(own, own) == [(0, 1)], "no SDPA to count"


def test_what_cannot_compile_is_left_out_with_a_reason():
    def missing():
        raise RuntimeError("no compiler\nin sight")

    runs = {"op": missing, "compiled": missing, "flex": lambda: None}
    assert kit.without_failures(runs, ["compiled", "flex"], lambda run: run()) == {
        "compiled": "RuntimeError: no compiler"
    }
    assert set(runs) == {"op", "flex"}, "an op that fails is a failure"


def test_the_base_is_stored_with_the_rounds_of_its_turns():
    """Its statistics are of the calls that took turns, in seconds, not of one more call."""
    stats = pytest.importorskip("pytest_benchmark.stats").Stats()
    benchmark = types.SimpleNamespace(extra_info={}, stats=types.SimpleNamespace(stats=stats))
    benchmark.pedantic = lambda call, args, rounds: stats.update(99.0)
    times = {"op": [4.0, 1.0, 2.0, 3.0, 2.0], "eager": [6.0] * 5}
    kit.store(benchmark, times, "op", lambda i: None)
    assert (stats.rounds, stats.median, stats.min, stats.max) == pytest.approx((5, 2e-6, 1e-6, 4e-6))
    assert benchmark.extra_info["variants"]["op"]["median_us"] == 2.0
    benchmark.stats = None  # --benchmark-disable
    kit.store(benchmark, times, "op", lambda i: None)


@pytest.mark.slow
def test_a_bench_from_end_to_end(tmp_path):
    """Through pytest-benchmark and torch.compile into the stored file, with where it comes from."""
    out = tmp_path / "out.json"
    command = [PYTEST, "benchmarks/bench_ops.py", "-q", "-k", "fp32 and cfg_euler_step", f"--benchmark-json={out}"]
    quick = os.environ | {"BENCH_ROUNDS": "2"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quick, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(out.read_text())
    demo, rest = written["benchmarks"]
    assert "data" not in demo["stats"] and "node" not in written["machine_info"]
    assert demo["stats"]["median"] == pytest.approx(demo["extra_info"]["variants"]["op"]["median_us"] / 1e6, abs=1e-7)
    compared = subprocess.run([COMPARE, "compare", out], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert compared.returncode == 0 and demo["name"] in compared.stdout, compared.stdout + compared.stderr
    for info in (demo["extra_info"], rest["extra_info"]):
        assert info["rounds"] == 2 and "eager_over_op" in info["ratios"] and "torch" in info["environment"]
        assert ("compiled_over_op" in info["ratios"]) != ("compiled" in info["left_out"])
