"""``sink_ring_attention``: every CPU backend against loops over queries and keys in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rest_fast import ops
from rest_fast.ops import dispatch, functional, native, triton_kernels
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.sink_ring_attention import BROKEN, assert_same_kind, spoilt

NAME = "sink_ring_attention"
CPP = pytest.param(
    "cpp", marks=pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "it is there")
)
BACKENDS = pytest.mark.parametrize("backend", ["reference", "sdpa", "sdpa_gathered", CPP])
IN_DOUBLE = pytest.mark.parametrize("backend", ["reference", "sdpa", "sdpa_gathered"])
PHASES = {
    "mixed": {},
    "full": {"n_valid": (7, 7, 7)},
    "first_slot_only": {"n_valid": (1, 1, 1)},
    "one_lane_one_head": {"rows": (1,), "banks": (1,), "n_valid": (5,), "tokens": 1, "heads": 1, "dim": 3},
    "two_banks_of_one_row": {"rows": (2, 2), "banks": (1, 0), "n_valid": (3, 6)},
    "two_lanes_read_one_row": {"rows": (2, 2), "banks": (1, 1), "n_valid": (6, 6)},
    "one_ring": {"rows": (1, 0), "banks": (0, 0), "n_valid": (7, 2), "cache": (2, 1, 7)},
}


def closed_form(q, k, v, scale) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [Nq, H, D], lse [H, Nq]) in float64, one query at a time: q [Nq, H, D], k and v [Nk, H, D]."""
    tokens, heads, dim = q.shape
    out = torch.zeros(tokens, heads, dim, dtype=torch.float64)
    lse = torch.zeros(heads, tokens, dtype=torch.float64)
    q, k, v = (x.double().tolist() for x in (q, k, v))
    for i in range(tokens):
        for h in range(heads):
            scores = [scale * math.fsum(a * b for a, b in zip(q[i][h], key[h])) for key in k]
            top = max(scores)
            weights = [math.exp(s - top) for s in scores]
            total = math.fsum(weights)
            lse[h, i] = top + math.log(total)
            for d in range(dim):
                out[i, h, d] = math.fsum(p * value[h][d] for p, value in zip(weights, v)) / total
    return out, lse


def expected(call: calls.Call) -> tuple[torch.Tensor, torch.Tensor]:
    lanes = []
    for lane, n in enumerate(call["n_valid"].tolist()):
        where = int(call["row_index"][lane]), int(call["bank_index"][lane])
        k, v = (call[name][where][:n] for name in ("k_cache", "v_cache"))
        lanes.append(closed_form(call["q"][lane], k, v, call["scale"]))
    return torch.stack([out for out, _ in lanes]), torch.stack([lse for _, lse in lanes])


def run(call: calls.Call, backend: str) -> calls.Call:
    names = [name for name in calls.written(NAME) if call.get(name) is not None]
    copy = call | {name: torch.full_like(call[name], torch.nan) for name in names}
    with ops.use_backend(backend):
        calls.invoke(NAME, copy)
    return copy


def test_functional_is_the_formula():
    q, k, v = (torch.randn(2, n, 3, 6, dtype=torch.float64) for n in (4, 7, 7))
    got = functional.attention(q, k, v, scale=0.3)
    for b in range(2):
        assert_close(got[b], closed_form(q[b], k[b], v[b], 0.3)[0], atol=1e-14, reason="sums of 7 float64 terms")
    default = functional.attention(q, k, v)
    assert_close(default, functional.attention(q, k, v, scale=6**-0.5), atol=1e-15, reason="the same scale")


@BACKENDS
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_formula_over_the_valid_slots(phase, backend):
    """All other slots, rows and banks hold NaN: one of them in a sum, even times zero, and the result is NaN."""
    call = calls.sink_ring_attention(**phase)
    got = run(call, backend)
    out, lse = expected(call)
    # Scores below 8, so e^score is off by 8 * 2^-24 * a few, in sums of at most 7 terms of size below 3.
    assert_close(got["out"], out, atol=5e-6, reason="few roundings per score")
    assert_close(got["lse"], lse, atol=2e-6, reason="scores below 8 from 6 fp32 products")


