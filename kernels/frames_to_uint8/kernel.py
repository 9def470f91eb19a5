"""One program per run of pixels of all frames."""

import triton
import triton.language as tl

from rest_fast.kernels.pixels import offsets


@triton.jit
def frames_to_uint8_kernel(
    x,  # [B, 3, T, H, W], any strides
    out,  # uint8 [B, T, H, W, 3], contiguous
    pixels,
    T,  # axes of the pixels of x: see rest_fast.kernels.pixels
    H,
    W,
    x_b,  # strides in elements
    x_t,
    x_h,
    x_w,
    x_c,
    AXES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.arange(0, 4)
    inside = (p < pixels)[:, None] & (c < 3)[None, :]
    source = offsets(p, T, H, W, x_b, x_t, x_h, x_w, AXES)[:, None] + c.to(tl.int64)[None, :] * x_c
    y = (tl.load(x + source, mask=inside, other=0.0).to(tl.float32) + 1.0) * 127.5
    y = tl.minimum(tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.NONE), 255.0)  # NaN becomes 0
    # Above 2^23 floats are whole numbers: the sum rounds to nearest, ties to even.
    y = (y + 8388608.0) - 8388608.0
    tl.store(out + p.to(tl.int64)[:, None] * 3 + c[None, :], y.to(tl.uint8), mask=inside)
