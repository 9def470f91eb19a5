"""``cfg_euler_step`` in C++ against exact fractions and the reference, in every pair of dtypes.

What holds for every step of a sampler is in test_sampler_steps_cpp.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.compare import assert_close, twice_eager
from tests.ops import calls, cpp
from tests.ops.cases.cfg_euler_step import exact
from tests.ops.cases.sampler_steps import DTYPES

NAME = "cfg_euler_step"
pytestmark = cpp.MISSING
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
