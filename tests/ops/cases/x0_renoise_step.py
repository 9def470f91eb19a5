"""Cases of ``x0_renoise_step``, for the tests of all its backends."""

from __future__ import annotations

import torch

from tests.kit.compare import assert_same_bits
from tests.ops import calls
from tests.ops.cases.fractions import in_fractions

LATENTS = ("z", "velocity", "noise")  # [S, N, C]
SIZES = ("sessions", "tokens", "channels")
# 1 - after, a product and a difference, a product, a product and a sum of numbers below 8: 6 units of 2^-24 of 8.
FP32, WHY = 6 * 8 * 2.0**-24, "6 fp32 roundings of numbers below 8"


def exact(call: calls.Call) -> torch.Tensor:
    """float64 [S, N, C], computed in fractions and rounded once; tokens that stay are as they were."""
    return in_fractions(
        call, "z velocity noise", "now after", lambda z, v, e, now, after: (1 - after) * (z - now * v) + after * e
    )


def problem(shape: tuple[int, int, int], latents: torch.dtype, velocity: torch.dtype) -> calls.Call:
    """Of up to four sessions, in which a fifth, none, two fifths and all of the tokens stay."""
    tokens = shape[1]
    return calls.x0_renoise_step(latents, velocity, shape, held=(tokens // 5, 0, 2 * tokens // 5, tokens))


def assert_held(call: calls.Call, z: torch.Tensor) -> None:
    """The tokens that stay have their bits."""
    for s, count in enumerate(call["held"].tolist()):
        assert_same_bits(z[s, :count], call["z"][s, :count], "tokens that stay")
