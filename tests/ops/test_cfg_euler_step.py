"""``cfg_euler_step`` against exact fractions, lane by lane."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.cfg_euler_step import exact

NAME = "cfg_euler_step"


def functional_result(call: calls.Call) -> torch.Tensor:
    return functional.guided_euler(call["z"], call["v_cond"], call["v_uncond"], call["guidance"], call["dt"])


def test_functional_is_the_formula():
    call = calls.cfg_euler_step(torch.float64)
    assert_close(functional_result(call), exact(call), atol=2e-14, reason="five float64 roundings of numbers below 20")


@pytest.mark.parametrize("velocity", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fp32_latents(velocity):
    call = calls.cfg_euler_step(torch.float32, velocity)
    # Guidance 6: three roundings of v < 32 (2^-20 each) times dt = 1/8; then, and where g <= 1, roundings of 1e-7.
    assert_close(functional_result(call), exact(call), atol=1e-6, reason="five fp32 roundings, the velocity is exact")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_at_most_twice_eager(dtype):
    call = calls.cfg_euler_step(dtype)
    want = exact(call)
    g, dt = (call[name].to(dtype)[:, None, None] for name in ("guidance", "dt"))
    eager = call["z"] + dt * (call["v_uncond"] + g * (call["v_cond"] - call["v_uncond"]))
    calls.invoke(NAME, call)
    twice_eager(call["z"], eager, want, tiny=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_in_place_is_functional(dtype):
    call = calls.cfg_euler_step(dtype)
    want = functional_result(call)
    before = {name: call[name].clone() for name in call if name != "z"}
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_same_bits(call["z"], want, "z")
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


@pytest.mark.parametrize("guidance, used, unused", [(1.0, "v_cond", "v_uncond"), (0.0, "v_uncond", "v_cond")])
def test_one_and_zero_choose_one_branch(guidance, used, unused):
    call = calls.cfg_euler_step(torch.float64)
    call["guidance"].fill_(guidance)
    want = call["z"] + call["dt"].double()[:, None, None] * call[used]
    calls.invoke(NAME, call)
    assert_close(call["z"], want, atol=1e-15 * 8, reason="u + (c - u) is c but for two roundings")


def test_no_step_changes_nothing():
    call = calls.cfg_euler_step()
    before = call["z"].clone()
    call["dt"].zero_()
    calls.invoke(NAME, call)
    assert torch.equal(call["z"], before)


def test_a_whole_trajectory_of_a_constant_velocity():
    """z_t = (1 - t) z_0 + t eps has velocity eps - z_0: any steps from 1 to 0 arrive at z_0."""
    g = torch.Generator().manual_seed(0)
    z0, noise = (torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    # Powers of two: the fp32 sigmas are exact, so the steps add up to exactly one.
    sigmas, z = torch.tensor([1.0, 0.75, 0.5, 0.125, 0.0]), noise.clone()
    for t, t_next in pairwise(sigmas):
        v, dt = noise - z0, (t_next - t).expand(2).contiguous()
        calls.invoke(NAME, {"z": z, "v_cond": v, "v_uncond": v.clone(), "guidance": torch.full((2,), 6.0), "dt": dt})
    assert_close(z, z0, atol=2e-15, reason="four steps of two float64 roundings")
