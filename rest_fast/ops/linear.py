"""``linear``: a linear layer of few rows and a small weight, with a GELU that follows: out = gelu(x W^T + bias).

For CPUs, where :func:`rest_fast.models.linear.linear` asks for it; large products and GPUs are the libraries'.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rest_fast.ops import native
from rest_fast.ops.derived import derived
from rest_fast.ops.dispatch import Backend, Op, Spec, expect, expect_float

NAME = "linear"
BLOCK = 16  # outputs that lie together: kColumns of csrc/cpu/register_tile.h


def check(x, weight, bias, out, *, gelu) -> Spec:
    expect_float(NAME, "x", x)
    expect(NAME, "x", x, (-1, -1))
    rows, inputs = x.shape
    expect(NAME, "weight", weight, (-1, inputs), dtype=x.dtype, device=x.device, contiguous=False)
    outputs = weight.shape[0]
    if bias is not None:
        expect(NAME, "bias", bias, (outputs,), dtype=x.dtype, device=x.device)
    expect(NAME, "out", out, (rows, outputs), dtype=x.dtype, device=x.device)
    return Spec(x.device.type, x.dtype, (("rows", rows), ("inputs", inputs), ("outputs", outputs)))


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *, gelu: bool
) -> None:
    """out = x W^T + bias, and a GELU of that in its tanh form.

    Args:
        x: [M, K], floating.
        weight: [N, K].
        bias: [N], or None.
        out: [M, N], in other memory. Written.
        gelu: whether it follows.
    """
    y = F.linear(x, weight, bias)
    out.copy_(F.gelu(y, approximate="tanh") if gelu else y)


def in_columns(weight: torch.Tensor) -> torch.Tensor:
    """A weight [N, K] as csrc/ops/linear.h wants it: [N / 16, K, 16] with N rounded up. Kept with a frozen weight."""
    return derived(weight, "columns", (weight,), lambda: _in_columns(weight.detach()))


def _in_columns(weight: torch.Tensor) -> torch.Tensor:
    return F.pad(weight, (0, 0, 0, -len(weight) % BLOCK)).unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()


def run(x, weight, bias, out, *, gelu) -> None:
    columns = in_columns(weight)
    addresses = (0 if t is None else t.data_ptr() for t in (x, columns, bias, out))
    native.call(NAME, *addresses, *x.shape, len(weight), int(gelu), 0)  # 0: vectors as wide as the machine has


linear = Op(
    f"{NAME}(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out, *, bool gelu)",
    check=check,
    reference=reference,
    backends=(Backend("cpp", lambda spec: native.supports(spec, (torch.float32,)), run, measured="linear_epyc.json"),),
)
