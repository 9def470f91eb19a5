"""Closed forms of elementwise steps, for the tests of all their backends."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch

from tests.ops import calls


def in_fractions(call: calls.Call, latents: str, numbers: str, formula: Callable[..., Fraction]) -> torch.Tensor:
    """float64 of the shape of z: the formula of an element of each of the ``latents`` [S, N, C] and of each of the
    ``numbers`` [S] of its session, computed in fractions and rounded once. The first ``held`` tokens are as they were.
    """
    out = call["z"].double()
    for s in range(len(out)):
        start = int(call["held"][s]) if "held" in call else 0
        of_session = [Fraction(float(call[name][s])) for name in numbers.split()]
        rows = (call[name][s, start:].double().flatten().tolist() for name in latents.split())
        values = [float(formula(*map(Fraction, elements), *of_session)) for elements in zip(*rows)]
        out[s, start:] = torch.tensor(values, dtype=torch.float64).view(out[s, start:].shape)
    return out
