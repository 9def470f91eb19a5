"""One program per few slots of one (layer, lane, bank)."""

import triton
import triton.language as tl


# Alignment follows from WIDTH. The other sizes must not be specialised.
@triton.jit(do_not_specialize=["lanes", "rows", "banks", "slots", "sink", "chunk", "blocks"])
def rotate_context_kernel(
    k_cache,  # [L, rows, banks, slots, W], written
    shift,  # fp32 [n, 2]: (cos, sin)
    row_index,  # int32 [B], as the next two
    skip_slot,
    enabled,
    lanes,
    rows,
    banks,
    slots,
    sink,
    chunk,
    blocks,  # of SLOTS slots, from the first one after the sink
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tl.static_assert(WIDTH % 2 == 0, "channels turn in pairs")
    slot = sink + tl.program_id(0) % blocks * SLOTS
    bank = tl.program_id(0) // blocks % banks
    lane = tl.program_id(0) // (blocks * banks) % lanes
    layer = tl.program_id(0) // (blocks * banks * lanes)
    row, skip = tl.load(row_index + lane), tl.load(skip_slot + lane)
    moves = (tl.load(enabled + lane) != 0) & (row >= 0) & (row < rows) & (skip >= sink) & (skip <= slots - chunk)
    # Nothing is read of a block that is entirely in the current chunk.
    if not moves or ((slot >= skip) & (slot + SLOTS <= skip + chunk)):
        return

    PAD: tl.constexpr = WIDTH // 2 - 3 * (WIDTH // 6)
    j = tl.arange(0, BLOCK // 2) - PAD
    time = (j >= 0) & (j < 3 * (WIDTH // 6)) & (j % 3 == 0)
    cosine = tl.load(shift + j // 3 * 2, mask=time, other=1.0)[None]
    sine = tl.load(shift + j // 3 * 2 + 1, mask=time, other=0.0)[None]

    s, c = slot + tl.arange(0, SLOTS), tl.arange(0, BLOCK)
    here = (s < slots) & ((s < skip) | (s >= skip + chunk))
    real = here[:, None] & (c < WIDTH)[None]
    first = ((layer.to(tl.int64) * rows + row) * banks + bank) * slots
    at = k_cache + (first + s)[:, None] * WIDTH + c[None]
    a, b = tl.split(tl.reshape(tl.load(at, mask=real), (SLOTS, BLOCK // 2, 2)))
    wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
    # The other pairs are stored as they were read, bit for bit: whole vectors of 16 bytes move, and no line is split.
    a = tl.where(time[None], (wide_a * cosine - wide_b * sine).to(a.dtype), a)
    b = tl.where(time[None], (wide_a * sine + wide_b * cosine).to(b.dtype), b)
    tl.store(at, tl.reshape(tl.join(a, b), (SLOTS, BLOCK)), mask=real)
