"""What follows the product of a tile: bias, noise, residual, norm, and the stores of results."""

import triton
import triton.language as tl


@triton.jit
def parts_of(y, PART: tl.constexpr):
    """Columns of a tile in parts of PART, since what follows needs addresses, and registers to hold them."""
    if y.shape[1] > PART:
        left, right = tl.split(tl.permute(tl.reshape(y, (y.shape[0], 2, y.shape[1] // 2)), (0, 2, 1)))
        parts = parts_of(left, PART) + parts_of(right, PART)
    else:
        parts = (y,)
    return parts


@triton.jit
def channels_of(n, group, CELL: tl.constexpr, BY_CELL: tl.constexpr):
    """(channel of the result, place in the cell) of columns."""
    if BY_CELL:
        c, s = n, group
    else:
        c, s = n // CELL, n % CELL
    return c, s


@triton.jit
def rows_at(strides, b, t, h, w):
    """Offsets [ROWS] of pixels; strides b, t, h, w, c."""
    at = b.to(tl.int64) * strides[0] + t.to(tl.int64) * strides[1]
    return at + h.to(tl.int64) * strides[2] + w.to(tl.int64) * strides[3]


@triton.jit
def store(to, strides, at, c, s, value, inside, P2: tl.constexpr, P3: tl.constexpr):
    """A part of the result: at its pixels [ROWS], the columns' places in the cell and channels further on."""
    further = (s // (P2 * P3)).to(tl.int64) * strides[1] + (s // P3 % P2).to(tl.int64) * strides[2]
    further += (s % P3).to(tl.int64) * strides[3]
    further += c.to(tl.int64) * strides[4]
    tl.store(to + (at[:, None] + further[None, :]), value.to(to.dtype.element_ty), mask=inside)


@triton.jit
def one_of_cell(x, group, stride, inside, CELL: tl.constexpr):
    """One number of each cell. All of a cell are read, as they are neighbours and one alone takes as long."""
    ALL: tl.constexpr = triton.next_power_of_2(CELL)
    i = tl.arange(0, ALL)[None, None, :]
    cells = tl.load(x[:, :, None] + i.to(tl.int64) * stride, mask=inside[:, :, None] & (i < CELL), other=0.0)
    return tl.sum(tl.where(i == group, cells.to(tl.float32), 0.0), 2)


@triton.jit
def vector(x, at, real):
    """Numbers of the columns, [1, COLUMNS]."""
    return tl.load(x + at, mask=real, other=0.0).to(tl.float32)[None, :]


@triton.jit
def finish(
    y,  # fp32 [ROWS, COLUMNS]
    row,  # [ROWS]: window
    first,  # column
    group,  # place in the cell; read where BY_CELL
    b,
    t,
    operands,  # bias, noise, noise_scale, residual, scale, shift
    results,  # out, normed, pictures
    sizes,  # frames, height, width, drop
    strides,  # of residual, out and normed
    eps,
    OUT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    BY_CELL: tl.constexpr,
    NORM: tl.constexpr,
    PART: tl.constexpr,
):
    """Add what is added to a tile of the product, and store it, one part of the columns after the other."""
    bias, noise, noise_scale, residual, scale, shift = operands
    out, normed, pictures = results
    frames, height, width, drop = sizes
    residual_strides, out_strides, normed_strides = strides
    CELL: tl.constexpr = P1 * P2 * P3
    h, w, frame = row // (width + 2), row % (width + 2), t * P1 - drop
    pixel = (h < height) & (w < width)
    if noise is not None:
        image = tl.load(noise + (b.to(tl.int64) * height * width + h * width + w), mask=pixel, other=0.0)
        image = image.to(tl.float32)[:, None]
    if residual is not None:
        beside = residual + rows_at(residual_strides, b, t, h, w)[:, None]
    if out is not None:
        out_at = rows_at(out_strides, b, frame, h * P2, w * P3)
    if pictures is not None:
        size = (height * P2).to(tl.int64) * (width * P3 * 3)
        picture_strides = ((frames * P1 - drop) * size, size, width * P3 * 3, 3, 1)
        picture_at = rows_at(picture_strides, b, frame, h * P2, w * P3)

    parts, done = parts_of(y, PART), ()
    total = tl.zeros((y.shape[0],), tl.float32)
    for i in tl.static_range(len(parts)):
        y = parts[i]
        c, s = channels_of(first + i * PART + tl.arange(0, PART), group, CELL, BY_CELL)
        real = c < OUT
        if bias is not None:
            y += vector(bias, c * CELL + s, real)
        if noise is not None:
            y += image * vector(noise_scale, c * CELL + s, real)
        if residual is not None:
            inside = pixel[:, None] & real[None, :]
            at = (c % RESIDUAL * CELL).to(tl.int64) * residual_strides[4]
            if BY_CELL and CELL > 1:
                y += one_of_cell(beside + at[None, :], group, residual_strides[4], inside, CELL)
            else:
                at += s.to(tl.int64) * residual_strides[4]
                y += tl.load(beside + at[None, :], mask=inside, other=0.0).to(tl.float32)
        inside = pixel[:, None] & (real & (frame + s // (P2 * P3) >= 0))[None, :]
        if out is not None:
            store(out, out_strides, out_at, c, s, y, inside, P2, P3)
        if pictures is not None:
            z = (y + 1.0) * 127.5
            z = tl.minimum(tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.NONE), 255.0)  # NaN becomes 0
            # Above 2^23 floats are whole numbers: the sum rounds to nearest, ties to even.
            store(pictures, picture_strides, picture_at, c, s, (z + 8388608.0) - 8388608.0, inside, P2, P3)
        if NORM and normed is not None:
            total += tl.sum(y * y if OUT % PART == 0 else tl.where(real[None, :], y * y, 0.0), 1)
        done += (y,)

    if normed is not None:
        at = rows_at(normed_strides, b, frame, h * P2, w * P3)
        root = tl.rsqrt(total / OUT + eps)[:, None]
        for i in tl.static_range(len(parts)):
            y = done[i]
            c, s = channels_of(first + i * PART + tl.arange(0, PART), group, CELL, BY_CELL)
            real = c < OUT
            if NORM:
                y *= root
                if scale is not None:
                    y = y * (1.0 + vector(scale, c, real)) + vector(shift, c, real)
                y /= 1.0 + tl.exp(-y)
            inside = pixel[:, None] & (real & (frame + s // (P2 * P3) >= 0))[None, :]
            store(normed, normed_strides, at, c, s, y, inside, P2, P3)