@IN_DOUBLE
@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
def test_formula_in_double(phase, backend):
    call = calls.sink_ring_attention(**phase, dtype=torch.float64)
    got = run(call, backend)
    out, lse = expected(call)
    assert_close(got["out"], out, atol=1e-13, reason="few float64 roundings per score")
    assert_close(got["lse"], lse, atol=2e-6, reason="stored in fp32; scores below 8")


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_at_most_twice_eager(dtype, backend):
    call = calls.sink_ring_attention(tokens=16, dim=32, cache=(4, 2, 40), n_valid=(17, 40, 1), dtype=dtype)
    got = run(call, backend)
    out, lse = expected(call)
    for lane, n in enumerate(call["n_valid"].tolist()):
        where = int(call["row_index"][lane]), int(call["bank_index"][lane])
        k, v = (call[name][where][:n].transpose(0, 1) for name in ("k_cache", "v_cache"))
        eager = F.scaled_dot_product_attention(call["q"][lane].transpose(0, 1), k, v, scale=call["scale"])
        twice_eager(got["out"][lane], eager.transpose(0, 1), out[lane], tiny=1e-6)
    # The log-sum-exp is fp32 whatever the inputs: scores may not pass through 16 bits (bf16 would lose 1e-2).
    assert_close(got["lse"], lse, atol=5e-6, reason="32 fp32 products of size below 10, scaled by 0.18")


@BACKENDS
def test_half_precision_scores_do_not_overflow(backend):
    call = calls.sink_ring_attention(dim=64, dtype=torch.float16)
    for name in ("q", "k_cache"):
        call[name] *= 40  # |q| |k| before the scale: 64 * 1600 > 65504
    call["q"][:] = 40
    call["k_cache"][~call["k_cache"].isnan()] = 40
    got = run(call, backend)
    assert got["lse"].isfinite().all() and got["out"].isfinite().all()
    want = call["scale"] * 64 * 1600 + call["n_valid"].double().log()
    # fp32 scores of 12800 carry 2^-11 = 5e-4 each; a tree of 64 exact products rounds at most twice more.
    assert_close(got["lse"], want[:, None, None].expand_as(got["lse"]), atol=2e-3, reason="fp32 at 12800")


@IN_DOUBLE
def test_large_scores_are_a_hard_choice(backend):
    call = calls.sink_ring_attention(dtype=torch.float64)
    call["k_cache"] *= 1e4
    got = run(call, backend)
    out, _ = expected(call)
    # Scores of 1e5 are off by 1e-11, and so are the weights.
    assert_close(got["out"], out, atol=1e-9, reason="float64 scores of 1e5")


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_finite_goes_where_torch_says(name, dtype, backend):
    """In float64 by logsumexp and softmax: an infinite score makes the sum infinite, and NaN of the weights."""
    call = spoilt(name, dtype=dtype)
    q, k, v = (call[n].double() for n in ("q", "k_cache", "v_cache"))
    score = torch.einsum("qhd,khd->hqk", q[0], k[0, 0, :70]) * call["scale"]
    out = torch.einsum("hqk,khd->qhd", score.softmax(-1), v[0, 0, :70])
    assert not (out.isfinite().all() and score.isfinite().all())
    got = run(call, backend)
    assert_same_kind(got["lse"][0], score.logsumexp(-1).float(), "lse")
    if not backend.startswith(
        "sdpa"
    ):  # PyTorch's own kernels give 0 for a query that no key answers, and more of that in 16 bits
        assert_same_kind(got["out"][0], out, "out")


@BACKENDS
def test_reads_only(backend):
    call = calls.sink_ring_attention()
    before = {name: call[name].clone() for name in ("q", "k_cache", "v_cache", "row_index", "bank_index", "n_valid")}
    run(call, backend)
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


@IN_DOUBLE
def test_order_of_slots_does_not_matter(backend):
    call = calls.sink_ring_attention(rows=(1,), banks=(0,), n_valid=(7,), dtype=torch.float64)
    want = run(call, backend)
    order = [3, 0, 6, 2, 5, 1, 4]
    got = run(call | {name: call[name][:, :, order] for name in ("k_cache", "v_cache")}, backend)
    for name in ("out", "lse"):
        assert_close(got[name], want[name], atol=1e-13 if name == "out" else 1e-6, reason="another order of summation")


@BACKENDS
def test_lanes_do_not_depend_on_neighbours(backend):
    """Bit for bit, at lane strides of whole cache lines (heads x dim x 4 bytes): MKL rounds by alignment otherwise."""
    call = calls.sink_ring_attention(heads=2, dim=8)
    want = run(call, backend)
    order = [2, 0, 1]
    names = ("q", "out", "lse", "row_index", "bank_index", "n_valid")
    lengths = [call["host_n_valid"][i] for i in order]
    got = run(call | {name: call[name][order] for name in names} | {"host_n_valid": lengths}, backend)
    for name in ("out", "lse"):
        assert_same_bits(got[name], want[name][order], name)


@BACKENDS
def test_without_lse(backend):
    call = calls.sink_ring_attention()
    want = run(call, backend)
    short = {name: value for name, value in call.items() if name != "lse"}
    assert_same_bits(run(short, backend)["out"], want["out"], "out")
    assert_same_bits(run(short | {"lse": None}, backend)["out"], want["out"], "out")


