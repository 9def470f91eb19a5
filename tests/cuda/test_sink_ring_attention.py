"""``sink_ring_attention`` in CUDA, on the CPU: the cases of the Triton kernel at head sizes 64 and 128."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.ops.dispatch import OpError, Spec
from tests.cuda_shim import built
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.sink_ring_attention import BROKEN, HUNDRED_SLOTS, WRONG, spoilt

NAME = "sink_ring_attention"
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
WRITTEN = ("out", "lse")
BY_LANE = ("q", *WRITTEN, "row_index", "bank_index", "n_valid")
# The reference rounds once, the kernel also rounds the weights, each by the same 2^-11 (2^-8): independent errors of
# the same size make sqrt(2) of one, within the rule's factor of 2.
TINY_ERROR = 2e-6
LSE = {"atol": 4e-6, "reason": "fp32 sums of exact products: a few roundings of a number below 10"}


def call(dtype: torch.dtype = torch.float16, **changes) -> calls.Call:
    """A cache of 4 rows, 2 banks and 100 slots, NaN wherever no lane may read."""
    sizes = {"tokens": 18, "heads": 2, "dim": 64, "cache": (4, 2, 100), "n_valid": (63, 100, 1)}
    return calls.sink_ring_attention(**(sizes | changes), dtype=dtype)


def run(given_call: calls.Call) -> calls.Call:
    return built.run(NAME, given_call)


def check(given_call: calls.Call) -> calls.Call:
    got, eager = run(given_call), kit.run(NAME, given_call, "reference")
    exact = kit.run(NAME, kit.widened(NAME, given_call), "reference")
    twice_eager(got["out"], eager["out"], exact["out"], tiny=TINY_ERROR)
    assert_close(got["lse"], exact["lse"], **LSE)
    return got


@DTYPES
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("phase", HUNDRED_SLOTS.values(), ids=HUNDRED_SLOTS)
def test_every_phase(phase, dim, dtype):
    check(call(dtype, **({"heads": 1, "dim": dim} | phase)))


# Around 64 keys a tile, 64 and 128 queries a block, 16 and 32 rows a warp; two blocks of either kind.
ODD = [(63, 3, 64, (112, 77)), (65, 1, 64, (64, 128)), (129, 1, 64, (191, 65)), (48, 3, 64, (112, 64))]
WIDE = [(65, 1, 128, (193, 33)), (17, 2, 128, (64, 129))]


@DTYPES
@pytest.mark.parametrize("tokens, heads, dim, n_valid", ODD + WIDE)
def test_sizes_around_tiles(tokens, heads, dim, n_valid, dtype):
    sizes = {"tokens": tokens, "heads": heads, "dim": dim, "cache": (3, 2, max(n_valid) + 5)}
    check(call(dtype, rows=(2, 0), banks=(0, 1), n_valid=n_valid, **sizes))


def any_sizes(data: st.DataObject) -> calls.Call:
    lanes, banks, slots = (data.draw(st.integers(1, most)) for most in (3, 2, 150))
    rows = data.draw(st.permutations(range(lanes + 1)))[:lanes]
    bank = tuple(data.draw(st.integers(0, banks - 1)) for _ in rows)
    n_valid = tuple(data.draw(st.integers(1, slots)) for _ in rows)
    sizes = {"tokens": data.draw(st.integers(1, 140)), "heads": data.draw(st.integers(1, 3))}
    sizes |= {"dim": data.draw(st.sampled_from([64, 128])), "seed": data.draw(st.integers(0, 99))}
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16]))
    return call(dtype, rows=tuple(rows), banks=bank, n_valid=n_valid, cache=(lanes + 1, banks, slots), **sizes)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.data())
def test_any_sizes(data):
    check(any_sizes(data))


@pytest.mark.slow
@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.data())
def test_many_sizes(data):
    check(any_sizes(data))


@pytest.mark.slow
@DTYPES
def test_the_real_sizes_of_a_head(dtype):
    """rest-512, one head: the first chunk's length and the steady state's."""
    sizes = {"tokens": 768, "heads": 1, "cache": (2, 1, 1792), "rows": (1, 0), "banks": (0, 0)}
    check(call(dtype, n_valid=(1024, 1792), **sizes))


@pytest.mark.parametrize("changes", [{"tokens": 70}, {"dim": 128}], ids=["64", "128"])
def test_the_order_of_threads_shows_nowhere(changes):
    """Nor in a tile that is overwritten while others are under way: a missing barrier would."""
    made = call(**changes, n_valid=(97, 100, 65), heads=1)
    order = ctypes.c_int.in_dll(ctypes.CDLL(str(built.path())), "cuda_on_cpu_backwards")
    forwards = run(made)
    order.value = 1
    try:
        backwards = run(made)
    finally:
        order.value = 0
    for name in WRITTEN:
        assert_same_bits(backwards[name], forwards[name], name)


@pytest.mark.parametrize("changes", [{"tokens": 70}, {"dim": 128}], ids=["64", "128"])
def test_tiles_are_read_without_bank_conflicts(changes):
    count = ctypes.c_int64.in_dll(ctypes.CDLL(str(built.path())), "cuda_on_cpu_bank_conflicts")
    before = count.value
    run(call(**changes, heads=1))
    assert count.value == before


@DTYPES
@pytest.mark.parametrize("changes", [{"tokens": 70}, {"dim": 128}], ids=["64", "128"])
def test_twice_and_alone_the_same_bits(changes, dtype):
    made = call(dtype, **changes, heads=1)
    first, again = run(made), run(made)
    for name in WRITTEN:
        assert_same_bits(again[name], first[name], name)
    for lane in (2, 0, 1):
        alone = run(made | {name: made[name][lane : lane + 1] for name in BY_LANE})
        for name in WRITTEN:
            assert_same_bits(alone[name][0], first[name][lane], f"{name} of lane {lane}")


def test_reads_only_and_memory_around_the_results():
    made = call(tokens=5, heads=1)
    memory = {name: torch.full((5, *made[name].shape[1:]), 77.0, dtype=made[name].dtype) for name in WRITTEN}
    before = {name: v.clone() for name, v in made.items() if isinstance(v, torch.Tensor)}
    built.run(NAME, made | {name: memory[name][1:4] for name in WRITTEN}, in_place=True)
    for name in WRITTEN:
        assert (memory[name][[0, 4]] == 77).all() and (memory[name][1:4] != 77).all()
    for name in ("q", "k_cache", "v_cache", "row_index", "bank_index", "n_valid"):
        assert_same_bits(made[name], before[name], name)


def test_order_of_slots_does_not_matter():
    made = call(rows=(1,), banks=(0,), n_valid=(100,), tokens=5, heads=1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    got, want = run(made | {name: made[name][:, :, order] for name in ("k_cache", "v_cache")}), run(made)
    assert_close(got["lse"], want["lse"], atol=4e-6, reason="another order of fp32 sums below 10")
    assert_close(got["out"], want["out"], atol=2**-11, rtol=2**-10, reason="the same, and weights of other tiles' tops")


def test_without_lse():
    made = call(tokens=5, heads=1)
    want = run(made)["out"]
    short = {name: value for name, value in made.items() if name != "lse"}
    assert_same_bits(run(short)["out"], want, "out")
    assert_same_bits(run(short | {"lse": None})["out"], want, "out")


def test_large_scores_neither_overflow_nor_leak():
    """fp16 products of 40 x 40 over 64 channels leave its range; all scores are equal, so the result is a mean."""
    made = call(n_valid=(40, 37, 1), tokens=5, heads=1)
    made["q"][:] = 40
    made["k_cache"][~made["k_cache"].isnan()] = 40
    got, n = run(made), made["n_valid"].tolist()
    for lane, count in enumerate(n):
        mean = made["v_cache"][int(made["row_index"][lane]), int(made["bank_index"][lane]), :count].double().mean(0)
        assert_close(
            got["out"][lane], mean.expand_as(got["out"][lane]), atol=2**-10, reason="one fp16 rounding below 4"
        )
    want = made["scale"] * 64 * 1600 + made["n_valid"].double().log()
    assert_close(got["lse"], want[:, None, None].expand_as(got["lse"]), atol=4e-3, reason="fp32 at 18000: 2^-23 of it")


@pytest.mark.parametrize("scale", [-300.0, -0.25, 0.0, 1.0, 300.0])
def test_any_scale(scale):
    """300: the largest score takes all, and subtracting any other than the largest would overflow."""
    made = call(tokens=5, heads=1) | {"scale": scale}
    got, exact = run(made), kit.run(NAME, kit.widened(NAME, made) | {"scale": scale}, "reference")
    size = max(abs(scale), 1.0)
    assert_close(got["lse"], exact["lse"], atol=3e-5 * size, reason="scores below 40 scale, a few 2^-24 of it")
    rounded = kit.run(NAME, made, "reference")["out"]
    twice_eager(got["out"], rounded, exact["out"], tiny=1e-5 * size)


@DTYPES
def test_nan_of_a_query_is_its_result(dtype):
    made = call(dtype, rows=(1,), banks=(1,), n_valid=(100,))
    want = run(made)
    made["q"][0, 3, 1, 7] = torch.nan
    lost = torch.zeros(18, 2, dtype=torch.bool)
    lost[3, 1] = True
    got = run(made)
    assert got["out"][0][lost].isnan().all() and got["lse"][0].T[lost].isnan().all()
    assert_same_bits(got["out"][0][~lost], want["out"][0][~lost], "the other queries")


@DTYPES
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_finite_is_so_where_it_is_in_the_reference(name, dtype):
    """Where a log-sum-exp is infinite the kernel says NaN: to tell the two apart would cost its inner loop."""
    made = spoilt(name, dim=64, tokens=18, dtype=dtype)
    got, want = run(made), kit.run(NAME, made, "reference")
    for output in WRITTEN:
        assert torch.equal(got[output].isfinite(), want[output].isfinite()), output
    number = want["lse"].isfinite()
    assert_close(got["lse"][number], want["lse"][number], atol=1e-5, reason="few fp32 roundings of scores below 10")


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_lane_with_a_wrong_index_is_left_alone(wrong):
    """The host refuses these where it can see them; on a GPU only the kernel can. Its neighbours go on."""
    made = call(tokens=5, heads=1)
    want = run(made)
    made["out"][1], made["lse"][1] = 7.0, 8.0
    got = run(made | {name: calls.ints(*values) for name, values in wrong.items()})
    assert (got["out"][1] == 7).all() and (got["lse"][1] == 8).all()
    for lane in (0, 2):
        for name in WRITTEN:
            assert_same_bits(got[name][lane], want[name][lane], f"{name} of lane {lane}")


def test_a_cache_beyond_32_bits():
    """The last row of a cache of more than 2^32 bytes, which exists for as much of it as is touched."""
    rows = 2**31 // (100 * 64) + 2
    made = call(rows=(0,), banks=(0,), n_valid=(100,), cache=(1, 1, 100), heads=1)
    want = run(made)
    far = made | {"row_index": calls.ints(rows - 1)}
    for name in ("k_cache", "v_cache"):
        far[name] = torch.empty(rows, 1, 100, 1, 64, dtype=torch.float16)
        far[name][-1] = made[name][0]
    assert_same_bits(run(far)["out"], want["out"], "out")


def backend():
    return next(b for b in calls.OPS[NAME].backends if b.name == "cuda")


@pytest.mark.parametrize(
    "dtype, dims, says",
    [
        (torch.bfloat16, {"head_dim": 32}, "head size 64 or 128 only, got 32"),
        (torch.float32, {"head_dim": 64}, "float32"),
    ],
)
def test_what_it_refuses_by_name(dtype, dims, says, monkeypatch):
    monkeypatch.setattr("rest_fast.ops.native.module", lambda name: (built.module(), ""))
    ok, reason = backend().supports(Spec("cuda", dtype, tuple(dims.items())))
    assert not ok and says in reason
    assert backend().supports(Spec("cuda", torch.bfloat16, (("head_dim", 64),))) == (True, "")
    assert "CUDA tensors only" in backend().supports(Spec("cpu", torch.bfloat16))[1]


def test_what_the_launcher_refuses():
    made = call(tokens=5, heads=1)
    shifted = torch.zeros(made["q"].numel() + 1, dtype=torch.float16)[1:].view(made["q"].shape)
    for changed, says in (
        ({"q": 0}, "null"),
        ({"head_dim": 32}, "head size is not one of 64, 128"),
        ({"dtype": 0}, "dtype"),
        ({"dtype": 7}, "dtype"),
        ({"q": shifted.data_ptr()}, "16 bytes"),
        ({"row_stride": 100 * 64 + 4}, "16 bytes"),
        ({"batch": 65536}, "bad shape"),
    ):
        with pytest.raises(OpError, match=rf"^{NAME}: .*{says}.*; got q \[3, 5, 1, 64\] torch.float16, k_cache \["):
            built.run(NAME, made, **changed)
    assert made["out"].isnan().all()


def test_a_gpu_that_is_too_old():
    capability = ctypes.c_int.in_dll(ctypes.CDLL(str(built.path())), "cuda_on_cpu_capability")
    capability.value = 75
    try:
        with pytest.raises(OpError, match=r"needs compute capability 8\.0"):
            run(call(tokens=5, heads=1))
    finally:
        capability.value = 80
