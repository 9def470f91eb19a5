"""Cases of ``cfg_euler_step``, for the tests of all its backends."""

from __future__ import annotations

import torch

from tests.ops import calls
from tests.ops.cases.fractions import in_fractions

LATENTS = ("z", "v_cond", "v_uncond")  # [S, N, C]
SIZES = ("sessions", "numel")
# A difference, two products and two sums of numbers up to 7 times the largest velocity: 5 units of 2^-24 of 40.
FP32, WHY = 5 * 40 * 2.0**-24, "5 fp32 roundings of numbers below 40"


def exact(call: calls.Call) -> torch.Tensor:
    """float64 [S, N, C], computed in fractions and rounded once."""
    return in_fractions(call, "z v_cond v_uncond", "guidance dt", lambda z, c, u, g, dt: z + dt * (u + g * (c - u)))


def problem(shape: tuple[int, int, int], latents: torch.dtype, velocity: torch.dtype) -> calls.Call:
    """Of any number of sessions, with steps of at most 1/2."""
    guidance = torch.tensor([6.0, 1.0, 0.0, -2.5])[torch.arange(shape[0]) % 4]
    dt = torch.tensor([-0.125, -0.5, -0.03])[torch.arange(shape[0]) % 3]
    return calls.cfg_euler_step(latents, velocity, shape) | {"guidance": guidance, "dt": dt}
