"""``pixel_norm_silu`` in C++ against the reference: fp32, bf16, fp16, any layout and size, special numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops import native
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.kit.volumes import ORDERS, laid_out
from tests.ops import calls

NAME = "pixel_norm_silu"
pytestmark = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")

# Roundings of 2^-24 each, on either side: the sum of squares, some 40 additions of either sign, of which the root
# halves what is left, 2; division, sum and root 2; products and modulation 3; SiLU 5. They do not all point one way.
FP32 = 16 * 2.0**-24
# Half a unit in the last place, relative to the smallest number with that exponent: 8 and 11 significant bits.
LOW = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SHAPES = {
    "demo": (1, 64, 4, 32, 32),
    "odd": (2, 37, 3, 7, 5),
    "one_channel": (2, 1, 2, 3, 70),
    "many_channels": (1, 300, 1, 3, 3),
    "one_pixel": (1, 130, 1, 1, 1),
}
MODULATED = pytest.mark.parametrize("modulated", [True, False], ids=["scale_and_shift", "plain"])


def problem(shape, dtype=torch.float32, modulated=True, x="contiguous", out="contiguous", seed=0) -> calls.Call:
    g = torch.Generator().manual_seed(seed)
    numbers = (3 * torch.randn(shape, generator=g)).to(dtype)
    scale, shift = ((0.5 * torch.randn(shape[1], generator=g)).to(dtype) for _ in range(2))
    call = {"x": laid_out(numbers, x)[0], "scale": scale, "shift": shift}
    call["out"] = laid_out(torch.full(shape, torch.nan, dtype=dtype), out, torch.nan)[0]
    return call | {"eps": 1e-4} | ({} if modulated else {"scale": None, "shift": None})


def run(call: calls.Call, backend: str) -> torch.Tensor:
    """``out`` of the call on a poisoned output of the same layout."""
    out = torch.empty_strided(call["out"].shape, call["out"].stride(), dtype=call["out"].dtype).fill_(torch.nan)
    with ops.use_backend(backend):
        calls.invoke(NAME, call | {"out": out})
    return out


def widened(call: calls.Call) -> calls.Call:
    return call | {n: call[n].double() for n in ("x", "scale", "shift", "out") if call[n] is not None}


def largest(want: torch.Tensor) -> float:
    """What a rounding of y counts by: |y silu'(y)| is at most 1.1 |silu(y)| for y > 1 and below 1 elsewhere."""
    return max(float(want.abs().max()), 1.0)


@MODULATED
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fp32_is_the_reference(shape, layout, modulated):
    call = problem(shape, modulated=modulated, x=layout, out=layout)
    want = run(call, "reference")
    assert_close(run(call, "cpp"), want, atol=FP32 * largest(want), reason="a dozen fp32 roundings on either side")


@MODULATED
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_low_precision_is_at_most_twice_eager(shape, dtype, modulated):
    for layout in ("contiguous", "channels_last"):
        call = problem(shape, dtype, modulated, layout, layout)
        got, eager, exact = run(call, "cpp"), run(call, "reference"), run(widened(call), "reference")
        twice_eager(got, eager, exact, tiny=1e-6)
        # And it rounds once: nothing is off by more than half a unit, but for fp32 noise next to a tie.
        assert_close(got, exact, rtol=LOW[dtype] * 1.01, atol=1e-5, reason="fp32 inside, one rounding at the end")


@st.composite
def problems(draw):
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 70)), *(draw(st.integers(1, n)) for n in (3, 9, 9)))
    x, out = (draw(st.sampled_from(sorted(ORDERS))) for _ in range(2))
    return problem(shape, modulated=draw(st.booleans()), x=x, out=out, seed=draw(st.integers(0, 99)))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_and_layout(call):
    want = run(call, "reference")
    assert_close(run(call, "cpp"), want, atol=FP32 * largest(want), reason="a dozen fp32 roundings on either side")


@pytest.mark.parametrize("name", ORDERS)
def test_nothing_is_written_around_the_output(name):
    call = problem((2, 5, 3, 4, 6), out=name)
    out, memory = laid_out(call["out"], name, fill=77.0)
    with ops.use_backend("cpp"):
        calls.invoke(NAME, call | {"out": out})
    assert not out.isnan().any()
    out.fill_(77.0)
    assert (memory == 77.0).all()


def test_the_place_of_a_pixel_does_not_matter():
    """Any part of a picture gives the bits that it has in the whole: what streams in pieces rests on."""
    call = problem((2, 48, 3, 9, 21))
    whole = run(call, "cpp")
    for part in ((slice(1, 2), slice(None), slice(2, 3)), (slice(None), slice(None), slice(0, 2), slice(3, 8))):
        alone = call | {"x": call["x"][part].contiguous(), "out": call["out"][part].contiguous()}
        assert_same_bits(run(alone, "cpp"), whole[part], f"part {part}")


def test_results_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    for layout in ("contiguous", "channels_last"):
        call, results = problem((1, 32, 4, 33, 40), x=layout, out=layout), []
        for count in (1, 3):
            try:
                torch.set_num_threads(count)
                results.append(run(call, "cpp"))
            finally:
                torch.set_num_threads(threads)
        assert_same_bits(results[1], results[0], layout)


# -- SiLU by itself: scale = -1 takes the norm away, and y = shift


