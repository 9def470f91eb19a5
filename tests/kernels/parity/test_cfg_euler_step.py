"""``cfg_euler_step`` in Triton: guidance and steps of which the result is known. test_sampler_steps.py has what holds
for every step."""

from __future__ import annotations

import torch

from tests.kernels import kit
from tests.kit.compare import assert_close
from tests.ops.cases.cfg_euler_step import problem

NAME = "cfg_euler_step"


def test_no_step_changes_nothing():
    call = problem((3, 41, 53), torch.float32, torch.float32)
    call["dt"].zero_()
    assert torch.equal(kit.run(NAME, call, "triton")["z"], call["z"])


def test_guidance_of_one_and_zero_choose_a_branch():
    call = problem((2, 3, 4), torch.float32, torch.float32)
    call["guidance"] = torch.tensor([1.0, 0.0])
    got = kit.run(NAME, call, "triton")["z"]
    chosen = torch.stack([call["v_cond"][0], call["v_uncond"][1]])
    want = call["z"].double() + call["dt"].double()[:, None, None] * chosen.double()
    assert_close(got, want, atol=8 * 2.0**-24 * 4, reason="u + (c - u) is c but for two roundings")
