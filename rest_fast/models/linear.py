"""Linear layers: without gradients, and on the CPU, through oneDNN, with the GELU behind one inside the product.

PyTorch takes MKL for float32, 1.4 to 3 times as slow on an AMD processor (docs/measured_facts.md), and a separate GELU
costs half of the product before it. The weights stay as they are: oneDNN reorders them as it reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

DTYPES = (torch.float32, torch.bfloat16)
# The product with an operation behind it that torch.compile, too, uses on the CPU; None where PyTorch is without it.
PRODUCT = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def linear(layer: nn.Linear, x: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
    """``layer(x)``, then GELU (tanh form) where asked for: x [..., inputs] -> [..., outputs]. Differentiable."""
    learns = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
    if (
        PRODUCT is not None
        and not learns
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        and layer.weight.dtype == x.dtype
    ):
        return PRODUCT(x, layer.weight, layer.bias, "gelu" if gelu else "none", [], "tanh" if gelu else "")
    y = layer(x)
    return F.gelu(y, approximate="tanh") if gelu else y