def silu(y: torch.Tensor, layout: str = "contiguous") -> torch.Tensor:
    """Of numbers [n]; each is computed for 70 pixels: whole vectors and what is left of them."""
    x = laid_out(torch.ones(1, len(y), 1, 1, 70, dtype=y.dtype), layout)[0]
    call = {"x": x, "scale": torch.full_like(y, -1), "shift": y, "out": x, "eps": 1e-4}
    got = run(call, "cpp")
    first = got[0, :, 0, 0, 0]
    assert_same_bits(got, first.view(1, -1, 1, 1, 1).expand(got.shape), "every pixel")
    return first


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_silu_to_a_few_units(layout):
    """In units of 2^-24: the exponential 2; the sum, the product with y and the quotient 1 each."""
    g = torch.Generator().manual_seed(0)
    y = torch.cat([torch.linspace(-86.4, 100, 3000), torch.randn(2000, generator=g), torch.logspace(-38, 38, 500)])
    y = torch.cat([y, -torch.logspace(-38, 1.93, 500)])
    exact = y.double() / (1 + (-y.double()).exp())
    assert_close(silu(y, layout), exact, rtol=5 * 2.0**-24, atol=2.0**-148, reason="2 + 3 units at most")


def test_silu_far_out():
    """Where e^y is below 2.7e-38 it counts as 0, never as something that a large y makes large."""
    y = torch.tensor([-86.6, -88.0, -100.0, -1e4, -1e30, -3e38])
    got = silu(y)
    assert torch.equal(got, torch.zeros(6)) and got.signbit().all()
    y = torch.tensor([88.0, 1e4, 1e30, 3e38, math.inf])
    assert torch.equal(silu(y), y)
    assert silu(torch.tensor([math.nan, -math.inf])).isnan().all()  # as torch: -inf * 0


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_silu_of_every_16_bit_number(dtype):
    y = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    y = y[y.isfinite()]
    tiny = 2.0**-24 if dtype == torch.float16 else 1e-35  # the smallest fp16; what is taken for 0
    exact = torch.nn.functional.silu(y.double())
    assert_close(silu(y), exact, rtol=LOW[dtype] * 1.01, atol=tiny, reason="half a unit in the last place")


# -- special numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_bad_pixel_does_not_spread(value, layout):
    call = problem((1, 33, 2, 5, 17), x=layout, out=layout)
    good = run(call, "cpp")
    call["x"][0, 7, 1, 2, 3] = value
    got, want = run(call, "cpp"), run(call, "reference")
    assert torch.equal(got.isnan(), want.isnan()) and got[0, 7, 1, 2, 3].isnan()
    here = torch.zeros(good.shape, dtype=torch.bool)
    here[0, :, 1, 2, 3] = True
    assert_same_bits(got[~here], good[~here], "the other pixels")


def test_squares_that_overflow():
    """fp16 squares overflow beyond 256, so they go through fp32; those of fp32 beyond 1.8e19, as in the reference."""
    call = problem((1, 9, 1, 4, 5), torch.float16)
    call["x"] *= 5000
    got, exact = run(call, "cpp"), run(widened(call), "reference")
    assert_close(got, exact, rtol=LOW[torch.float16] * 1.01, atol=1e-5, reason="fp32 inside, one rounding at the end")
    call = problem((1, 9, 1, 4, 5))
    call["x"][0, 2] = 1e20
    assert_close(run(call, "cpp"), run(call, "reference"), atol=FP32 * 8, reason="1 / inf = 0 on both sides")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_zeros_keep_their_sign(layout):
    call = problem((1, 4, 1, 3, 30), modulated=False, x=layout, out=layout)
    call["x"].copy_(torch.tensor([0.0, -0.0, -0.0, 0.0]).view(1, 4, 1, 1, 1).expand_as(call["x"]))
    assert_same_bits(run(call, "cpp"), run(call, "reference"), "out")
    assert_same_bits(run(call, "cpp"), call["x"], "out")


# -- the compiled module by itself


def direct(**change) -> int:
    """Error code of the compiled function; ``out`` must be as it was when there is one."""
    call = problem((2, 3, 2, 4, 5))
    x, out = call["x"], call["out"]
    arguments = {
        "x": x.data_ptr(),
        "scale": 0,
        "shift": 0,
        "out": out.data_ptr(),
        "shape": x.shape,
        "x_strides": x.stride(),
        "out_strides": out.stride(),
        "eps": 1e-4,
        "dtype": 0,
    }
    code = native.module()[0].pixel_norm_silu(*(arguments | change).values())
    assert out.isnan().all() == (code != 0 or 0 in (arguments | change)["shape"])
    return code


@pytest.mark.parametrize(
    "change, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"dtype": -1}, "dtype is not one of"),
        ({"shape": (2, 3, 2, -4, 5)}, "bad shape: a size is negative"),
        ({"x": 0}, "the address of a required tensor is null"),
        ({"out": 0}, "the address of a required tensor is null"),
    ],
)
def test_the_module_checks_before_it_writes(change, text):
    assert text in native.module()[0].error_string(direct(**change))


def test_the_module_takes_five_sizes_and_empty_tensors():
    assert direct() == 0 and direct(shape=(0, 3, 2, 4, 5), x=0, out=0) == 0
    with pytest.raises(TypeError):
        direct(x_strides=(1, 2, 3, 4))


def test_it_is_the_default_where_it_is_compiled():
    for dtype, name in ((torch.float32, "cpp"), (torch.float16, "cpp"), (torch.float64, "reference")):
        args, kwargs = calls.split(NAME, problem((1, 2, 1, 2, 2), dtype))
        spec = ops.pixel_norm_silu.check(*args, **kwargs)
        assert ops.pixel_norm_silu.choose(spec, None).name == name
        assert spec.get("layout") == spec.get("out_layout") == "contiguous"
