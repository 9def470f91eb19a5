"""``cfg_euler_step`` in CUDA, on the CPU: guidance and steps of which the result is known. test_sampler_steps.py has
what holds for every step."""

from __future__ import annotations

import torch

from tests.cuda_shim import built
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls

NAME = "cfg_euler_step"


def test_guidance_zero_one_and_no_step():
    call = calls.cfg_euler_step(shape=(3, 4, 8))
    call |= {"guidance": torch.tensor([0.0, 1.0, 6.0]), "dt": torch.tensor([1.0, 1.0, 0.0])}
    call["v_cond"][0], call["z"][:2] = 3e38, 0
    got = built.run(NAME, call)["z"]
    assert_close(got[0], call["v_uncond"][0], atol=0.0, reason="guidance 0 sees the unconditional velocity alone")
    assert_close(got[1], call["v_cond"][1], atol=2.0**-22, reason="u + (c - u), numbers below 4")
    assert_same_bits(got[2], call["z"][2], "z after a step of 0")
