"""The rotary tables against complex exponentials and 50-digit decimals, up to an hour of stream."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch

from rest_fast.ops import rope
from tests.kit.compare import assert_close

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
HOUR = 11250  # latent frames of 0.32 s
EPS32 = 2.0**-24  # half a unit in the last place of a number just below 1


def decimal_table(positions: list[int], step: str, extent: str, width: int, theta: int) -> torch.Tensor:
    """float64 [P, n, 2]: angles with 50 digits, reduced to one turn before they become floats."""
    n, rows = width // 6, []
    with localcontext() as context:
        context.prec = 50
        freqs = [Decimal(theta) ** (Decimal(m) / (n - 1)) * PI / 2 for m in range(n)]
        for position in positions:
            centred = 2 * Decimal(position) * Decimal(step) / Decimal(extent) - 1
            turns = [float((centred * f) % (2 * PI)) for f in freqs]
            rows.append([(math.cos(a), math.sin(a)) for a in turns])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("width", [6, 12, 20, 192, 2048])
def test_frequencies_are_spaced_exponentially(width):
    got, n = rope.frequencies(width, 10000.0), width // 6
    want = [math.pi / 2 * 10000.0 ** (m / max(n - 1, 1)) for m in range(n)]
    assert got.dtype == torch.float64
    # The exponent is rounded to 1e-16, times ln(theta) = 9.2: 1e-15; twice, once for each side.
    assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=2e-15, reason="rounded exponents")


@pytest.mark.parametrize("positions", [[0, 1, 6], [HOUR - 1, HOUR, HOUR + 6]], ids=["start", "one_hour"])
def test_angles_hold_for_an_hour(positions):
    want = decimal_table(positions, "0.32", "20", 2048, 10000)
    freqs = rope.frequencies(2048, 10000.0)
    got = rope.axis_table(torch.tensor(positions), 0.32, 20.0, freqs)
    assert got.dtype == torch.float32
    # The result is rounded to fp32: EPS32. Angles reach 5.6e6 with a relative error of about 10 roundings of
    # float64 (frequency 1e-15, position 3e-16): 1e-8.
    assert_close(got, want, atol=EPS32 + 1e-8, reason="one rounding to fp32, angles in float64")


def test_float32_angles_would_fail():
    """The tolerance above has teeth: the same formula in float32 is wrong in the first digit after an hour."""
    want = decimal_table([HOUR], "0.32", "20", 2048, 10000)
    fraction = torch.tensor([HOUR], dtype=torch.float32) * 0.32 / 20.0
    angle = (2 * fraction - 1)[:, None] * rope.frequencies(2048, 10000.0).float()
    assert (torch.stack([angle.cos(), angle.sin()], -1) - want).abs().max() > 0.05


@pytest.mark.parametrize("frames", [-3, 5])
def test_shift_moves_a_table_row(frames):
    """As complex numbers: axis(p) * shift(s) = axis(p + s)."""
    freqs = rope.frequencies(192, 100.0)
    here, there = rope.axis_table(torch.tensor([40, 40 + frames]), 0.32, 20.0, freqs)
    shift = rope.shift_table(frames, 0.32, 20.0, freqs)
    moved = torch.view_as_complex(here.double()) * torch.view_as_complex(shift.double())
    # Three tables rounded to fp32, each number by EPS32, so each complex one by sqrt(2) EPS32.
    assert_close(torch.view_as_real(moved), there, atol=5 * EPS32, reason="three rounded tables")


@pytest.mark.parametrize("width", [6, 8, 10, 12, 20, 64])
def test_token_table_interleaves_axes_behind_still_pairs(width):
    f, h, w, n = 2, 3, 2, width // 6
    t, y, x = (torch.randn(size, n, 2) for size in (f, h, w))
    got = rope.token_table(t, y, x, width)
    assert got.shape == (f * h * w, width // 2, 2)
    still = width // 2 - 3 * n
    for token in range(f * h * w):
        rows = (t[token // (h * w)], y[token // w % h], x[token % w])
        for pair in range(width // 2):
            j = pair - still
            want = torch.tensor([1.0, 0.0]) if j < 0 else rows[j % 3][j // 3]
            assert torch.equal(got[token, pair], want), (token, pair)


def test_rotate_is_complex_multiplication():
    x, angle = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    got = rope.rotate(x, torch.stack([angle.cos(), angle.sin()], -1))
    pairs = torch.complex(x[..., 0::2], x[..., 1::2]) * torch.exp(1j * angle)
    assert_close(got[..., 0::2], pairs.real, atol=1e-14, reason="two products, 1e-16 each, of numbers below 5")
    assert_close(got[..., 1::2], pairs.imag, atol=1e-14, reason="two products, 1e-16 each, of numbers below 5")


def test_rotate_computes_in_the_wider_dtype():
    x = torch.randn(2, 4).bfloat16()
    assert rope.rotate(x, torch.ones(2, 2, 2)).dtype == torch.float32
    assert rope.rotate(x.double(), torch.ones(2, 2, 2)).dtype == torch.float64
