"""Shared by pictures, sound and video: opening of sources, checks of arguments, the error."""

from __future__ import annotations

import io
import os
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import IO, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast.errors import MediaError as MediaError

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Array: TypeAlias = NDArray[Any] | torch.Tensor
Source = str | os.PathLike[str] | bytes | IO[bytes]  # a path, a file's content, an open file

TENSORS = (torch.uint8, torch.int16, torch.float32, torch.float64)


def media_error(name: str, expected: str, got: object, where: str = "") -> MediaError:
    if isinstance(got, Exception):
        got = getattr(got, "strerror", None) or f"{type(got).__name__}: {got}"
    return MediaError(" ".join(f"{name}: expected {expected}, got {got} {where}".split()))


def source_name(kind: str, source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return f"{kind} {os.fspath(source)!r}"
    return f"{kind} <{getattr(source, 'name', type(source).__name__)}>"


def number(name: str, value: Any, low: int, high: int, kind: Any = Integral) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        noun = "a whole number" if kind is Integral else "a number"
        raise media_error(name, f"{noun} in {low}..{high}", repr(value))
    return int(value) if kind is Integral else float(value)


def as_array(name: str, value: Any) -> NDArray[Any]:
    """An array, or a tensor on any device, as an array."""
    if isinstance(value, torch.Tensor) and value.dtype in TENSORS:
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray):
        got = f"{type(value).__name__} {getattr(value, 'dtype', '')}"
        raise media_error(name, "an array, or a tensor of uint8, int16, float32 or float64", got)
    return value


def open_source(kind: str, source: Source) -> AbstractContextManager[IO[bytes]]:
    """``source`` as a binary file for a ``with``, which leaves a caller's own file open."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            return open(source, "rb")
        except (OSError, ValueError) as error:
            raise media_error(source_name(kind, source), "a readable file", error) from error
    if isinstance(source, io.TextIOBase) or not hasattr(source, "read"):
        raise media_error(kind, "a path, a binary file or bytes", type(source).__name__)
    return nullcontext(source)


def as_uint8(name: str, value: Any, *shape: int | str) -> UInt8:
    """``value`` as an array, which is uint8 of this ``shape``; a letter stands for any size."""
    pixels = as_array(name, value)
    sizes = zip(shape, pixels.shape, strict=False)
    fits = pixels.ndim == len(shape) and all(isinstance(s, str) or s == n for s, n in sizes)
    if pixels.dtype != np.uint8 or not fits:
        raise media_error(name, f"uint8 [{', '.join(map(str, shape))}]", f"{pixels.dtype} {list(pixels.shape)}")
    return pixels


def is_empty(file: IO[bytes]) -> bool:
    """Whether nothing is left to read, if the file can tell that without being read."""
    if not (hasattr(file, "seekable") and file.seekable()):
        return False
    at = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(at)
    return end <= at
