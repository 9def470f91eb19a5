"""``x0_renoise_step`` in Triton: tokens that stay. test_sampler_steps.py has what holds for every step."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import kit
from tests.ops.cases.x0_renoise_step import assert_held, problem


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 41, 53)], ids=str)
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
def test_tokens_of_motion_stay(dtype, shape):
    call = problem(shape, dtype, torch.float32)
    assert_held(call, kit.run("x0_renoise_step", call, "triton")["z"])
