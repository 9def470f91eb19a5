"""``x0_renoise_step`` in C++ against exact fractions and the reference, in every pair of dtypes.

What holds for every step of a sampler is in test_sampler_steps_cpp.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kit.compare import assert_close, twice_eager
from tests.ops import calls, cpp
from tests.ops.cases.sampler_steps import DTYPES
from tests.ops.cases.x0_renoise_step import FP32, WHY, assert_held, exact

NAME = "x0_renoise_step"
pytestmark = cpp.MISSING


@pytest.mark.parametrize("velocity", DTYPES, ids=str)
def test_fp32_latents_are_the_formula(velocity):
    call = calls.x0_renoise_step(torch.float32, velocity)
    assert_close(cpp.run(NAME, call)["z"], exact(call), atol=FP32, reason=WHY)


@pytest.mark.parametrize("velocity", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", cpp.LOW, ids=str)
def test_low_latents_are_rounded_once(dtype, velocity):
    call = calls.x0_renoise_step(dtype, velocity)
    got, want = cpp.run(NAME, call)["z"], exact(call)
    assert_close(got, want, rtol=1.01 * cpp.LOW[dtype], atol=FP32, reason="fp32 inside, one rounding at the end")
    twice_eager(got, cpp.run(NAME, call, "reference")["z"], want, tiny=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 40)),
    st.lists(st.integers(0, 9), min_size=4, max_size=4),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
def test_any_shape_and_count(shape, held, velocity, seed):
    call = calls.x0_renoise_step(torch.float32, velocity, shape, tuple(min(n, shape[1]) for n in held), seed)
    got, want = cpp.run(NAME, call)["z"], cpp.run(NAME, call, "reference")["z"]
    assert_close(got, want, atol=2 * FP32, reason="six fp32 roundings on both sides")
    assert_held(call, got)
