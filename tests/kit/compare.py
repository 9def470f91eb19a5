"""Comparisons that say where and why: worst position, both values, and the argument behind the tolerance."""

from __future__ import annotations

import torch

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _worst(error: torch.Tensor) -> tuple[int, ...]:
    flat = error.reshape(-1)
    index = int(torch.where(flat.isnan(), torch.inf, flat).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(index), error.shape))


def assert_close(got: torch.Tensor, want: torch.Tensor, *, atol: float = 0.0, rtol: float = 0.0, reason: str) -> None:
    """|got - want| <= atol + rtol |want| everywhere, compared in float64; NaN and infinity are never close."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    wide, exact = got.detach().double(), want.detach().double()
    error = (wide - exact).abs()
    excess = error - (atol + rtol * exact.abs())
    bad = ~(excess <= 0)  # a NaN compares false and so counts as bad
    if bad.any():
        at = _worst(torch.where(bad, excess, torch.zeros_like(excess)))
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} elements differ, worst at {at}: got {wide[at].item():.9g}, "
            f"want {exact[at].item():.9g}, error {error[at].item():.3g}, allowed atol={atol:.3g} rtol={rtol:.3g} "
            f"({reason})"
        )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """bool, element by element: the same bits (so NaN equals itself, and -0 does not equal 0)."""
    assert a.dtype == b.dtype and a.shape == b.shape, f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
    kind = BITS[a.element_size()]
    return a.contiguous().view(kind) == b.contiguous().view(kind)


def assert_same_bits(got: torch.Tensor, want: torch.Tensor, what: str = "tensor") -> None:
    same = same_bits(got, want)
    if not same.all():
        at = tuple(int(i) for i in (~same).nonzero()[0])
        raise AssertionError(
            f"{what}: {int((~same).sum())} of {same.numel()} elements changed, first at {at}: "
            f"{got[at].item()!r} instead of {want[at].item()!r}"
        )


def twice_eager(got: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, *, tiny: float = 0.0) -> None:
    """The rule for low precision: against float64, at most twice the error of eager PyTorch at that precision.

    Largest and root-mean-square error are held to it, each plus ``tiny``, which covers a case so small that eager
    is exact by luck.
    """
    assert exact.dtype == torch.float64, "the truth is float64"
    assert got.shape == eager.shape == exact.shape, f"shapes {got.shape}, {eager.shape}, {exact.shape}"
    mine, theirs = (got.double() - exact).abs(), (eager.double() - exact).abs()
    for name, measure in (("largest", torch.max), ("rms", lambda e: e.square().mean().sqrt())):
        have, limit = float(measure(mine)), 2 * float(measure(theirs)) + tiny
        if not have <= limit:
            at = _worst(mine)
            raise AssertionError(
                f"{name} error {have:.3g} is over {limit:.3g} = 2 x eager + {tiny:.3g}; worst at {at}: got "
                f"{got[at].item():.9g}, eager {eager[at].item():.9g}, exact {exact[at].item():.9g}"
            )
