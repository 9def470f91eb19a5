"""Convolution as one matrix product per tile of output pixels, the sum of its splits, and the history's move.

A frame inside its border is a matrix [(H + 2) (W + 2), C]. Window q = h (W + 2) + w of an output pixel begins at row q,
and tap (kh, kw) of a whole tile of windows is the same matrix kh (W + 2) + kw rows further on. The two windows between
one row of pixels and the next wrap around the border: they are computed and not stored.
"""

import triton
import triton.language as tl

from rest_fast.kernels.causal_conv3d.store import finish


@triton.jit
def multiply(
    acc,  # fp32 [ROWS, COLUMNS]
    source,  # buffer or history
    weight,
    lane,  # first slot of the lane in the source
    slot_size,  # elements; read without DESCRIPTORS
    row,  # first window of the tile
    height,
    width,
    output,  # first row of the weight matrix
    column,  # where its rows begin
    t,
    low,  # slots that exist
    high,
    begin,  # planes of taps
    end,
    C: tl.constexpr,
    OUTPUTS: tl.constexpr,  # rows of the weight matrix
    PITCH: tl.constexpr,  # from row to row there
    DEPTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc + windows x weights over these planes of taps. K counts planes, rows and columns of taps, then channels."""
    ROWS: tl.constexpr = acc.shape[0]
    PARTS: tl.constexpr = C // DEPTH
    if not DESCRIPTORS:
        k = tl.arange(0, DEPTH)
        # A tile reaches beyond its frame. What it reads there is not stored, but the addresses must be valid.
        windows = tl.minimum(row + tl.arange(0, ROWS), height * (width + 2) - 3)
        outputs = tl.minimum(output + tl.arange(0, acc.shape[1]), OUTPUTS - 1)
        a_at = source + (windows[:, None] * C + k[None, :])
        b_at = weight + (outputs[:, None] * PITCH + column + k[None, :])
    for i in tl.range(begin * (9 * PARTS), end * (9 * PARTS)):
        tap = i // PARTS
        slot = lane + tl.minimum(tl.maximum(t + tap // 9, low), high)
        further = tap % 9 // 3 * (width + 2) + tap % 3
        if DESCRIPTORS:
            a = tl.reshape(source.load([slot, row + further, i % PARTS * DEPTH]), (ROWS, DEPTH))
            b = weight.load([output, column + i * DEPTH])
        else:
            a = tl.load(a_at + (slot.to(tl.int64) * slot_size + (further * C + i % PARTS * DEPTH)))
            b = tl.load(b_at + i * DEPTH)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    return acc


@triton.jit(
    do_not_specialize=[
        "lanes",
        "frames",
        "height",
        "width",
        "past",
        "remembered",
        "drop",
        "buffer_slots",
        "history_slots",
    ]
)
def causal_conv3d_kernel(
    buffer,  # [slots, (H + 2) (W + 2), C]: a descriptor or the address of the border's corner
    history,  # the same
    weight,  # [O, 27 C], or [OUT, CELL 27 C] where BY_CELL
    bias,  # [O] or None, as noise_scale
    noise,  # [B, H, W] or None
    noise_scale,
    residual,  # [B, CELL RESIDUAL, T, H, W], any strides, or None
    scale,  # [OUT] or None, as shift
    shift,
    out,  # [B, OUT, T P1 - drop, H P2, W P3], any strides, or None
    normed,  # as out
    pictures,  # uint8 [B, T P1 - drop, H P2, W P3, 3], contiguous, or None
    partial,  # fp32 [SPLITS, B T, H (W + 2), O] where SPLITS > 1, and then the only result
    lanes,
    frames,  # T
    height,
    width,
    past,
    remembered,  # frames to be read from the history: past, or 0 on the first call
    drop,
    buffer_slots,  # per lane
    history_slots,
    slot_size,  # elements, of both
    residual_b,  # strides in elements
    residual_t,
    residual_h,
    residual_w,
    residual_c,
    out_b,
    out_t,
    out_h,
    out_w,
    out_c,
    normed_b,
    normed_t,
    normed_h,
    normed_w,
    normed_c,
    eps,
    C: tl.constexpr,
    OUT: tl.constexpr,  # channels of the result
    RESIDUAL: tl.constexpr,  # channels of the residual after depth to space
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    BY_CELL: tl.constexpr,  # a tile is one place of the cell; else channels of the convolution as they come
    NORM: tl.constexpr,  # a tile holds all channels of its pixels
    SPLITS: tl.constexpr,  # 1, or 3: one plane of taps each
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PART: tl.constexpr,  # columns of the store at a time
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    CELL: tl.constexpr = P1 * P2 * P3
    GROUPS: tl.constexpr = CELL if BY_CELL else 1
    OUTPUTS: tl.constexpr = OUT if BY_CELL else OUT * CELL
    # Tiles of pixels innermost: those that run side by side read the same weights, the larger matrix of a deep layer.
    tiles = tl.cdiv(height * (width + 2), ROWS)
    slots = lanes * frames
    row, rest = tl.program_id(0) % tiles * ROWS, tl.program_id(0) // tiles
    b, t, rest = rest % slots // frames, rest % slots % frames, rest // slots
    split, group, output = rest % SPLITS, rest // SPLITS % GROUPS, rest // SPLITS // GROUPS * COLUMNS

    begin, end = 0, 3
    if SPLITS > 1:
        begin, end = split, split + 1
    newest = group // (P2 * P3) if BY_CELL else P1 - 1  # of the frames that this place or these channels become
    if t * P1 + newest < drop:
        end = begin
    turn = tl.minimum(tl.maximum(remembered - t, begin), end)  # first plane that lies in the buffer
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    column = group * (27 * C)
    acc = multiply(
        acc, history, weight, b * history_slots, slot_size, row, height, width, output, column, t, 0, past - 1,
        begin, turn, C, OUTPUTS, GROUPS * 27 * C, DEPTH, DESCRIPTORS, PRECISION,
    )  # fmt: skip
    acc = multiply(
        acc, buffer, weight, b * buffer_slots, slot_size, row, height, width, output, column, t, past,
        past + frames - 1, turn, end, C, OUTPUTS, GROUPS * 27 * C, DEPTH, DESCRIPTORS, PRECISION,
    )  # fmt: skip

    rows, n = row + tl.arange(0, ROWS), output + tl.arange(0, COLUMNS)
    if SPLITS > 1:
        area = height * (width + 2)
        at = ((split * slots + b * frames + t).to(tl.int64) * area + rows) * (OUT * CELL)
        inside = (rows < area)[:, None] & (n < OUTPUTS)[None, :]
        tl.store(partial + (at[:, None] + (group * OUTPUTS + n)[None, :]), acc, mask=inside)
    else:
        finish(
            acc, rows, output, group, b, t, (bias, noise, noise_scale, residual, scale, shift), (out, normed, pictures),
            (frames, height, width, drop),
            (
                (residual_b, residual_t, residual_h, residual_w, residual_c),
                (out_b, out_t, out_h, out_w, out_c),
                (normed_b, normed_t, normed_h, normed_w, normed_c),
            ),
            eps, OUT, RESIDUAL, P1, P2, P3, BY_CELL, NORM, PART,
        )  # fmt: skip


@triton.jit(do_not_specialize=["lanes", "frames", "height", "width", "drop"])
def combine_kernel(
    partial,  # fp32 [SPLITS, B T, H (W + 2), O], by cells
    bias,  # these as above
    noise,
    noise_scale,
    residual,
    scale,
    shift,
    out,
    normed,
    pictures,
    lanes,
    frames,
    height,
    width,
    drop,
    residual_b,
    residual_t,
    residual_h,
    residual_w,
    residual_c,
    out_b,
    out_t,
    out_h,
    out_w,
    out_c,
    normed_b,
    normed_t,
    normed_h,
    normed_w,
    normed_c,
    eps,
    OUT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    P3: tl.constexpr,
    NORM: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The sum of the splits, always in the same order, and what follows it, for all channels of a few pixels."""
    CELL: tl.constexpr = P1 * P2 * P3
    area, slots = height * (width + 2), lanes * frames
    tiles = tl.cdiv(area, ROWS)
    row, rest = tl.program_id(0) % tiles * ROWS, tl.program_id(0) // tiles
    b, t, rest = rest % slots // frames, rest % slots % frames, rest // slots
    group, first = rest % CELL, rest // CELL * COLUMNS
    rows, c = row + tl.arange(0, ROWS), first + tl.arange(0, COLUMNS)
    inside = (rows < area)[:, None] & (c < OUT)[None, :]
    at = ((b * frames + t).to(tl.int64) * area + rows)[:, None] * (OUT * CELL) + (group * OUT + c)[None, :]
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(partial + (at + slots.to(tl.int64) * area * (OUT * CELL) * split), mask=inside, other=0.0)
    finish(
        y, rows, first, group, b, t, (bias, noise, noise_scale, residual, scale, shift), (out, normed, pictures),
        (frames, height, width, drop),
        (
            (residual_b, residual_t, residual_h, residual_w, residual_c),
            (out_b, out_t, out_h, out_w, out_c),
            (normed_b, normed_t, normed_h, normed_w, normed_c),
        ),
        eps, OUT, RESIDUAL, P1, P2, P3, True, NORM, COLUMNS,
    )  # fmt: skip


@triton.jit
def recall(buffer, history, b, frame, past, remembered, within, inside, buffer_b, history_b, slot_size):
    """The values of a frame of history and piece, which are counted as one sequence."""
    if frame < remembered:
        value = tl.load(history + (b * history_b + frame * slot_size + within), mask=inside, other=0.0)
    else:
        frame = tl.maximum(frame, past)
        value = tl.load(buffer + (b * buffer_b + frame * slot_size + within), mask=inside, other=0.0)
    return value


@triton.jit(do_not_specialize=["height", "remembered", "keep"])
def remember_kernel(
    buffer,  # address of the first pixel, as history
    history,  # [B, C, PAST, H, W], written
    height,
    run,  # W C elements, side by side
    remembered,
    keep,
    buffer_b,  # strides in elements
    history_b,
    slot_size,
    line,  # from row to row, of both
    PAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """history[j] = frame keep + j of history and piece. A program reads its part of all of them, and then writes."""
    blocks = tl.cdiv(run, BLOCK)
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    h, b = rest % height, (rest // height).to(tl.int64)
    x = block * BLOCK + tl.arange(0, BLOCK)
    within, inside = h.to(tl.int64) * line + x, x < run
    keep = keep.to(tl.int64)
    older = recall(buffer, history, b, keep, PAST, remembered, within, inside, buffer_b, history_b, slot_size)
    to = history + (b * history_b + within)
    if PAST == 2:
        newer = recall(buffer, history, b, keep + 1, PAST, remembered, within, inside, buffer_b, history_b, slot_size)
        tl.store(to + slot_size, newer, mask=inside)
    tl.store(to, older, mask=inside)
