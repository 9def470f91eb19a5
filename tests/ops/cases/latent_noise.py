"""The exact numbers of ``latent_noise``, for the tests of all its backends."""

from __future__ import annotations

import numpy as np
import torch

from rest_fast import noise
from tests.kit.compare import same_bits
from tests.ops import calls

# Frames of seed 0 that hold a number next to a zero of cosine or sine, found by a search of 4 x 10^5 latents: where the
# rounding of the angle to float64 is several units of the result.
NEAR_ZERO = (75767, 327640, 206835, 221105, 238432, 113717, 311093, 202798, 390946, 45895, 22430, 157321)


def near_zero() -> calls.Call:
    words = torch.tensor([noise.words(0, latent) for latent in NEAR_ZERO], dtype=torch.int32)
    return {"out": calls.nans(len(NEAR_ZERO), 2048), "words": words}


def exact(call: calls.Call) -> np.ndarray:
    """longdouble [frames, n]: the words of Philox, then Box-Muller with 64 bits of mantissa.

    The angle 2 pi v is rounded to float64 first, which is part of the definition: next to a zero of the cosine that
    rounding is many units of the result.
    """
    frames, count = call["out"].shape
    rows = []
    for seed_low, seed_high, *rest in (call["words"].long() & 0xFFFFFFFF).tolist():
        block = torch.arange((count + 3) // 4)
        counter = (block, *(torch.full_like(block, word) for word in rest))
        bits = torch.stack(noise.philox4x32(counter, (seed_low, seed_high)), 1).double().numpy()
        uniform = (bits + 0.5) / 2**32
        radius = np.sqrt(-2 * np.log(uniform[:, 0::2].astype(np.longdouble)))
        angle = (2 * np.pi * uniform[:, 1::2]).astype(np.longdouble)
        rows.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(-1)[:count])
    return np.stack(rows) if rows else np.empty((frames, count), np.longdouble)


def neighbours(got: torch.Tensor, want: torch.Tensor) -> int:
    """How many numbers are the float32 next to the wanted one; AssertionError if any is further away."""
    away = (got.view(torch.int32) - want.view(torch.int32)).abs()
    assert int(away.max()) <= 1, f"{int((away > 1).sum())} numbers differ by more than the last bit"
    return int((~same_bits(got, want)).sum())
