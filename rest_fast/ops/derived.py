"""Values that are derived from frozen weights once and then kept: another order in memory, constants, a hash."""

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
    """``make()``, or what an earlier call gave if ``sources`` and ``what`` have not changed since.

    The value is kept as an attribute of ``owner``, a module or a tensor. It is neither a parameter nor a buffer, and is
    not part of checkpoints or copies. For weights that are not frozen nothing is kept: the result is ``learning`` if
    given, else ``make()`` at every call. PyTorch does not count changes of a weight in place through ``.data`` or
    through ``.numpy()``, so these go unnoticed.
    """
    found = owner.__dict__.get(name)
    if not frozen(*sources):
        if found is not None:
            del owner.__dict__[name]
        return make() if learning is None else learning
    if found is None or not found.fits(sources, what):
        with torch.inference_mode(False), torch.no_grad():
            found = Derived(sources, what)  # before the value, so that a change during make() is noticed
            found.value = make()
        owner.__dict__[name] = found
    value: T = found.value
    return value


def frozen(*sources: torch.Tensor) -> bool:
    """Whether changes of these tensors are noticed, so that what is derived from them is kept.

    PyTorch does not count those of a fused optimiser to a tensor that requires a gradient, nor any of an inference
    tensor.
    """
    for tensor in sources:  # noqa: SIM110 - a generator takes three times as long
        if tensor.requires_grad or tensor.is_inference():
            return False
    return True


def forget(module: torch.nn.Module) -> None:
    """Drop what was derived from the weights of a module and of its children, and free its memory."""
    for part in module.modules():
        for owner in (part, *part.parameters(recurse=False)):
            for name in [name for name, value in owner.__dict__.items() if isinstance(value, Derived)]:
                del owner.__dict__[name]


def all_of(module: torch.nn.Module) -> list[Any]:
    """The memory of a module's weights and all that is derived from them, for who reads it by address."""
    found: list[Any] = [tensor.detach() for tensor in (*module.parameters(), *module.buffers())]
    for part in module.modules():
        for owner in (part, *part.parameters(recurse=False)):
            found += [value for value in owner.__dict__.values() if isinstance(value, Derived)]
    return found


class Derived:
    """A value and what it was derived from.

    It holds the memory of its sources: otherwise another tensor might get their address and be taken for one of them.
    """

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
        """Copies of the owner derive a value of their own."""

    def __reduce__(self) -> Any:
        return type(None), ()
