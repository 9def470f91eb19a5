"""``x0_renoise_step`` in CUDA, on the CPU: tokens that stay. test_sampler_steps.py has what holds for every step."""

from __future__ import annotations

import itertools

import pytest

from tests.cuda_shim import built
from tests.kit.compare import assert_close
from tests.ops import calls
from tests.ops.cases.sampler_steps import DTYPES
from tests.ops.cases.x0_renoise_step import FP32, WHY, assert_held, exact

NAME = "x0_renoise_step"


@pytest.mark.parametrize("dtype, velocity", list(itertools.product(DTYPES, DTYPES)), ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 16), (2, 9, 128)], ids=str)
def test_tokens_of_motion_stay(shape, dtype, velocity):
    call = calls.x0_renoise_step(dtype, velocity, shape)
    assert_held(call, built.run(NAME, call)["z"])


def test_no_vector_lies_in_two_tokens():
    """Six channels: 48 numbers of a session are whole vectors, the tokens are not."""
    call = calls.x0_renoise_step(shape=(3, 8, 6), held=(1, 0, 3))
    got = built.run(NAME, call)["z"]
    assert_close(got, exact(call), atol=FP32, reason=WHY)
    assert_held(call, got)
