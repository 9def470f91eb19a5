"""Timesteps and noise levels of the sampler."""

from __future__ import annotations

import pytest

from rest_fast.config.flashhead import FlashHeadSamplingConfig
from rest_fast.errors import ConfigError
from rest_fast.models.flashhead.sampling import levels


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
