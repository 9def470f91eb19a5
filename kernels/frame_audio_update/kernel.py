"""A program takes some tokens of a frame of a lane and a part of their channels: all heads' shares, then the update."""

import triton
import triton.language as tl


@triton.jit
def shares(
    q,  # where the row of each token begins [ROWS]
    inside,  # whether there is such a token [ROWS]
    keys,  # where the keys of the frame begin
    eps,
    OTHERS: tl.constexpr,  # A - 1
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    AUDIO_BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
):
    """fp32 [ROWS, AUDIO_BLOCK, GROUPS GROUP]: the softmax over the audio tokens, the first one included."""
    WIDTH: tl.constexpr = HEADS * DIM
    c = tl.arange(0, GROUP * DIM_BLOCK)
    audio = tl.arange(0, AUDIO_BLOCK)[None, :, None, None]
    of_group = tl.arange(0, GROUPS)[None, None, :, None]
    squares = tl.zeros((ROWS,), tl.float32)
    score = tl.zeros((ROWS, AUDIO_BLOCK, GROUPS, GROUP), tl.float32)
    for group in range(GROUPS):
        head, channel = group * GROUP + c // DIM_BLOCK, c % DIM_BLOCK
        real = (head < HEADS) & (channel < DIM)
        at = head * DIM + channel
        x = tl.load(q[:, None] + at[None], mask=inside[:, None] & real[None], other=0.0).to(tl.float32)
        squares += tl.sum(x * x, 1)
        for other in tl.static_range(OTHERS):
            key = tl.load(keys + other * WIDTH + at, mask=real, other=0.0).to(tl.float32)
            part = tl.sum(tl.reshape(x * key[None], (ROWS, GROUP, DIM_BLOCK)), 2)
            here = (audio == other + 1) & (of_group == group)
            score = tl.where(here, part[:, None, None], score)
    root = tl.rsqrt(squares / WIDTH + eps)
    score = tl.reshape(score, (ROWS, AUDIO_BLOCK, GROUPS * GROUP)) * (root * 1.4426950408889634)[:, None, None]
    score = tl.where(tl.arange(0, AUDIO_BLOCK)[None, :, None] <= OTHERS, score, float("-inf"))
    most = tl.max(score, 1)
    share = tl.exp2(score - most[:, None])
    return share / tl.sum(share, 1)[:, None]


# Alignment follows from the constants. The other sizes must not be specialised.
@triton.jit(do_not_specialize=["hearing", "slots", "frames", "tokens"])
def update_kernel(
    x,  # [B, F, T, W], written
    q,  # [C, F, T, H D]
    keys,  # [S, F, A - 1, H D]
    base,  # [S, F, W]
    update,  # [S, F, A - 1, H, W]
    null,  # [W]
    slot,  # int32 [C]
    hearing,  # C
    slots,  # S
    frames,
    tokens,  # T
    eps,
    OTHERS: tl.constexpr,  # A - 1
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    PART: tl.constexpr,  # channels of a program
    COLUMNS: tl.constexpr,  # channels at a time
    AUDIO_BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
):
    tl.static_assert(GROUPS * GROUP >= HEADS and DIM_BLOCK >= DIM and AUDIO_BLOCK > OTHERS, "all heads in a program")
    tl.static_assert(PART % COLUMNS == 0, "a program's channels come in whole blocks")
    RANK: tl.constexpr = AUDIO_BLOCK * GROUPS * GROUP
    tiles = tl.cdiv(tokens, ROWS)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    frame, lane = tl.program_id(0) // tiles % frames, (tl.program_id(0) // (tiles * frames)).to(tl.int64)
    inside = row < tokens
    token = (lane * frames + frame) * tokens + row
    place = tl.load(slot + lane, mask=lane < hearing, other=-1).to(tl.int64)
    first = tl.program_id(1) * PART

    if place == -1:
        for block in range(0, PART, COLUMNS):
            c = first + block + tl.arange(0, COLUMNS)
            at = token[:, None] * WIDTH + c[None]
            real = inside[:, None] & (c < WIDTH)[None]
            constant = tl.load(null + c, mask=c < WIDTH, other=0.0).to(tl.float32)
            total = tl.load(x + at, mask=real, other=0.0).to(tl.float32) + constant[None]
            tl.store(x + at, total.to(x.dtype.element_ty), mask=real)
    elif (place >= 0) & (place < slots):  # any other slot is no slot: nothing is written
        heard = place * frames + frame
        share = shares(
            *(q + token * (HEADS * DIM), inside, keys + heard * (OTHERS * HEADS * DIM), eps),
            *(OTHERS, HEADS, DIM, ROWS, AUDIO_BLOCK, GROUPS, GROUP, DIM_BLOCK),
        )
        share = tl.reshape(share, (ROWS, RANK)).to(x.dtype.element_ty)
        r = tl.arange(0, RANK)
        other, head = r // (GROUPS * GROUP) - 1, r % (GROUPS * GROUP)
        counts = (other >= 0) & (other < OTHERS) & (head < HEADS)  # the first token's share is in base
        vector = (heard * OTHERS + other) * HEADS + head
        for block in range(0, PART, COLUMNS):
            c = first + block + tl.arange(0, COLUMNS)
            at = token[:, None] * WIDTH + c[None]
            real = inside[:, None] & (c < WIDTH)[None]
            mixed = tl.load(
                update + vector[:, None] * WIDTH + c[None], mask=counts[:, None] & (c < WIDTH)[None], other=0.0
            )
            total = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
            total += tl.load(base + heard * WIDTH + c, mask=c < WIDTH, other=0.0).to(tl.float32)[None]
            total = tl.dot(share, mixed, total, input_precision="ieee")
            tl.store(x + at, total.to(x.dtype.element_ty), mask=real)
