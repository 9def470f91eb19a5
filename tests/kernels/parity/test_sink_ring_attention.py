"""``sink_ring_attention`` in Triton: against the reference, under plans that cut every way, and at wrong indices."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.kernels import sink_ring_attention as package
from rest_fast.kernels.sink_ring_attention.kernel import valid_slots
from rest_fast.kernels.sink_ring_attention.plan import EXACT, HALF, LARGE, SMALL, WIDE_HEAD, Plan, Tile, plan
from rest_fast.ops.dispatch import Spec
from tests.kernels.kit import DEVICE, DTYPES, FIRST_DTYPE, ON_GPU, check_parity, copied, run
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.sink_ring_attention import BROKEN, HUNDRED_SLOTS, WRONG, spoilt

NAME = "sink_ring_attention"
TINY = Tile(16, 32, warps=4, stages=1, resident=1, busy=1.0, alone=1.0)  # many tiles of both kinds at small sizes
# Scores below 10 are sums of D products: off by a few times 10 * 2^-24 = 6e-7, which is the relative error of a
# weight; exp2 of the hardware adds 2^-22. The output averages values, so its error stays below that times the largest.
FP32 = {"fp32": 4e-6, "reason": "weights off by a few fp32 roundings of a score below 10"}
# In 16 bits the reference rounds once, the kernel also rounds the weights, each by the same 2^-11 (2^-8): independent
# errors of the same size make sqrt(2) of one, within the rule's factor of 2.
TINY_ERROR = 2e-6

SHORT = {"tokens": 5, "heads": 1}  # where only the keys matter
PLANS = {"whole": Plan(TINY), "four_parts": Plan(TINY, 4), "as_dispatched": None}


def call(dtype: torch.dtype = torch.float32, **changes) -> calls.Call:
    """A cache of 4 rows, 2 banks and 100 slots, NaN wherever no lane may read."""
    sizes = {"tokens": 18, "heads": 2, "dim": 16, "cache": (4, 2, 100), "n_valid": (63, 100, 1)}
    return calls.sink_ring_attention(**(sizes | changes), dtype=dtype)


def cut(chosen: Plan | None, given_call: calls.Call) -> calls.Call:
    """What the kernel leaves under this plan (None: the one that ``launch`` would take)."""
    if chosen is None:
        return run(NAME, given_call, "triton")
    copy = copied(given_call)
    names = "q k_cache v_cache out row_index bank_index n_valid scale lse"
    package.launch_plan(chosen, *(copy.get(name) for name in names.split()))
    return copied(copy, "cpu")


def float64(given_call: calls.Call) -> calls.Call:
    wide = {name: given_call[name].double() for name in ("q", "k_cache", "v_cache", "out")}
    return run(NAME, given_call | wide, "reference")


def lse_error(dtype: torch.dtype) -> float:
    """A few roundings of a number below 10; the tensor cores of a GPU cut sums of 16-bit products off instead."""
    return 1e-5 if ON_GPU and dtype != torch.float32 else 4e-6


def check_plan(chosen: Plan | None, given_call: calls.Call) -> None:
    """Against the reference by the rules of ``check_parity``, under a plan of the test's choice."""
    got, eager, exact = cut(chosen, given_call), run(NAME, given_call, "reference"), float64(given_call)
    if given_call["q"].dtype == torch.float32:
        assert_close(got["out"], exact["out"], atol=FP32["fp32"] * float(exact["out"].abs().max()), reason="FP32")
    else:
        twice_eager(got["out"], eager["out"], exact["out"], tiny=TINY_ERROR)
    # Whatever the dtype, scores and their sum stay in fp32: a few roundings of a number below 10.
    assert_close(got["lse"], exact["lse"], atol=lse_error(given_call["q"].dtype), reason="fp32 sums of exact products")


