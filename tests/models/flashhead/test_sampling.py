"""Timesteps, noise levels and steps of the sampler."""

from __future__ import annotations

import pytest
import torch

from rest_fast.config.flashhead import FlashHeadSamplingConfig
from rest_fast.errors import ConfigError
from rest_fast.models.flashhead.sampling import Level, levels, overwritten, renoised


def test_published_code_rounds_timesteps_to_bfloat16():
    found = levels(FlashHeadSamplingConfig())
    assert [level.timestep for level in found] == [1000, 936, 832, 624]
    assert [level.now for level in found] == [1, 0.9375, 0.83203125, 0.625]
    assert [level.after for level in found] == [0.9375, 0.83203125, 0.625, 0]


def test_exact_numbers_are_an_option():
    found = levels(FlashHeadSamplingConfig(rounding="none"))
    assert [level.now for level in found] == pytest.approx([1, 15 / 16, 5 / 6, 5 / 8], abs=1e-15)
    assert [level.timestep for level in found] == pytest.approx([1000, 937.5, 2500 / 3, 625], abs=1e-9)


def test_two_steps():
    found = levels(FlashHeadSamplingConfig(steps=2))
    assert [level.timestep for level in found] == [1000, 832] and [level.after for level in found] == [0.83203125, 0]


@pytest.mark.parametrize("changes", [{"steps": 3}, {"steps": 8}, {"guidance": 2.0}])
def test_other_schedules_and_guidance_are_refused(changes):
    with pytest.raises(ConfigError, match="distilled"):
        FlashHeadSamplingConfig(**changes)


def test_a_true_velocity_leads_to_the_clean_latents_with_fresh_noise():
    """z = (1 - t) x + t e has the velocity e - x. Behind the step stand the same x and the other noise."""
    g = torch.Generator().manual_seed(0)
    x, e, fresh = torch.randn(3, 1, 8, 4, generator=g, dtype=torch.float64)
    level = Level(936, 0.9375, 0.625)
    z = (1 - level.now) * x + level.now * e
    got = renoised(z, e - x, level, fresh)
    assert torch.allclose(got, (1 - 0.625) * x + 0.625 * fresh, atol=1e-12)
    assert torch.allclose(renoised(z, e - x, Level(624, 0.9375, 0.0), fresh), x, atol=1e-12)  # the last: no noise


@pytest.mark.parametrize("motion", [1, 2])
def test_motion_overwrites_the_first_latents_alone(motion):
    z, m = torch.zeros(1, 20, 3), torch.ones(1, 4 * motion, 3)
    got = overwritten(z, m)
    assert got[:, : 4 * motion].eq(1).all() and got[:, 4 * motion :].eq(0).all() and z.eq(0).all()
