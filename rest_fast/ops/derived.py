"""What is derived from frozen weights once and then kept: another order in memory, constants, a hash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def derived(
    owner: Any,
    name: str,
    sources: tuple[torch.Tensor, ...],
    make: Callable[[], T],
    *what: Any,
    learning: T | None = None,
) -> T:
    """``make()``, or what it gave before, as long as ``sources`` and ``what`` are the same as then.

    The value is an attribute of ``owner``, a module or a tensor: no parameter, no buffer, in no checkpoint and in no
    copy. Of weights that are not frozen nothing is kept: they give ``learning``, where it is given, or ``make()`` at
    every call. Changes of a weight through ``.data`` in place or through ``.numpy()`` are not counted by PyTorch, and
    are therefore not seen.
    """
    found = owner.__dict__.get(name)
    if not _frozen(*sources):
        if found is not None:
            del owner.__dict__[name]
        return make() if learning is None else learning
    if found is None or not found.fits(sources, what):
        with torch.inference_mode(False), torch.no_grad():
            found = Derived(sources, what)  # before the value: a change that comes meanwhile is a change
            found.value = make()
        owner.__dict__[name] = found
    value: T = found.value
    return value


def _frozen(*sources: torch.Tensor) -> bool:
    """Whether a change of these tensors would be seen: PyTorch does not count what a fused optimiser does to a tensor
    that learns, and counts nothing of an inference tensor."""
    for tensor in sources:  # noqa: SIM110 - a generator takes three times as long
        if tensor.requires_grad or tensor.is_inference():
            return False
    return True


def forget(module: torch.nn.Module) -> None:
    """Drop what was derived from a module's own or its children's weights, and with it the memory."""
    for part in module.modules():
        for owner in (part, *part.parameters(recurse=False)):
            for name in [name for name, value in owner.__dict__.items() if isinstance(value, Derived)]:
                del owner.__dict__[name]


class Derived:
    """A value and what it was derived from. The memory of its sources is held, so that their addresses go to no other
    tensor, which would be taken for them."""

    value: Any

    def __init__(self, sources: tuple[torch.Tensor, ...], what: tuple):
        self.what = what
        self.sources = [(s.detach(), s.data_ptr(), s._version, s.dtype) for s in sources]

    def fits(self, sources: tuple[torch.Tensor, ...], what: tuple) -> bool:
        if what != self.what or len(sources) != len(self.sources):
            return False
        for tensor, (_, address, version, dtype) in zip(sources, self.sources):
            if tensor.data_ptr() != address or tensor._version != version or tensor.dtype != dtype:
                return False
        return True

    def __deepcopy__(self, memo: dict) -> None:
        """A copied owner derives its own."""

    def __reduce__(self) -> Any:
        return type(None), ()
