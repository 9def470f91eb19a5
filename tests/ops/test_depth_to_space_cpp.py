"""``depth_to_space`` in C++: the bits of the reference for any factors, layouts, element sizes and threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops import native
from tests.kit.compare import assert_same_bits
from tests.kit.volumes import ORDERS, laid_out
from tests.ops import calls

NAME = "depth_to_space"
pytestmark = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool]


def problem(
    shape=(2, 3, 3, 4, 5), factors=(2, 2, 2), drop=1, x="contiguous", out="contiguous", dtype=torch.float32
) -> calls.Call:
    """``shape`` is that of x, but for its channels: those of ``out``. Random bits, NaN and all."""
    b, c, t, h, w = shape
    p1, p2, p3 = factors
    size = (b, c * p1 * p2 * p3, t, h, w)
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (*size, dtype.itemsize), generator=g, dtype=torch.uint8)
    source = laid_out(bits.view(dtype)[..., 0], x)[0]
    target = laid_out(torch.zeros(b, c, t * p1 - drop, h * p2, w * p3, dtype=dtype), out)[0]
    return {"x": source, "out": target, "factors": list(factors), "drop": drop}


def run(call: calls.Call, backend: str) -> torch.Tensor:
    out = torch.empty_strided(call["out"].shape, call["out"].stride(), dtype=call["out"].dtype).fill_(1)
    with ops.use_backend(backend):
        calls.invoke(NAME, call | {"out": out})
    return out


def check(call: calls.Call) -> None:
    assert_same_bits(run(call, "cpp"), run(call, "reference"), "out")


@st.composite
def problems(draw):
    factors = tuple(draw(st.integers(1, n)) for n in (3, 5, 5))
    t = draw(st.integers(1, 3))
    return problem(
        (draw(st.integers(1, 2)), draw(st.integers(1, 3)), t, draw(st.integers(1, 5)), draw(st.integers(1, 19))),
        factors,
        draw(st.integers(0, t * factors[0] - 1)),
        *(draw(st.sampled_from(sorted(ORDERS))) for _ in range(2)),
        dtype=draw(st.sampled_from(DTYPES)),
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems())
@example(problem((1, 3, 8, 4, 4), (1, 32, 32), 0, "channels_last"))  # the demo's blocks of pixels
@example(problem((1, 8, 2, 5, 16), (2, 2, 2), 1))
@example(problem((1, 3, 2, 16, 16), (1, 4, 4), 0, "turned", "turned"))
@example(problem((1, 1, 2, 3, 4), (2, 4, 4), 0, "channels_last", "channels_last"))
def test_any_shape_factors_and_layout(call):
    check(call)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factors", [(1, 4, 4), (2, 2, 2), (1, 1, 1), (2, 1, 1), (1, 2, 3)], ids=str)
def test_every_element_size(dtype, factors):
    for layout in ("contiguous", "channels_last", "turned"):
        check(problem((2, 3, 2, 3, 21), factors, 0, layout, layout, dtype))


@pytest.mark.parametrize("name", ORDERS)
def test_nothing_is_written_around_the_output(name):
    call = problem(out=name)
    out, memory = laid_out(torch.full_like(call["out"], torch.nan), name, fill=77.0)
    call["x"].fill_(5.0)
    with ops.use_backend("cpp"):
        calls.invoke(NAME, call | {"out": out})
    assert (out == 5.0).all()
    out.fill_(77.0)
    assert (memory == 77.0).all()


def test_results_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    for layout in ("contiguous", "channels_last"):
        call = problem((1, 3, 3, 40, 41), (2, 3, 4), 1, layout, layout)
        try:
            torch.set_num_threads(3)
            check(call)
        finally:
            torch.set_num_threads(threads)


def direct(**change) -> int:
    """Error code of the compiled function; ``out`` must be as it was when there is one."""
    call = problem()
    x, out = call["x"].fill_(1), call["out"].fill_(0)
    arguments = {
        "x": x.data_ptr(),
        "out": out.data_ptr(),
        "shape": (2, 3, 3, 4, 5),
        "factors": call["factors"],
        "drop": call["drop"],
        "x_strides": x.stride(),
        "out_strides": out.stride(),
        "element_size": 4,
    }
    code = native.module()[0].depth_to_space(*(arguments | change).values())
    assert (out == 0).all() == (code != 0 or 0 in (arguments | change)["shape"])
    return code


@pytest.mark.parametrize(
    "change, text",
    [
        ({"element_size": 3}, "element size is not one of 1, 2, 4, 8 bytes"),
        ({"element_size": 16}, "element size is not one of"),
        ({"shape": (2, 3, 3, -4, 5)}, "bad shape: a size is negative"),
        ({"shape": (2, -1, 3, 4, 5)}, "bad shape: a size is negative"),
        ({"factors": (2, 0, 2)}, "a factor is below 1"),
        ({"drop": -1}, "drop leaves no frame"),
        ({"drop": 6}, "drop leaves no frame"),
        ({"x": 0}, "the address of a required tensor is null"),
        ({"out": 0}, "the address of a required tensor is null"),
    ],
)
def test_the_module_checks_before_it_writes(change, text):
    assert text in native.module()[0].error_string(direct(**change))


def test_the_module_takes_five_sizes_and_empty_tensors():
    assert direct() == 0 and direct(shape=(0, 3, 3, 4, 5), x=0, out=0) == 0
    with pytest.raises(TypeError):
        direct(factors=(2, 2))


def test_it_is_the_default_where_it_is_compiled():
    for dtype, name in ((torch.float64, "cpp"), (torch.uint8, "cpp"), (torch.complex64, "reference")):
        call = problem(dtype=torch.float32)
        args, kwargs = calls.split(NAME, call | {"x": call["x"].to(dtype), "out": call["out"].to(dtype)})
        spec = ops.depth_to_space.check(*args, **kwargs)
        assert ops.depth_to_space.choose(spec, None).name == name