@pytest.mark.parametrize("dtype", FIRST_DTYPE, ids=str)
@pytest.mark.parametrize("chosen", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("phase", HUNDRED_SLOTS.values(), ids=HUNDRED_SLOTS)
def test_every_phase_under_every_plan(phase, chosen, dtype):
    check_plan(chosen, call(dtype, **phase))


ODD = [(63, 2, 64, (112, 77)), (257, 1, 16, (200, 130)), (48, 3, 64, (112, 64)), (20, 1, 128, (70, 33))]
REAL = [(768, 32, 64, (1792, 1024)), (257, 32, 64, (1791, 1)), (1024, 8, 128, (900, 513)), (384, 4, 32, (700, 260))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens, heads, dim, n_valid", ODD + (REAL if ON_GPU else []))
def test_sizes_as_dispatched(tokens, heads, dim, n_valid, dtype):
    cache = (3, 2, max(n_valid) + 5 * (tokens == 257))
    sizes = {"tokens": tokens, "heads": heads, "dim": dim, "cache": cache}
    check_parity(NAME, call(dtype, rows=(2, 0), banks=(0, 1), n_valid=n_valid, **sizes), **FP32, tiny=TINY_ERROR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", [LARGE, HALF, SMALL, WIDE_HEAD], ids=["large", "half", "small", "wide_head"])
def test_tiles_of_the_table(tile, dtype):
    """One whole tile and a part at least; fp32 runs them in the interpreter only, where registers do not count."""
    if ON_GPU and dtype == torch.float32:
        pytest.skip("fp32 at this tile spills on a GPU and is never planned")
    check_plan(Plan(tile, 2), call(dtype, rows=(1,), banks=(1,), n_valid=(301,), cache=(2, 2, 310), tokens=70, heads=1))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_sizes(data):
    lanes, banks, slots = (data.draw(st.integers(1, most)) for most in (3, 2, 40))
    rows = data.draw(st.permutations(range(lanes + 1)))[:lanes]
    bank = [data.draw(st.integers(0, banks - 1)) for _ in rows]
    n_valid = tuple(data.draw(st.integers(1, slots)) for _ in rows)
    sizes = {"tokens": data.draw(st.integers(1, 20)), "heads": data.draw(st.integers(1, 3)), "dim": 16}
    made = call(rows=tuple(rows), banks=tuple(bank), n_valid=n_valid, cache=(lanes + 1, banks, slots), **sizes)
    check_plan(Plan(TINY, data.draw(st.sampled_from([1, 2, 4]))), made)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_split_is_whole_to_rounding(dtype):
    made = call(dtype, **SHORT)
    whole, split = cut(Plan(TINY), made), cut(Plan(TINY, 4), made)
    step = {torch.float32: 2**-22, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    assert_close(split["out"], whole["out"], rtol=step, atol=step, reason="one rounding of the result, either way")
    assert_close(split["lse"], whole["lse"], atol=lse_error(dtype) / 2, reason="another order of an fp32 sum, below 10")


@pytest.mark.parametrize("chosen", [Plan(TINY), Plan(TINY, 4)], ids=["whole", "split"])
def test_twice_and_alone_the_same_bits(chosen):
    """No atomics, and no lane looks at another: neighbours and their order change nothing under one plan."""
    made = call(**SHORT)
    first, again = cut(chosen, made), cut(chosen, made)
    for name in ("out", "lse"):
        assert_same_bits(again[name], first[name], name)
    for lane in range(3):
        names = ("q", "out", "lse", "row_index", "bank_index", "n_valid")
        alone = cut(chosen, made | {name: made[name][lane : lane + 1] for name in names})
        for name in ("out", "lse"):
            assert_same_bits(alone[name], first[name][lane : lane + 1], name)


@pytest.mark.parametrize("chosen", PLANS.values(), ids=PLANS)
def test_reads_only(chosen):
    made = call(**SHORT)
    got = cut(chosen, made)
    for name in ("q", "k_cache", "v_cache", "row_index", "bank_index", "n_valid"):
        assert_same_bits(got[name], made[name], name)


@pytest.mark.parametrize("chosen", PLANS.values(), ids=PLANS)
def test_order_of_slots_does_not_matter(chosen):
    made = call(rows=(1,), banks=(0,), n_valid=(100,), **SHORT)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    got = cut(chosen, made | {name: made[name][:, :, order] for name in ("k_cache", "v_cache")})
    for name in ("out", "lse"):
        assert_close(got[name], cut(chosen, made)[name], atol=4e-6, reason="another order of fp32 sums below 10")


@pytest.mark.parametrize("chosen", PLANS.values(), ids=PLANS)
def test_without_lse(chosen):
    made = call(**SHORT)
    assert_same_bits(cut(chosen, made | {"lse": None})["out"], cut(chosen, made)["out"], "out")


@pytest.mark.parametrize("chosen", [Plan(TINY), Plan(TINY, 2)], ids=["whole", "split"])
def test_large_scores_neither_overflow_nor_leak(chosen):
    """fp16 products of 40 x 40 over 64 channels leave its range; all scores are equal, so the result is a mean."""
    made = call(torch.float16, dim=64, n_valid=(40, 37, 1), **SHORT)
    made["q"][:] = 40
    made["k_cache"][~made["k_cache"].isnan()] = 40
    got, n = cut(chosen, made), made["n_valid"].tolist()
    for lane, count in enumerate(n):
        mean = made["v_cache"][int(made["row_index"][lane]), int(made["bank_index"][lane]), :count].double().mean(0)
        # The weights are 1 in every dtype; the result has one fp16 rounding, of a number below 4.
        assert_close(got["out"][lane], mean.expand_as(got["out"][lane]), atol=2**-10, reason="one fp16 rounding")
    # A score of 12800 log2 e and its way back carry about 12800 * 2^-23.
    want = made["scale"] * 64 * 1600 + made["n_valid"].double().log()
    assert_close(got["lse"], want[:, None, None].expand_as(got["lse"]), atol=4e-3, reason="fp32 at 18000")


@pytest.mark.parametrize("scale", [-300.0, -0.25, 0.0, 1.0, 300.0])
def test_any_scale(scale):
    """300: the largest score takes all, and subtracting any other than the largest would overflow."""
    made = call(**SHORT) | {"scale": scale}
    got, exact = cut(Plan(TINY, 2), made), float64(made)
    top = max(abs(scale), 1.0)
    assert_close(got["out"], exact["out"], atol=1e-5 * top, reason="scores below 10 scale, each off by 2^-24 of it")
    assert_close(got["lse"], exact["lse"], atol=4e-6 * top, reason="the same scores")


@pytest.mark.parametrize("n", [32, 33, 100], ids=["keys_of_one_part", "of_two", "of_all"])
@pytest.mark.parametrize("dtype", FIRST_DTYPE, ids=str)
def test_nan_of_a_query_is_its_result(n, dtype):
    """Of four parts some have no key: NaN must come out beside their -inf, and other queries keep every bit."""
    made = call(dtype, rows=(1,), banks=(1,), n_valid=(n,), tokens=18, heads=2)
    want = cut(Plan(TINY, 4), made)
    made["q"][0, 3, 1] = torch.nan
    lost = torch.zeros(18, 2, dtype=torch.bool)
    lost[3, 1] = True
    for chosen in (Plan(TINY, 4), Plan(TINY)):
        made["out"].fill_(7), made["lse"].fill_(8)
        got = cut(chosen, made)
        assert got["out"][0][lost].isnan().all() and got["lse"][0].T[lost].isnan().all()
        assert got["out"][0][~lost].isfinite().all() and got["lse"][0].T[~lost].isfinite().all()
        if chosen.splits > 1:
            assert_same_bits(got["out"][0][~lost], want["out"][0][~lost], "the other queries")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("chosen", [Plan(TINY), Plan(TINY, 4)], ids=["whole", "split"])
def test_what_is_not_finite_is_so_where_it_is_in_the_reference(chosen, name):
    """Where a log-sum-exp is infinite the kernel says NaN: to tell the two apart would cost its inner loop."""
    made = spoilt(name, dim=16, tokens=18)
    got, want = cut(chosen, made), run(NAME, made, "reference")
    for output in ("out", "lse"):
        assert torch.equal(got[output].isfinite(), want[output].isfinite()), output
        number = want[output].isfinite()
        assert_close(
            got[output][number], want[output][number], atol=1e-5, reason="few fp32 roundings of scores below 10"
        )


@pytest.mark.parametrize("chosen", [Plan(TINY), Plan(TINY, 2)], ids=["whole", "split"])
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_lane_with_a_wrong_index_is_left_alone(wrong, chosen):
    """The host refuses these where it can see them; on a GPU only the kernel can. Its neighbours go on."""
    made = call(**SHORT)
    made["out"][1], made["lse"][1] = 7.0, 8.0
    want = cut(chosen, made)
    got = cut(chosen, made | {name: calls.ints(*values) for name, values in wrong.items()})
    assert (got["out"][1] == 7).all()
    assert (got["lse"][1] == 8).all()
    for name in ("out", "lse"):
        assert_same_bits(got[name][[0, 2]], want[name][[0, 2]], name)
        assert want[name].isfinite().all(), "the comparison would be empty"


@triton.jit
def locate(row_index, bank_index, n_valid, first, n, rows, banks, slots):
    lane = tl.program_id(0)
    where, count = valid_slots(row_index, bank_index, n_valid, lane, rows, banks, slots)
    tl.store(first + lane, where)
    tl.store(n + lane, count)


def test_slots_of_a_pool_beyond_int32():
    """A pool of many rows does not fit into 32 bits, so the first slot is a 64-bit number; a wrong lane gets (0, 0)."""
    rows, banks, slots = 100_000, 8, 100_000
    index = [(99_999, 7, 5), (3, 2, slots), (rows, 0, 5), (0, banks, 5), (0, 0, slots + 1), (1, 1, -5), (-1, 0, 1)]
    lanes = len(index)
    columns = [calls.ints(*values).to(DEVICE) for values in zip(*index)]
    first = torch.full((lanes,), -1, dtype=torch.int64, device=DEVICE)
    n = torch.full((lanes,), -1, dtype=torch.int32, device=DEVICE)
    locate[(lanes,)](*columns, first, n, rows, banks, slots)
    assert first.tolist() == [(99_999 * banks + 7) * slots, (3 * banks + 2) * slots, 0, 0, 0, 0, 0]
    assert n.tolist() == [5, slots, 0, 0, 0, 0, 0]


@pytest.mark.skipif(not ON_GPU, reason="two caches of 4.3 GB")
def test_a_cache_beyond_int32_elements():
    rows, slots, heads = 600, 1792, 32
    big = torch.zeros(rows, 1, slots, heads, 64, dtype=torch.bfloat16, device=DEVICE)
    made = calls.sink_ring_attention((0,), (0,), (1792,), tokens=64, heads=heads, dim=64, cache=(1, 1, slots))
    small = {n: v.bfloat16() if isinstance(v, torch.Tensor) and v.dim() > 3 else v for n, v in made.items()}
    want = cut(Plan(HALF), small)
    big[rows - 1] = small["k_cache"][0].to(DEVICE)
    names = "out row_index bank_index n_valid scale"
    values = big.clone()
    values[rows - 1] = small["v_cache"][0].to(DEVICE)
    copy = copied(small | {"row_index": calls.ints(rows - 1)})
    package.launch_plan(Plan(HALF), copy["q"], big, values, *(copy[n] for n in names.split()))
    assert_same_bits(copy["out"].cpu(), want["out"], "out")


def spec(dtype: torch.dtype = torch.float32, **dims: int) -> Spec:
    return Spec(DEVICE, dtype, tuple(dims.items()))


@pytest.mark.parametrize(
    "asked, reason",
    [
        (spec(), ""),
        (spec(heads=32, head_dim=64, slots=1792, tokens=768), ""),
        (spec(heads=2, head_dim=6, slots=7, tokens=5), "head size 16, 32, 64 or 128 only, got 6"),
        (spec(heads=2, head_dim=256, slots=7, tokens=5), "got 256"),
        (spec(torch.float64, heads=2, head_dim=64, slots=7, tokens=5), "got torch.float64"),
        (spec(heads=32, head_dim=64, slots=2**20, tokens=5), "fewer than 2^31 elements a lane, got 1048576 x 32 x 64"),
        (spec(heads=32, head_dim=64, slots=2**20 - 1, tokens=5), ""),
    ],
)
def test_what_it_supports(asked, reason):
    ok, why = package.supports(asked)
    assert (ok, bool(why)) == (not reason, bool(reason))
    assert reason in why


def test_other_head_sizes_name_the_reason_or_fall_back():
    made = copied(calls.sink_ring_attention())  # head size 6
    with ops.use_backend("triton"), pytest.raises(ops.OpError, match="head size 16, 32, 64 or 128 only, got 6"):
        calls.invoke(NAME, made)
    with ops.use_backend("triton,reference"):
        calls.invoke(NAME, made)
    assert made["out"].isfinite().all()


def planned(lanes: int, tokens: int, slots: int, **changes) -> Plan:
    sizes = {"lanes": lanes, "heads": 32, "tokens": tokens, "slots": slots, "dim": 64, "dtype": torch.bfloat16}
    return plan(**(sizes | {"processors": 132} | changes))


@pytest.mark.parametrize(
    "chosen, want",
    [
        (planned(2, 768, 1792), Plan(LARGE)),  # 384 programs: 2.9 waves
        (planned(16, 768, 1792), Plan(LARGE)),
        (planned(1, 512, 1792), Plan(LARGE)),  # 128 programs: 0.97 waves
        (planned(1, 1024, 1792), Plan(LARGE)),
        (planned(1, 768, 1792), Plan(HALF)),  # 192 large programs: 1.45 waves in the time of 2
        (planned(1, 256, 1792), Plan(LARGE, 2)),  # 64 large programs: half of the machine
        (planned(1, 384, 1792), Plan(LARGE)),  # 96 programs; a split in 4 saves less than it costs ...
        (planned(1, 384, 4864), Plan(LARGE, 4)),  # ... until the keys are many
        (planned(2, 48, 112, heads=3), Plan(SMALL)),
        (planned(2, 768, 1792, dtype=torch.float32), Plan(EXACT)),
        (planned(2, 768, 1792, dim=128), Plan(WIDE_HEAD)),
    ],
)
def test_plans_of_known_sizes(chosen, want):
    assert chosen == want


def test_predicted_time_by_hand():
    """96 of 132 processors busy for 14 tiles; 264 + 120 small programs; two parts of 7 tiles and their price."""
    assert Plan(LARGE).time(1, 32, 384, 1792, 132) == 14
    assert math.isclose(Plan(HALF).time(1, 32, 768, 1792, 132), (1.15 + 0.8) * 14)
    assert Plan(LARGE, 2).time(1, 32, 256, 1792, 132) == 7 + 1 + 1
