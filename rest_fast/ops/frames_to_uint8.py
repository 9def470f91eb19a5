"""``frames_to_uint8``: decoder output in -1..1 to 8-bit pictures, rounded to nearest, clamped.

    out = round(clamp((x + 1) 127.5, 0, 255)),  ties to even, NaN to 0

The sum comes before the product because no compiler can contract that into a fused multiply-add. So every
implementation gives the same bytes.
"""

from __future__ import annotations

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, Spec, expect, expect_float
from rest_fast.ops.memory_layouts import layout

NAME = "frames_to_uint8"


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Functional reference: [B, 3, T, H, W] in -1..1 -> uint8 [B, T, H, W, 3]."""
    y = ((x.float() + 1) * 127.5).nan_to_num(0.0).clamp(0, 255).round()
    return y.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def check(x, out) -> Spec:
    expect_float(NAME, "x", x)
    expect(NAME, "x", x, (-1, 3, -1, -1, -1), contiguous=False)
    b, _, t, h, w = x.shape
    expect(NAME, "out", out, (b, t, h, w, 3), dtype=torch.uint8, device=x.device)
    return Spec(x.device.type, x.dtype, (("frames", b * t), ("height", h), ("width", w), ("layout", layout(x))))


def reference(x: torch.Tensor, out: torch.Tensor) -> None:
    """Video in -1..1 to 8-bit pictures.

    Args:
        x: [B, 3, T, H, W], floating, any strides.
        out: uint8 [B, T, H, W, 3], contiguous. Written.
    """
    out.copy_(to_uint8(x))


def _arguments(x, out) -> tuple:
    """Those that csrc/ops/frames_to_uint8.h lists: addresses, sizes, strides."""
    return x.data_ptr(), out.data_ptr(), tuple(out.shape[:4]), x.stride(), native.DTYPES[x.dtype]


frames_to_uint8 = Op(
    f"{NAME}(Tensor x, Tensor(a!) out)",
    check=check,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, measured="ops_cpu.json"),
        native.cuda_backend(NAME, _arguments),
    ),
)
