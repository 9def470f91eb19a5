"""``pixel_norm_silu``: RMS norm over the channels of each pixel, optional scale and shift, SiLU.

    out = silu(x / sqrt(mean_c x^2 + eps) (1 + scale) + shift)

This is the norm of LTX-Video's decoder. Statistics are fp32, since squares overflow in fp16, and there is one rounding,
at the end. ``out`` shares no memory with ``x``. Both may have any strides; contiguous and channels-last ones are fast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, OpError, Spec, expect, expect_float
from rest_fast.ops.memory_layouts import expect_writable, layout

NAME = "pixel_norm_silu"


def normed_silu(
    x: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None, *, eps: float
) -> torch.Tensor:
    """Functional reference: x [B, C, T, H, W], scale and shift [C] or None. Differentiable."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    y = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + eps)
    if scale is not None and shift is not None:
        column = (-1, 1, 1, 1)
        y = y * (1 + scale.to(y.dtype).view(column)) + shift.to(y.dtype).view(column)
    return F.silu(y).to(x.dtype)


def check(x, scale, shift, out, *, eps) -> Spec:
    expect_float(NAME, "x", x)
    expect(NAME, "x", x, (-1, -1, -1, -1, -1), contiguous=False)
    expect(NAME, "out", out, tuple(x.shape), dtype=x.dtype, device=x.device, contiguous=False)
    expect_writable(NAME, "out", out)
    if (scale is None) != (shift is None):
        raise OpError(f"{NAME}: argument shift: expected scale and shift together, got one of them")
    for name, vector in (("scale", scale), ("shift", shift)):
        if vector is not None:
            expect(NAME, name, vector, (x.shape[1],), dtype=x.dtype, device=x.device)
    b, c, t, h, w = x.shape
    dims = (("channels", c), ("pixels", b * t * h * w), ("layout", layout(x)), ("out_layout", layout(out)))
    return Spec(x.device.type, x.dtype, dims)


def reference(
    x: torch.Tensor, scale: torch.Tensor | None, shift: torch.Tensor | None, out: torch.Tensor, *, eps: float
) -> None:
    """out = silu(x / sqrt(mean_c x^2 + eps) (1 + scale) + shift).

    Args:
        x: [B, C, T, H, W], floating, any strides.
        scale, shift: [C], or both None.
        out: like x, any strides without overlap, in other memory than x. Written.
        eps: of the norm.
    """
    out.copy_(normed_silu(x, scale, shift, eps=eps))


def _arguments(x, scale, shift, out, *, eps) -> tuple:
    """Those that csrc/ops/pixel_norm_silu.h lists: addresses, sizes, strides."""
    return (
        x.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if shift is None else shift.data_ptr(),
        out.data_ptr(),
        x.shape,
        x.stride(),
        out.stride(),
        eps,
        native.DTYPES[x.dtype],
    )


pixel_norm_silu = Op(
    f"{NAME}(Tensor x, Tensor? scale, Tensor? shift, Tensor(a!) out, *, float eps)",
    check=check,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, measured="ops_cpu.json"),
        native.cuda_backend(NAME, _arguments),
    ),
)
