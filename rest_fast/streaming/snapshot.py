"""A live stream as data: tensors and a few values, from which it continues elsewhere, bit for bit.

A snapshot is read field by field. A value that no session can have written is refused, by the name of its field.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from rest_fast.errors import StateError as StateError


@dataclass(frozen=True, eq=False)
class SessionState:
    """What :meth:`rest_fast.Session.snapshot` returns; ``to_bytes`` and ``from_bytes`` carry it anywhere."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]

    def to_bytes(self) -> bytes:
        """All of it as one safetensors file."""
        meta = torch.frombuffer(bytearray(json.dumps(self.meta).encode()), dtype=torch.uint8)
        return save_tensors({k: v.cpu().contiguous() for k, v in self.tensors.items()} | {"meta": meta})

    @classmethod
    def from_bytes(cls, data: bytes) -> SessionState:
        """Read what :meth:`to_bytes` wrote. Raises: :class:`rest_fast.StateError`."""
        try:
            tensors = load_tensors(data)
            meta = json.loads(bytes(tensors.pop("meta").numpy()))
            if not isinstance(meta, dict):
                raise ValueError(f"its meta is of type {type(meta).__name__}")
        except (SafetensorError, KeyError, ValueError, TypeError) as e:
            raise StateError(f"restore: expected the bytes of a session snapshot, got something else ({e})") from None
        return cls(tensors, meta)

    def fields(self, identity: dict[str, Any]) -> Fields:
        """The fields, for a stream of this identity. Raises: :class:`StateError` for a snapshot of another stream."""
        theirs = self.meta.get("identity")
        if not isinstance(theirs, dict):
            raise StateError(f"restore: identity: expected {', '.join(identity)}, got {theirs!r}")
        if theirs != identity:
            other = {k: theirs.get(k) for k in identity if identity[k] != theirs.get(k)}
            names = ", ".join(identity)
            raise StateError(f"restore: expected a snapshot of this session's {names}, got one with {other}")
        return Fields(self.meta, self.tensors)


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
        """A list of values of exactly this type."""
        value = self.values.get(name)
        ok = isinstance(value, list) and all(type(x) is kind for x in value)
        self.require(ok, name, f"a list of {kind.__name__}", repr(value))
        return list(value or ())

    def pairs(self, name: str) -> list[tuple[int, int]]:
        """A list of pairs of integers."""
        value = self.values.get(name)
        pairs: list[Any] = value if isinstance(value, list) else [None]
        ok = all(isinstance(pair, list | tuple) and [type(x) for x in pair] == [int, int] for pair in pairs)
        self.require(ok, name, "a list of pairs of int", repr(value))
        return [(a, b) for a, b in pairs]

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
        """The same, refused if it holds NaN or an infinity."""
        found = self.shaped(name, shape, *dtypes)
        self.finite(name, found)
        return found

    def finite(self, name: str, tensor: torch.Tensor) -> None:
        bad = tensor.numel() - int(tensor.isfinite().sum())
        self.require(bad == 0, name, "finite numbers", f"{bad} that are not")

    def integers(self, name: str) -> list[int]:
        """The integers of a tensor int64 [n]."""
        return [int(i) for i in self.tensor(name, (-1,), torch.int64)]
