"""Reads a snapshot field by field and refuses, by name, what no session can have written."""

from __future__ import annotations

from typing import Any

import torch

from rest_fast.errors import StateError


class Fields:
    """The named values and tensors of a snapshot. Every reading method raises :class:`StateError` with the name."""

    def __init__(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]):
        self.values, self.tensors = values, tensors

    def require(self, ok: bool, name: str, expected: str, got: Any) -> None:
        if not ok:
            raise StateError(f"restore: {name}: expected {expected}, got {got}")

    def integer(self, name: str, low: int, high: int = (1 << 63) - 1) -> int:
        value = self.values.get(name)
        ok = type(value) is int and low <= value <= high  # not isinstance: True is no count
        self.require(ok, name, f"an integer from {low} to {high}", repr(value))
        return int(value)  # type: ignore[arg-type]

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        self.require(isinstance(value, bool), name, "true or false", repr(value))
        return bool(value)

    def array(self, name: str, kind: type) -> list[Any]:
        """A list of values of exactly that type."""
        value = self.values.get(name)
        ok = isinstance(value, list) and all(type(x) is kind for x in value)
        self.require(ok, name, f"a list of {kind.__name__}", repr(value))
        return list(value or ())

    def pairs(self, name: str) -> list[tuple[int, int]]:
        """A list of pairs of integers."""
        value = self.values.get(name)
        rows: list[Any] = value if isinstance(value, list) else [None]
        ok = all(isinstance(row, list | tuple) and [type(x) for x in row] == [int, int] for row in rows)
        self.require(ok, name, "a list of pairs of int", repr(value))
        return [(a, b) for a, b in rows]

    def shaped(self, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> torch.Tensor:
        """A tensor of this shape (-1: any) and one of these dtypes."""
        found = self.tensors.get(name)
        if not isinstance(found, torch.Tensor):
            raise StateError(
                f"restore: {name}: expected a tensor, got {'none' if found is None else type(found).__name__}"
            )
        fits = found.ndim == len(shape) and all(want in (-1, n) for want, n in zip(shape, found.shape, strict=True))
        words = " or ".join(str(dtype) for dtype in dtypes)
        self.require(fits and found.dtype in dtypes, name, f"{words} {list(shape)}", f"{found.dtype} {[*found.shape]}")
        return found

    def tensor(self, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> torch.Tensor:
        """The same without NaN and infinities."""
        found = self.shaped(name, shape, *dtypes)
        self.finite(name, found)
        return found

    def finite(self, name: str, tensor: torch.Tensor) -> None:
        bad = tensor.numel() - int(tensor.isfinite().sum())
        self.require(bad == 0, name, "finite numbers", f"{bad} that are not")

    def integers(self, name: str) -> list[int]:
        """Of a tensor int64 [n]."""
        return [int(i) for i in self.tensor(name, (-1,), torch.int64)]
