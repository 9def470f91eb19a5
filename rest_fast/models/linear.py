"""Linear layers. Without gradients, oneDNN computes them on the CPU, together with a GELU that follows, or our own
:mod:`rest_fast.ops.linear`; on a GPU cuBLASLt has the GELU in its product.

For float32 PyTorch would take MKL, which is half as fast on an AMD processor (docs/measured_facts.md), and a separate
GELU costs half as much as the product before it. Small frozen weights are kept a second time in oneDNN's order; others
are reordered as they are read, which takes little time beside a large product.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast import ops
from rest_fast.ops import native
from rest_fast.ops.derived import derived, frozen

SMALL = 1 << 20  # weights: a second copy of all of a small model's layers costs a few megabytes
ROWS = 128  # of x that the order is made for: always the same, so that results do not depend on the first call


def _dtypes() -> tuple[torch.dtype, ...]:
    """Dtypes that oneDNN multiplies on this processor; bfloat16 needs AVX-512. Measured and tested on x86-64 only."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if not x86 or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


DTYPES = _dtypes()
# Whether small float32 weights are multiplied by our own op: with AVX2 alone it takes two thirds of oneDNN's time
# (benchmarks/results/linear_epyc.json); with AVX-512 nobody has measured it.
OURS = torch.backends.cpu.get_cpu_capability() == "AVX2" and native.module()[0] is not None
MOST_ROWS = 512  # of x: a chunk of a small model has 48 to 96, and with many more nobody has measured it


def linear(layer: nn.Linear, x: torch.Tensor, *, gelu: bool = False, bias: bool = True) -> torch.Tensor:
    """``layer(x)``, then GELU (tanh form) where asked for: x [..., inputs] -> [..., outputs]. Differentiable.

    ``bias``: False leaves it out. A layer that learns, has hooks or is more than ``nn.Linear`` is called as it is. Else
    results do not depend on the number of threads, as those of MKL do for a few rows.
    """
    weight, added = layer.weight, layer.bias if bias else None  # once: a look-up in a module takes half a microsecond
    if gelu and x.is_cuda and added is not None and weight.dtype == x.dtype and _plain(layer, weight, added, x):
        # The tanh form on CUDA only; on a CPU the same function takes the other one.
        flat = torch._addmm_activation(added, x.flatten(0, -2), weight.t(), use_gelu=True)
        return flat.unflatten(0, x.shape[:-1])
    if not x.is_cpu or x.dtype not in DTYPES or weight.dtype != x.dtype or not _plain(layer, weight, added, x):
        y = layer(x) if bias else F.linear(x, weight)
        return F.gelu(y, approximate="tanh") if gelu else y
    few = weight.numel() <= SMALL and x.numel() <= MOST_ROWS * x.shape[-1]
    if OURS and few and x.dtype == torch.float32 and frozen(weight):
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        out = flat.new_empty(len(flat), len(weight))
        ops.linear(flat, weight, added, out, gelu=gelu)
        return out.view(*x.shape[:-1], len(weight))
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()  # a graph must not keep weights
    if weight.numel() <= SMALL and not traced:
        source = weight
        weight = derived(layer, "reordered", (source,), lambda: _reordered(source.detach()), learning=source)
    return torch.ops.mkldnn._linear_pointwise(x, weight, added, "gelu" if gelu else "none", [], "tanh" if gelu else "")


def _plain(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> bool:
    """Whether the layer is nothing but a product: no gradient, no hooks, no subclass, no autocast."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return False
    bare = type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
    return bare and not torch.is_autocast_enabled(x.device.type)


def _reordered(weight: torch.Tensor) -> torch.Tensor:
    reordered: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    return reordered
