"""``frames_to_uint8``: decoder output in -1..1 to 8-bit pictures, rounded to nearest, clamped.

out = round(clamp((x + 1) / 2, 0, 1) 255)
"""

from __future__ import annotations

import torch

from rest_fast.ops import triton_kernels
from rest_fast.ops.dispatch import Op, Spec, expect, expect_float

NAME = "frames_to_uint8"


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Functional reference: [B, 3, T, H, W] in -1..1 -> uint8 [B, T, H, W, 3]."""
    y = (x.float() * 127.5 + 127.5).clamp(0, 255).round()
    return y.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def check(x, out) -> Spec:
    expect_float(NAME, "x", x)
    expect(NAME, "x", x, (-1, 3, -1, -1, -1), contiguous=False)
    b, _, t, h, w = x.shape
    expect(NAME, "out", out, (b, t, h, w, 3), dtype=torch.uint8, device=x.device)
    return Spec(x.device.type, x.dtype, (("frames", b * t), ("height", h), ("width", w)))


def reference(x, out) -> None:
    out.copy_(to_uint8(x))


frames_to_uint8 = Op(
    f"{NAME}(Tensor x, Tensor(a!) out)", check=check, reference=reference, backends=(triton_kernels.backend(NAME),)
)
