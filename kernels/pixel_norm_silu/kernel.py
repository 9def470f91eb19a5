"""One program per tile of pixels, with all their channels: read once, written once."""

import triton
import triton.language as tl

from rest_fast.kernels.pixels import offsets


@triton.jit
def pixel_norm_silu_kernel(
    x,  # [B, C, T, H, W], any strides
    scale,  # [C] or None
    shift,  # [C] or None
    out,  # as x, any strides
    pixels,
    eps,
    T,  # axes of the pixels: see rest_fast.kernels.pixels
    H,
    W,
    x_b,  # strides in elements
    x_t,
    x_h,
    x_w,
    x_c,
    out_b,
    out_t,
    out_h,
    out_w,
    out_c,
    AXES: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tl.static_assert(BLOCK_C >= C, "a program holds whole pixels: their norm is over all channels")
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    source = offsets(p, T, H, W, x_b, x_t, x_h, x_w, AXES)[:, None] + c.to(tl.int64)[None, :] * x_c
    y = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    y *= tl.rsqrt(tl.sum(y * y, 1) / C + eps)[:, None]
    if scale is not None:
        y *= 1.0 + tl.load(scale + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
        y += tl.load(shift + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    y /= 1.0 + tl.exp(-y)
    target = offsets(p, T, H, W, out_b, out_t, out_h, out_w, AXES)[:, None] + c.to(tl.int64)[None, :] * out_c
    tl.store(out + target, y.to(out.dtype.element_ty), mask=inside)
