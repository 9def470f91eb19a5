"""What is derived from frozen weights once and then kept: their order in memory, folded constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Kept:
    """What was derived from weights, kept beside their module (no parameter, no buffer, in no checkpoint or copy).

    Weights that learn, and inference tensors, are derived from at every call: their changes are not counted (a fused
    optimiser's are not, either). Nor are changes through ``.data`` or ``.numpy()``, which are therefore not seen.
    """

    def __init__(self, key: tuple, value: Any, sources: tuple[torch.Tensor, ...]):
        self.key, self.value, self.sources = key, value, sources  # held, so that no address goes to another

    @staticmethod
    def get(owner: nn.Module, name: str, sources: tuple[torch.Tensor, ...], make: Callable[[], Any], *what: Any) -> Any:
        """``make()``, unless it was made from the same ``sources`` and ``what`` else it depends on."""
        if any(tensor.requires_grad or tensor.is_inference() for tensor in sources):
            return make()
        key = (*what, *((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in sources))
        found = owner.__dict__.get(name)
        if found is None or found.key != key:
            with torch.inference_mode(False), torch.no_grad():
                found = owner.__dict__[name] = Kept(key, make(), sources)
        return found.value

    def __deepcopy__(self, memo: dict) -> None:
        """A copied module derives its own."""

    def __reduce__(self):
        return type(None), ()


def ordered(conv: nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight in channels-last order and bias, in a dtype."""

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        weight = conv.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last_3d)
        return weight, conv.bias.detach().to(dtype)

    pair: tuple[torch.Tensor, torch.Tensor] = Kept.get(conv, "ordered", (conv.weight, conv.bias), make, dtype)
    return pair
