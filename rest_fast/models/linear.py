"""Linear layers: without gradients, and on the CPU, through oneDNN, with the GELU behind one inside the product.

PyTorch takes MKL for float32, 1.4 to 3 times as slow on an AMD processor (docs/measured_facts.md), and a separate GELU
costs half of the product before it. Small weights are kept a second time in oneDNN's order, large ones are reordered as
they are read, which their product hides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

DTYPES = (torch.float32, torch.bfloat16)
SMALL = 1 << 20  # weights: a second copy of all of a small model's layers costs a few megabytes
ROWS = 128  # what the order is made for: always the same, so that results do not depend on who called first
# The product with an operation behind it that torch.compile, too, uses on the CPU; None where PyTorch is without it.
PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear(layer: nn.Linear, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
    """``layer(x)``, then GELU (tanh form) where asked for: x [..., inputs] -> [..., outputs]. Differentiable."""
    weight, bias = layer.weight, layer.bias  # once: each look-up in a module takes half a microsecond
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if PRODUCT is None or learns or not x.is_cpu or weight.dtype != x.dtype or x.dtype not in DTYPES:
        y = layer(x)
        return F.gelu(y, approximate="tanh") if gelu else y
    if weight.numel() <= SMALL and not torch.compiler.is_compiling() and not weight.is_inference():
        weight = _reordered(layer, weight)
    return PRODUCT(x, weight, bias, "gelu" if gelu else "none", [], "tanh" if gelu else "")


def _reordered(layer: nn.Linear, weight: torch.Tensor) -> torch.Tensor:
    """The weight in oneDNN's order, kept beside the layer until it changes (changes through ``.data`` do not count)."""
    version = weight.data_ptr(), weight._version, weight.dtype
    kept = layer.__dict__.get("reordered")
    if kept is None or kept.version != version:
        kept = Reordered(version, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS))
        layer.__dict__["reordered"] = kept  # past nn.Module: no parameter, no buffer, not in a checkpoint
    return kept.weight


@dataclass
class Reordered:
    """A weight in oneDNN's order, and which weight it was made of."""

    version: tuple
    weight: torch.Tensor

    def __deepcopy__(self, memo: dict) -> None:
        """A copied layer makes its own."""

    def __reduce__(self):
        return type(None), ()
