"""``cfg_euler_step`` in C++ against exact fractions and the reference, in every pair of dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops.dispatch import OpError
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls, cpp
from tests.ops.cases.cfg_euler_step import exact

NAME = "cfg_euler_step"
pytestmark = cpp.MISSING
DTYPES = (torch.float32, *cpp.LOW)
FP32 = 5 * cpp.UNIT  # v_c - v_u, its product, the sum; product with dt, sum


def size_of_terms(call: calls.Call) -> torch.Tensor:
    """float64 size of what is added up: the roundings are relative to this."""
    g, dt = (call[name].double().abs()[:, None, None] for name in ("guidance", "dt"))
    z, c, u = (call[name].double().abs() for name in ("z", "v_cond", "v_uncond"))
    return z + dt * (u + g * (c + u))


@pytest.mark.parametrize("velocity", DTYPES, ids=str)
def test_fp32_latents_are_the_formula(velocity):
    call = calls.cfg_euler_step(torch.float32, velocity)
    size = size_of_terms(call)
    assert_close(cpp.run(NAME, call)["z"] / size, exact(call) / size, atol=FP32, reason="five fp32 roundings")


@pytest.mark.parametrize("velocity", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", cpp.LOW, ids=str)
def test_low_latents_are_rounded_once(dtype, velocity):
    call = calls.cfg_euler_step(dtype, velocity)
    got, want = cpp.run(NAME, call)["z"], exact(call)
    assert_close(got, want, rtol=1.01 * cpp.LOW[dtype], atol=2e-6, reason="fp32 inside, one rounding at the end")
    twice_eager(got, cpp.run(NAME, call, "reference")["z"], want, tiny=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 40)), st.sampled_from(DTYPES), st.integers(0, 99))
def test_any_shape(shape, velocity, seed):
    call = calls.cfg_euler_step(torch.float32, velocity, shape, seed)
    got, want, size = cpp.run(NAME, call)["z"], cpp.run(NAME, call, "reference")["z"], size_of_terms(call)
    assert_close(got / size, want / size, atol=2 * FP32, reason="five fp32 roundings on both sides")


def test_no_step_changes_nothing():
    for dtype in DTYPES:
        call = calls.cfg_euler_step(dtype)
        call["dt"].zero_()
        assert torch.equal(cpp.run(NAME, call)["z"], call["z"])


def test_large_velocities_in_bf16():
    """Guidance takes 6 v_c past the largest float16 and back; fp32 inside does not notice."""
    call = calls.cfg_euler_step(torch.float16)
    call["v_cond"].fill_(6e4), call["v_uncond"].fill_(6e4), call["dt"].fill_(-0.5), call["z"].fill_(3e4)
    assert torch.equal(cpp.run(NAME, call)["z"], torch.zeros_like(call["z"]))


@pytest.mark.parametrize("name", ["z", "v_cond", "v_uncond", "guidance", "dt"])
def test_nan_of_one_session_stays_there(name):
    call = calls.cfg_euler_step()
    clean = cpp.run(NAME, call)["z"]
    call[name][1] = torch.nan
    got = cpp.run(NAME, call)["z"]
    assert got[1].isnan().all()
    assert_same_bits(got[[0, 2]], clean[[0, 2]], "other sessions")


def test_threads():
    one, three = cpp.by_threads(NAME, calls.cfg_euler_step(shape=(3, 333, 101)))
    assert_same_bits(three["z"], one["z"], "z")


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"dtype": -1}, "dtype is not one of"),
        ({"velocity_dtype": 3}, "dtype is not one of"),
        ({"sessions": -1}, "bad shape"),
        ({"numel": -1}, "bad shape"),
        *(
            ({name: 0}, "address of a required tensor is null")
            for name in ("z", "v_cond", "v_uncond", "guidance", "dt")
        ),
    ],
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.cfg_euler_step()
    before = call["z"].clone()
    assert text in cpp.direct(NAME, call, changes)
    assert_same_bits(call["z"], before, "z")
    assert cpp.direct(NAME, call, {}) == "ok"
    assert (call["z"] != before).any()


def test_nothing_to_do():
    for shape in ((0, 5, 7), (2, 0, 7)):
        assert cpp.run(NAME, calls.cfg_euler_step(shape=shape))["z"].shape == shape


def test_it_is_the_default_where_it_is_compiled():
    double = torch.float64
    for z, velocity, name in ((torch.float32, torch.bfloat16, "cpp"), (torch.float32, double, "reference")):
        args, kwargs = calls.split(NAME, calls.cfg_euler_step(z, velocity))
        assert ops.cfg_euler_step.choose(ops.cfg_euler_step.check(*args, **kwargs), None).name == name
    with pytest.raises(OpError, match=r"'cpp' cannot run .*velocity dtype torch.float64 is not compiled in"):
        cpp.run(NAME, calls.cfg_euler_step(torch.float32, double))
