"""``qk_norm_rope_cache`` in C++ against the reference: fp32, bf16, fp16, demo and odd sizes, error codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rest_fast import ops
from rest_fast.ops import native
from rest_fast.ops.dispatch import OpError
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.qk_norm_rope_cache import FP32, SIZES, problems, written_slots

NAME = "qk_norm_rope_cache"
pytestmark = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")

# Half a unit in the last place, relative to the smallest number with that exponent: 8 and 11 significant bits.
LOW = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def run(call: calls.Call, backend: str) -> calls.Call:
    """The call on copies of what it writes."""
    copy = call | {name: call[name].clone() for name in calls.written(NAME)}
    with ops.use_backend(backend):
        calls.invoke(NAME, copy)
    return copy


def widened(call: calls.Call) -> calls.Call:
    """The same numbers in float64; the rotary tables stay fp32, as the op demands."""
    names = ("qkv", "q_weight", "k_weight", "k_cache", "v_cache", "q_out")
    return call | {name: call[name].double() for name in names}


def results(call: calls.Call) -> list[torch.Tensor]:
    return [call["q_out"], call["k_cache"][written_slots(call)]]


def check_writes(call: calls.Call, got: calls.Call, want: calls.Call) -> None:
    mask = written_slots(call)
    assert_same_bits(got["v_cache"], want["v_cache"], "values, which are copied")
    assert_same_bits(got["k_cache"][~mask], call["k_cache"][~mask], "keys outside the written slots")


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_fp32_is_the_reference(shape):
    call = calls.qk_norm_rope_cache(**shape)
    call["k_cache"][written_slots(call)] = torch.nan
    got, want = run(call, "cpp"), run(call, "reference")
    check_writes(call, got, want)
    for mine, theirs in zip(results(got), results(want)):
        assert_close(mine, theirs, atol=FP32 * float(theirs.abs().max()), reason="12 fp32 roundings of a pair")


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_low_precision_is_at_most_twice_eager(shape, dtype):
    call = calls.qk_norm_rope_cache(**shape, dtype=dtype)
    call["k_cache"][written_slots(call)] = torch.nan
    got, eager, exact = run(call, "cpp"), run(call, "reference"), run(widened(call), "reference")
    check_writes(call, got, eager)
    for mine, theirs, truth in zip(*(results(c) for c in (got, eager, exact))):
        twice_eager(mine, theirs, truth, tiny=1e-6)
        # And it rounds once: nothing is off by more than half a unit, but for fp32 noise next to a tie.
        assert_close(mine, truth, rtol=LOW[dtype] * 1.01, atol=1e-5, reason="fp32 inside, one rounding at the end")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_row_and_slot(call):
    got, want = run(call, "cpp"), run(call, "reference")
    check_writes(call, got, want)
    for mine, theirs in zip(results(got), results(want)):
        # Of a sample this small the largest result may come from a small pair: bound it by the input as well.
        scale = float(theirs.abs().max()) + 1
        assert_close(mine, theirs, atol=FP32 * scale, reason="12 fp32 roundings of a pair")


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_conversion_of_every_16_bit_number(dtype):
    """x = 1 and eps = 0 make the norm exact: q_out = round(weight * cos), for all weights, specials included."""
    count = 1 << 16
    weight = torch.zeros(2 * count, dtype=dtype)
    weight[0::2] = torch.arange(count, dtype=torch.int32).to(torch.uint16).view(dtype)
    width, n = 2 * count, 2 * count // 6
    cosine = torch.exp2(4 * torch.randn(n, generator=torch.Generator().manual_seed(0)))
    table = torch.stack([cosine, torch.zeros(n)], -1)
    call = calls.qk_norm_rope_cache(
        heads=1, dim=12, frames=1, grid=(1, 1), rows=(0,), banks=(0,), slots=(0,), base=(0,)
    )
    call |= {
        "qkv": torch.ones(1, 1, 3 * width, dtype=dtype),
        "q_weight": weight,
        "k_weight": weight,
        **{name: table[None].contiguous() for name in ("rope_t", "rope_y", "rope_x")},
        **{name: torch.zeros(1, 1, 1, 1, width, dtype=dtype) for name in ("k_cache", "v_cache")},
        "q_out": calls.nans(1, 1, 1, width, dtype=dtype),
        "eps": 0.0,
    }
    still = count - 3 * n
    factor = torch.cat([torch.ones(still), cosine.repeat_interleave(3)])
    want = (weight[0::2].float() * factor).to(dtype)
    for got in results(run(call, "cpp")):
        got = got.flatten()[0::2]
        # An infinite weight times sin = 0 is NaN in the odd channel, and stays infinite here.
        nan = want.isnan()
        assert torch.equal(got.isnan(), nan)
        assert_same_bits(got[~nan], want[~nan], "rounded products")


def test_results_do_not_depend_on_the_number_of_threads():
    shape = SIZES["demo"] | {"rows": (2, 0, 1, 3), "banks": (0,) * 4, "slots": (64, 16, 0, 1), "base": (0, 1, 2, 3)}
    call, threads = calls.qk_norm_rope_cache(**shape), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(call, "cpp")
        torch.set_num_threads(3)
        three = run(call, "cpp")
    finally:
        torch.set_num_threads(threads)
    for name in calls.written(NAME):
        assert_same_bits(three[name], one[name], name)


def test_lanes_of_one_call_equal_lanes_apart():
    call = calls.qk_norm_rope_cache()
    together = run(call, "cpp")
    for lane in range(2):
        names = ("qkv", "q_out", "row_index", "bank_index", "write_slot", "base")
        alone = run(call | {name: call[name][lane : lane + 1].contiguous() for name in names}, "cpp")
        assert_same_bits(alone["q_out"][0], together["q_out"][lane], f"queries of lane {lane}")
        mask = written_slots(alone)
        assert_same_bits(alone["k_cache"][mask], together["k_cache"][mask], f"keys of lane {lane}")


@pytest.mark.parametrize(
    "argument, value, text",
    [
        ("row_index", 4, "row_index is outside the cache rows"),
        ("row_index", -2, "row_index is outside the cache rows"),
        ("bank_index", 2, "bank_index is outside the cache banks"),
        ("write_slot", 9, r"write_slot \+ tokens is outside the cache slots"),
        ("write_slot", -1, r"write_slot \+ tokens is outside the cache slots"),
        ("base", 4, r"base \+ latent frames is outside the rows of rope_t"),
        ("base", -1, r"base \+ latent frames is outside the rows of rope_t"),
    ],
)
def test_the_module_checks_indices_itself_before_it_writes(argument, value, text):
    """Called past the Python checks; the bad lane is the last one, and not even the first is written."""
    call = calls.qk_norm_rope_cache()
    call[argument][1] = value
    before = {name: call[name].clone() for name in calls.written(NAME)}
    args, kwargs = calls.split(NAME, call)
    cpp = next(b for b in ops.qk_norm_rope_cache.backends if b.name == "cpp")
    with pytest.raises(OpError, match=f"{NAME}: {text}"):
        cpp.run(*args, **kwargs)
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


def test_it_is_the_default_where_it_is_compiled():
    for dtype, name in ((torch.float32, "cpp"), (torch.float16, "cpp"), (torch.float64, "reference")):
        args, kwargs = calls.split(NAME, calls.qk_norm_rope_cache(dtype=dtype))
        spec = ops.qk_norm_rope_cache.check(*args, **kwargs)
        assert ops.qk_norm_rope_cache.choose(spec, None).name == name
