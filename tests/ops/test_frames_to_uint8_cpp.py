"""``frames_to_uint8`` in C++: the bytes of the reference for any layout, size and number."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops import native
from tests.kit.compare import assert_same_bits
from tests.kit.volumes import ORDERS, laid_out
from tests.ops import calls

NAME = "frames_to_uint8"
pytestmark = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(x: torch.Tensor, backend: str) -> torch.Tensor:
    b, _, t, h, w = x.shape
    out = torch.full((b, t, h, w, 3), 77, dtype=torch.uint8)
    with ops.use_backend(backend):
        calls.invoke(NAME, {"x": x, "out": out})
    return out


def check(x: torch.Tensor) -> None:
    assert_same_bits(run(x, "cpp"), run(x, "reference"), "out")


def row(values: torch.Tensor) -> torch.Tensor:
    """A picture [1, 3, 1, 1, n] of these numbers in every colour."""
    return values.view(1, 1, 1, 1, -1).expand(-1, 3, -1, -1, -1)


@st.composite
def problems(draw):
    shape = (draw(st.integers(1, 2)), 3, *(draw(st.integers(1, n)) for n in (3, 7, 40)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(shape, generator=g).to(draw(st.sampled_from(DTYPES)))
    return laid_out(x, draw(st.sampled_from(sorted(ORDERS))))[0]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_and_layout(x):
    check(x)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_16_bit_number(dtype):
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    for layout in ("contiguous", "channels_last"):
        check(laid_out(row(x), layout)[0])


def test_numbers_around_every_border():
    """The 40 floats on either side of the border between k and k + 1: no instruction set may round them otherwise."""
    border = ((torch.arange(255).double() + 0.5) / 127.5 - 1).float()
    x = border.view(torch.int32)[:, None] + torch.arange(-40, 41, dtype=torch.int32)
    x = torch.cat([x.flatten().view(torch.float32), torch.tensor([1e-45, -1e-45, 2.0**-24, -(2.0**-24), 2.0**-25])])
    check(row(x))


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_special_numbers(backend):
    x = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 3e38, -3e38, 0.0, -0.0] * 9)
    want = torch.tensor([0, 0, 255, 0, 255, 0, 128, 128], dtype=torch.uint8)
    assert (run(row(x), backend)[0, 0, 0].view(9, 8, 3) == want[:, None]).all()


def test_results_do_not_depend_on_the_number_of_threads():
    x, threads = torch.randn(1, 3, 3, 121, 130, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        check(x)
    finally:
        torch.set_num_threads(threads)


def direct(**change) -> int:
    """Error code of the compiled function; ``out`` must be as it was when there is one."""
    x, out = torch.zeros(2, 3, 2, 4, 5), torch.full((2, 2, 4, 5, 3), 77, dtype=torch.uint8)
    arguments = {"x": x.data_ptr(), "out": out.data_ptr(), "shape": (2, 2, 4, 5), "x_strides": x.stride(), "dtype": 0}
    code = native.module()[0].frames_to_uint8(*(arguments | change).values())
    assert (out == 77).all() == (code != 0 or 0 in (arguments | change)["shape"])
    return code


@pytest.mark.parametrize(
    "change, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"shape": (2, 2, -4, 5)}, "bad shape: a size is negative"),
        ({"x": 0}, "the address of a required tensor is null"),
        ({"out": 0}, "the address of a required tensor is null"),
    ],
)
def test_the_module_checks_before_it_writes(change, text):
    assert text in native.module()[0].error_string(direct(**change))


def test_the_module_takes_five_sizes_and_empty_tensors():
    assert direct() == 0 and direct(shape=(0, 2, 4, 5), x=0, out=0) == 0
    with pytest.raises(TypeError):
        direct(x_strides=(1, 2, 3, 4, 5, 6))


def test_it_is_the_default_where_it_is_compiled():
    for dtype, name in ((torch.float32, "cpp"), (torch.bfloat16, "cpp"), (torch.float64, "reference")):
        args, kwargs = calls.split(NAME, calls.frames_to_uint8(dtype))
        spec = ops.frames_to_uint8.check(*args, **kwargs)
        assert ops.frames_to_uint8.choose(spec, None).name == name
