"""``depth_to_space``: channels into frames, rows and columns (the decoder's upsampler).

Channel order is (c, p1, p2, p3), c slowest, as in LTX-Video. ``drop`` leading output frames are left out: the first
call of a causal stream drops the ``p1 - 1`` frames that lie before its start. ``out`` shares no memory with ``x``; both
may have any strides and any dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, OpError, Spec, expect
from rest_fast.ops.memory_layouts import expect_writable, layout

NAME = "depth_to_space"


def functional_depth_to_space(x: torch.Tensor, factors: tuple[int, int, int], drop: int = 0) -> torch.Tensor:
    """Functional reference: [B, C p1 p2 p3, T, H, W] -> [B, C, T p1 - drop, H p2, W p3]. Differentiable."""
    b, c, t, h, w = x.shape
    p1, p2, p3 = factors
    x = x.reshape(b, c // (p1 * p2 * p3), p1, p2, p3, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, -1, t * p1, h * p2, w * p3)[:, :, drop:]


def space_to_depth(x: torch.Tensor, factors: tuple[int, int, int]) -> torch.Tensor:
    """The inverse, for ``drop = 0``: [B, C, T p1, H p2, W p3] -> [B, C p1 p2 p3, T, H, W]."""
    b, c, t, h, w = x.shape
    p1, p2, p3 = factors
    x = x.reshape(b, c, t // p1, p1, h // p2, p2, w // p3, p3).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * p1 * p2 * p3, t // p1, h // p2, w // p3)


def check(x, out, *, factors, drop) -> Spec:
    expect(NAME, "x", x, (-1, -1, -1, -1, -1), contiguous=False)
    b, c, t, h, w = x.shape
    if len(factors) != 3 or min(factors) < 1:
        raise OpError(f"{NAME}: argument factors: expected three positive integers, got {list(factors)}")
    p1, p2, p3 = factors
    if c % (p1 * p2 * p3) or not 0 <= drop < t * p1:
        raise OpError(
            f"{NAME}: argument x: expected channels divisible by {p1 * p2 * p3} and more than {drop} output "
            f"frames, got shape {list(x.shape)}"
        )
    shape = (b, c // (p1 * p2 * p3), t * p1 - drop, h * p2, w * p3)
    expect(NAME, "out", out, shape, dtype=x.dtype, device=x.device, contiguous=False)
    expect_writable(NAME, "out", out)
    sizes = (("channels", c), ("frames", t), ("height", h), ("width", w), ("pixels", out[:, 0].numel()))
    return Spec(x.device.type, x.dtype, (*sizes, ("layout", layout(x)), ("out_layout", layout(out))))


def reference(x: torch.Tensor, out: torch.Tensor, *, factors: Sequence[int], drop: int) -> None:
    """Channels into frames, rows and columns.

    Args:
        x: [B, C p1 p2 p3, T, H, W] of any dtype, any strides.
        out: [B, C, T p1 - drop, H p2, W p3], any strides without overlap, in other memory than x. Written.
        factors: p1, p2, p3.
        drop: leading output frames that are left out, 0 to T p1 - 1.
    """
    p1, p2, p3 = factors
    out.copy_(functional_depth_to_space(x, (p1, p2, p3), drop))


def _arguments(x, out, *, factors, drop) -> tuple:
    """Those that csrc/ops/depth_to_space.h lists: addresses, sizes, strides."""
    b, _, t, h, w = x.shape
    return (
        x.data_ptr(),
        out.data_ptr(),
        (b, out.shape[1], t, h, w),
        factors,
        drop,
        x.stride(),
        out.stride(),
        x.element_size(),
    )


def _unfit(spec: Spec) -> str:
    # A complex tensor may be a view that PyTorch conjugates only when it reads it.
    return f"dtype {spec.dtype} is not compiled in" if spec.dtype.is_complex else ""


depth_to_space = Op(
    f"{NAME}(Tensor x, Tensor(a!) out, *, int[] factors, int drop)",
    check=check,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, _unfit, dtypes=None, measured="ops_cpu.json"),
        native.cuda_backend(NAME, _arguments, _unfit, dtypes=None),
    ),
)
