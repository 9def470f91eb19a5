"""``x0_renoise_step`` against exact fractions, session by session, and what a true velocity leads to."""

from __future__ import annotations

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import functional
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.x0_renoise_step import FP32, WHY, exact

NAME = "x0_renoise_step"


def functional_result(call: calls.Call) -> torch.Tensor:
    return functional.renoised(*(call[name] for name in ("z", "velocity", "noise", "now", "after", "held")))


def test_functional_is_the_formula():
    call = calls.x0_renoise_step(torch.float64)
    assert_close(functional_result(call), exact(call), atol=1e-14, reason="six float64 roundings of numbers below 8")


@pytest.mark.parametrize("velocity", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_fp32_latents(velocity):
    call = calls.x0_renoise_step(torch.float32, velocity)
    assert_close(functional_result(call), exact(call), atol=FP32, reason=WHY)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_at_most_twice_eager(dtype):
    call = calls.x0_renoise_step(dtype, held=(0, 0, 0))
    want = exact(call)
    now, after = (call[name].to(dtype)[:, None, None] for name in ("now", "after"))
    eager = (1 - after) * (call["z"] - now * call["velocity"]) + after * call["noise"]
    calls.invoke(NAME, call)
    twice_eager(call["z"], eager, want, tiny=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_in_place_is_functional(dtype):
    call = calls.x0_renoise_step(dtype)
    want, before = functional_result(call), {name: call[name].clone() for name in call if name != "z"}
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_same_bits(call["z"], want, "z")
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


@pytest.mark.parametrize("held", [0, 2, 5], ids=["none", "two", "all"])
def test_tokens_of_motion_stay_and_no_other(held):
    """Whatever stands beside them in velocity and noise."""
    call = calls.x0_renoise_step(held=(held,) * 3)
    before = call["z"].clone()
    calls.invoke(NAME, call)
    assert_same_bits(call["z"][:, :held], before[:, :held], "tokens that stay")
    assert (call["z"][:, held:] != before[:, held:]).float().mean() > 0.99 if held < 5 else True
    assert call["z"].isfinite().all()


def test_a_true_velocity_leads_to_the_clean_latents_with_fresh_noise():
    """z = (1 - t) x + t e has the velocity e - x. Behind the step stand the same x and the other noise."""
    g = torch.Generator().manual_seed(0)
    x, e, fresh = torch.randn(3, 2, 8, 4, generator=g, dtype=torch.float64)
    now, after = torch.tensor([0.9375, 0.625]), torch.tensor([0.625, 0.0])
    t, t_next = (level.double()[:, None, None] for level in (now, after))
    call = {"z": (1 - t) * x + t * e, "velocity": e - x, "noise": fresh, "now": now, "after": after}
    calls.invoke(NAME, call | {"held": calls.ints(0, 0)})
    assert_close(call["z"], (1 - t_next) * x + t_next * fresh, atol=1e-14, reason="ten float64 roundings")
    assert_close(call["z"][1], x[1], atol=1e-14, reason="the last step adds no noise")


def test_a_whole_schedule_of_a_true_velocity_arrives():
    g = torch.Generator().manual_seed(1)
    x, z = torch.randn(2, 1, 3, 4, generator=g, dtype=torch.float64)
    for now, after in ((1.0, 0.9375), (0.9375, 0.83203125), (0.83203125, 0.625), (0.625, 0.0)):
        velocity, fresh = (z - x) / now, torch.randn(1, 3, 4, generator=g, dtype=torch.float64)
        call = {
            "z": z,
            "velocity": velocity,
            "noise": fresh,
            "now": torch.tensor([now]),
            "after": torch.tensor([after]),
        }
        calls.invoke(NAME, call | {"held": calls.ints(0)})
    assert_close(z, x, atol=1e-14, reason="four steps of a few float64 roundings")
