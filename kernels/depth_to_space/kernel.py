"""One program per tile of cells (input pixels) and output channels: every value is read once and written once."""

import triton
import triton.language as tl

from rest_fast.kernels.pixels import offsets


@triton.jit
def depth_to_space_kernel(
    x,  # [B, C P1 P2 P3, T, H, W], integers of any width, any strides
    out,  # [B, C, T P1 - drop, H P2, W P3], any strides
    cells,  # pixels of x
    channels,  # C, of out
    frames,  # T, and H W, of x: only where frames are dropped
    area,
    drop,
    T,  # axes of the cells: see rest_fast.kernels.pixels
    H,
    W,
    x_b,  # strides in elements, from cell to cell
    x_t,
    x_h,
    x_w,
    x_c,
    out_b,
    out_t,
    out_h,
    out_w,
    out_c,
    sub_t,  # strides of out, from pixel to pixel
    sub_h,
    sub_w,
    AXES: tl.constexpr,
    DROPS: tl.constexpr,
    RUNS: tl.constexpr,  # the factors are powers of two, and pixels of neighbouring cells follow on one another
    SWAPPED: tl.constexpr,  # rows and columns (P2 and P3, too) have changed places: x counts P3 before P2
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,  # P1 P2 and P3, each up to a power of two
    BLOCK_K: tl.constexpr,
):
    S: tl.constexpr = P1 * P2 * P3
    BLOCK_S: tl.constexpr = BLOCK_R * BLOCK_K
    groups = tl.cdiv(channels, BLOCK_C)
    first, c = tl.program_id(0) // groups * BLOCK_P, tl.program_id(0) % groups * BLOCK_C

    # Read [cell, n]: n counts the values of a cell as they lie.
    p, n = first + tl.arange(0, BLOCK_P), c * BLOCK_S + tl.arange(0, BLOCK_C * BLOCK_S)
    r, k = n % BLOCK_S // BLOCK_K, n % BLOCK_K
    if RUNS:
        real = n < channels * S
    else:
        real = (n // BLOCK_S < channels) & (r < P1 * P2) & (k < P3)
    if SWAPPED:
        n = n // BLOCK_S * S + r // P2 * (P2 * P3) + k * P2 + r % P2
    elif not RUNS:
        n = n // BLOCK_S * S + r * P3 + k
    source = offsets(p, T, H, W, x_b, x_t, x_h, x_w, AXES)[:, None] + (n.to(tl.int64) * x_c)[None, :]
    values = tl.load(x + source, mask=(p < cells)[:, None] & real[None, :], other=0)

    # Write [channel, row, q]: q counts the pixels of neighbouring cells, one column after another.
    values = tl.permute(tl.reshape(values, (BLOCK_P, BLOCK_C, BLOCK_R, BLOCK_K)), (1, 2, 0, 3))
    values = tl.reshape(values, (BLOCK_C, BLOCK_R, BLOCK_P * BLOCK_K))
    q, r = first * BLOCK_K + tl.arange(0, BLOCK_P * BLOCK_K), tl.arange(0, BLOCK_R)
    c += tl.arange(0, BLOCK_C)
    if RUNS:
        column = offsets(q, T, H, W * P3, out_b, out_t, out_h, sub_w, AXES)
        real = q < cells * P3
        frame = q // (area * P3) % frames * P1
    else:
        p, k = q // BLOCK_K, q % BLOCK_K
        column = offsets(p, T, H, W, out_b, out_t, out_h, out_w, AXES) + k.to(tl.int64) * sub_w
        real = (p < cells) & (k < P3)
        frame = p // area % frames * P1
    row = (r // P2 - drop).to(tl.int64) * sub_t + (r % P2).to(tl.int64) * sub_h
    target = (c.to(tl.int64) * out_c)[:, None, None] + row[None, :, None] + column[None, None, :]
    inside = ((c < channels)[:, None] & (r < P1 * P2)[None, :])[:, :, None] & real[None, None, :]
    if DROPS:
        inside &= (frame[None, :] + (r // P2)[:, None] >= drop)[None, :, :]
    tl.store(out + target, values, mask=inside)
