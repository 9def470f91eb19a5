"""SoulX-FlashHead's schedule. Each step predicts the clean latents from the velocity and mixes fresh noise in again:
``x0_renoise_step``.

Published code computes in bfloat16: timesteps 1000, 937.5, 833.3, 625 reach the sinusoid as 1000, 936, 832, 624, and
noise levels 1, 0.9375, 0.8333, 0.625 the latents as 1, 0.9375, 0.832, 0.625. Weights were trained and are served so,
so that is the default; ``rounding: none`` keeps the exact numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rest_fast.config.flashhead import FlashHeadSamplingConfig


@dataclass(frozen=True)
class Level:
    """A step: the timestep that the model is told, and the noise levels before and behind."""

    timestep: float  # 0..1000
    now: float
    after: float  # 0 behind the last step


def levels(sampling: FlashHeadSamplingConfig) -> list[Level]:
    """The steps of a schedule: t = 1, 1 - 1/n, ..., each moved towards 1 by the shift."""
    n, shift = sampling.steps, sampling.shift
    uniform = torch.arange(n, -1, -1, dtype=torch.float64) / n
    exact = shift * uniform / (1 + (shift - 1) * uniform)
    steps, noise = 1000 * exact, exact
    if sampling.rounding == "bfloat16":
        # Twice rounded, as there: float32 timesteps, divided by 1000, become bfloat16.
        steps, noise = (x.float().bfloat16().double() for x in (steps, steps.float() / 1000))
    return [Level(*row) for row in zip(steps[:-1].tolist(), noise[:-1].tolist(), noise[1:].tolist(), strict=True)]