@pytest.mark.parametrize(
    "places, lengths, sdpa_calls",
    [
        ([0, 1, 2], [5, 5, 5], 1),  # neighbours
        ([1, 4, 7], [5, 5, 5], 1),  # one bank of rows 0, 2 and 3, three places apart
        ([3, 3], [7, 7], 1),  # two lanes read one row
        ([6], [4], 1),
        ([2, 1, 0], [5, 5, 5], 3),  # no view goes backwards
        ([0, 1, 3], [5, 5, 5], 3),
        ([0, 1, 2], [5, 6, 5], 3),
    ],
    ids=str,
)
def test_sdpa_reads_the_cache_in_as_few_calls_as_views_allow(places, lengths, sdpa_calls, monkeypatch):
    """And the number of calls does not show in the result: it is that of each lane alone, bit for bit."""
    rows, banks = (tuple(f(place, 2) for place in places) for f in (int.__floordiv__, int.__mod__))
    call = calls.sink_ring_attention(rows, banks, tuple(lengths), tokens=16, heads=2, dim=16, dtype=torch.bfloat16)
    caches = {call[name].untyped_storage().data_ptr() for name in ("k_cache", "v_cache")}
    seen, stock = [], F.scaled_dot_product_attention

    def counted(q, k, v, **kwargs):
        seen.append({x.untyped_storage().data_ptr() for x in (k, v)})
        return stock(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    together = run(call, "sdpa")
    assert seen == [caches] * sdpa_calls, "keys and values are views of the caches"
    for lane, n in enumerate(lengths):
        names = ("q", "out", "lse", "row_index", "bank_index", "n_valid")
        alone = run(call | {name: call[name][lane : lane + 1] for name in names} | {"host_n_valid": [n]}, "sdpa")
        for name in ("out", "lse"):
            assert_same_bits(alone[name][0], together[name][lane], f"{name} of lane {lane}")


@pytest.mark.parametrize(
    "lengths, sdpa_calls", [([5, 5, 5], 1), ([5, 5, 6], 2), ([5, 6, 5], 3), ([7], 1)], ids=lambda v: str(v)
)
def test_gathered_lanes_of_one_length_are_one_call(lengths, sdpa_calls, monkeypatch):
    seen, stock = [], F.scaled_dot_product_attention

    def counted(q, k, v, **kwargs):
        seen.append((len(q), k.shape[2], v.shape[2]))
        return stock(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    lanes = len(lengths)
    run(calls.sink_ring_attention((2, 0, 3)[:lanes], (1, 0, 1)[:lanes], tuple(lengths)), "sdpa_gathered")
    assert len(seen) == sdpa_calls and sum(n for n, _, _ in seen) == lanes
    assert [k for n, k, _ in seen for _ in range(n)] == [v for n, _, v in seen for _ in range(n)] == lengths


def test_gathering_reads_no_contents_on_the_host(monkeypatch):
    """What would wait for a GPU: indices are followed on the device, and lengths come from the host's own list."""

    def wait(self, *args):
        raise AssertionError("a value was read on the host")

    call = calls.sink_ring_attention()
    entry = next(b for b in ops.sink_ring_attention.backends if b.name == "sdpa_gathered")
    args, kwargs = calls.split(NAME, call)
    for method in ("tolist", "item", "__bool__", "__int__", "__index__", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, method, wait)
    entry.run(*args, **kwargs)
    monkeypatch.undo()
    want = run(calls.sink_ring_attention(), "reference")
    assert_close(call["out"], want["out"], atol=5e-6, reason="the reference in fp32, scores below 8")


def test_gathering_follows_no_row_out_of_range():
    """Past the checks, which on a GPU cannot see contents: an idle lane's -1 is no address before the cache."""
    call = calls.sink_ring_attention()
    call["row_index"][1], call["bank_index"][1] = -1, 0
    entry = next(b for b in ops.sink_ring_attention.backends if b.name == "sdpa_gathered")
    args, kwargs = calls.split(NAME, call)
    entry.run(*args, **kwargs)
    want = run(calls.sink_ring_attention(), "reference")
    for lane in (0, 2):
        assert_close(call["out"][lane], want["out"][lane], atol=5e-6, reason="the reference in fp32, scores below 8")


def test_who_is_chosen_where_triton_is_missing(monkeypatch):
    monkeypatch.setattr(triton_kernels, "unfit", lambda spec: "Triton is not installed")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert ops.sink_ring_attention.choose(dispatch.Spec("cuda", dtype), None).name == "sdpa_gathered"
    assert ops.sink_ring_attention.choose(dispatch.Spec("mps", torch.float32), None).name == "reference"
