"""Cases of ``x0_renoise_step``, for the tests of all its backends."""

from __future__ import annotations

from fractions import Fraction

import torch

from tests.ops import calls

# 1 - after, a product and a difference, a product, a product and a sum of numbers below 8: 6 units of 2^-24 of 8.
FP32, WHY = 6 * 8 * 2.0**-24, "6 fp32 roundings of numbers below 8"


def exact(call: calls.Call) -> torch.Tensor:
    """float64 [S, N, C], computed in fractions and rounded once; tokens that stay are as they were."""
    out = call["z"].double()
    for s, held in enumerate(call["held"].tolist()):
        now, after = (Fraction(float(call[name][s])) for name in ("now", "after"))
        rows = (call[name][s, held:].double().flatten().tolist() for name in ("z", "velocity", "noise"))
        values = [
            float((1 - after) * (z - now * v) + after * e)
            for z, v, e in zip(*([Fraction(x) for x in row] for row in rows))
        ]
        out[s, held:] = torch.tensor(values, dtype=torch.float64).view(out[s, held:].shape)
    return out
