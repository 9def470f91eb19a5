"""The helpers themselves: a comparison that cannot fail proves nothing."""

from __future__ import annotations

import pytest
import torch

from tests.kit.compare import assert_close, assert_same_bits, twice_eager


def test_assert_close_names_the_worst_place():
    got, want = torch.zeros(2, 3), torch.zeros(2, 3)
    got[0, 1], got[1, 2] = 1e-3, 0.25
    with pytest.raises(AssertionError, match=r"2 of 6 .*worst at \(1, 2\): got 0.25, want 0, error 0.25.*\(because\)"):
        assert_close(got, want, atol=1e-4, reason="because")
    assert_close(got, want, atol=0.25, reason="because")
    assert_close(got + 100, want + 100, rtol=0.0025, reason="because")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_assert_close_never_accepts_nan_or_infinity(value):
    bad = torch.tensor([0.0, value])
    for got, want in ((bad, torch.zeros(2)), (torch.zeros(2), bad), (bad, bad)):
        with pytest.raises(AssertionError, match=r"1 of 2 elements differ, worst at \(1,\)"):
            assert_close(got, want, atol=1.0, rtol=1.0, reason="")


def test_shapes_are_compared_without_broadcasting():
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.zeros(1, 3), torch.zeros(3), reason="")


def test_assert_same_bits():
    nan = torch.tensor([torch.nan, 1.0])
    assert_same_bits(nan, nan.clone())
    with pytest.raises(AssertionError, match=r"cache: 1 of 2 elements changed, first at \(1,\): -0.0 instead of 0.0"):
        assert_same_bits(torch.tensor([1.0, -0.0]), torch.tensor([1.0, 0.0]), "cache")


def test_twice_eager():
    exact = torch.zeros(100, dtype=torch.float64)
    eager = torch.full((100,), 0.01)
    twice_eager(torch.full((100,), 0.019), eager, exact)
    with pytest.raises(AssertionError, match=r"largest error 0\.021"):
        twice_eager(torch.full((100,), 0.021), eager, exact)
    eager[0] = 1.0  # one large error of eager does not excuse many small ones
    with pytest.raises(AssertionError, match="rms error"):
        twice_eager(torch.full((100,), 0.5), eager, exact)
    with pytest.raises(AssertionError, match="largest error nan"):
        twice_eager(torch.full((100,), torch.nan), eager, exact)


ALLOCATIONS = {
    "empty": "torch.empty(3, 4)",
    "empty_like": "torch.empty_like(torch.zeros(3, dtype=torch.bfloat16))",
    "new_empty": "torch.zeros(2, dtype=torch.float64).new_empty(5)",
    "integers": "torch.empty(3, dtype=torch.int32)",
}


@pytest.mark.parametrize("code", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_memory_allocated_by_the_package_is_poisoned(code):
    inside = eval(code, {"torch": torch, "__name__": "rest_fast.models.dit"})
    worst = torch.nan if inside.is_floating_point() else torch.iinfo(inside.dtype).max
    assert_same_bits(inside, torch.full_like(inside, worst))
    outside = eval(code, {"torch": torch, "__name__": "rest_fastest"})
    assert outside.shape == inside.shape and outside.dtype == inside.dtype
