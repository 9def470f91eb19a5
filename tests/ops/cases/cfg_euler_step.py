"""Cases of ``cfg_euler_step``, for the tests of all its backends."""

from __future__ import annotations

from fractions import Fraction

import torch

from tests.ops import calls


def exact(call: calls.Call) -> torch.Tensor:
    """float64 [S, N, C], computed in fractions and rounded once."""
    out = torch.zeros(call["z"].shape, dtype=torch.float64)
    for s in range(out.shape[0]):
        g, dt = (Fraction(float(call[name][s])) for name in ("guidance", "dt"))
        rows = (call[name][s].double().flatten().tolist() for name in ("z", "v_cond", "v_uncond"))
        values = []
        for z, c, u in zip(*([Fraction(x) for x in row] for row in rows)):
            values.append(float(z + dt * (u + g * (c - u))))
        out[s] = torch.tensor(values, dtype=torch.float64).view(out.shape[1:])
    return out
