"""Few keys: whole rows of several tokens to a program, no tensor cores. Many keys: norm, then one head to a program."""

import triton
import triton.language as tl


@triton.jit
def first_key(lane, frame, frames, KEYS: tl.constexpr, SHARED: tl.constexpr):
    """Row of k and v, int64, at which the keys of a frame begin."""
    of_lane = frame.to(tl.int64) if SHARED else lane * frames + frame
    return of_lane * KEYS


@triton.jit
def channels(HEADS: tl.constexpr, DIM: tl.constexpr, HEADS_BLOCK: tl.constexpr, DIM_BLOCK: tl.constexpr):
    """Address and existence of each channel of a row padded to HEADS_BLOCK heads of DIM_BLOCK, both flat.

    Flat, so that tiles of one row and of several get the same layout; nothing is computed where no head is padded.
    """
    c = tl.arange(0, HEADS_BLOCK * DIM_BLOCK)
    real = c < HEADS * DIM_BLOCK
    if DIM != DIM_BLOCK:
        real = real & (c % DIM_BLOCK < DIM)
        c = c // DIM_BLOCK * DIM + c % DIM_BLOCK
    return c, real


@triton.jit
def heads_of(row, c, real, HEADS_BLOCK: tl.constexpr, DIM_BLOCK: tl.constexpr):
    """One row of keys or values, fp32 [1, HEADS_BLOCK, DIM_BLOCK]."""
    return tl.reshape(tl.load(row + c, mask=real, other=0.0).to(tl.float32), (1, HEADS_BLOCK, DIM_BLOCK))


# Alignment follows from HEADS and DIM. The other sizes must not be specialised, here and below.
@triton.jit(do_not_specialize=["frames", "tokens"])
def few_keys_kernel(
    q,  # [B, F, T, W]
    q_weight,  # [W]
    k,  # [B or 1, F, A, W]
    v,  # [B or 1, F, A, W]
    out,  # [B, F, T, W], written
    frames,
    tokens,  # T
    eps,
    scale,  # D^-1/2 log2(e)
    KEYS: tl.constexpr,  # A
    SHARED: tl.constexpr,  # one k and one v for all lanes
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
):
    tl.static_assert(HEADS_BLOCK >= HEADS and DIM_BLOCK >= DIM, "a program holds whole rows")
    WIDTH: tl.constexpr = HEADS * DIM
    tiles = tl.cdiv(tokens, ROWS)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    frame, lane = tl.program_id(0) // tiles % frames, (tl.program_id(0) // (tiles * frames)).to(tl.int64)
    c, real = channels(HEADS, DIM, HEADS_BLOCK, DIM_BLOCK)
    at = ((lane * frames + frame) * tokens + row)[:, None] * WIDTH + c[None]
    inside = (row < tokens)[:, None] & real[None]

    x = tl.load(q + at, mask=inside, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]
    x *= (tl.load(q_weight + c, mask=real, other=0.0).to(tl.float32) * scale)[None]
    x = tl.reshape(x, (ROWS, HEADS_BLOCK, DIM_BLOCK))

    of_frame = first_key(lane, frame, frames, KEYS, SHARED) * WIDTH
    k += of_frame
    v += of_frame
    most = tl.sum(x * heads_of(k, c, real, HEADS_BLOCK, DIM_BLOCK), 2)  # [ROWS, HEADS_BLOCK]
    total = tl.full((ROWS, HEADS_BLOCK), 1.0, tl.float32)
    seen = heads_of(v, c, real, HEADS_BLOCK, DIM_BLOCK) + tl.zeros_like(x)
    for key in range(1, KEYS):
        score = tl.sum(x * heads_of(k + key * WIDTH, c, real, HEADS_BLOCK, DIM_BLOCK), 2)
        higher = tl.maximum(most, score, propagate_nan=tl.PropagateNan.ALL)
        kept, share = tl.exp2(most - higher), tl.exp2(score - higher)
        seen *= kept[:, :, None]
        seen += share[:, :, None] * heads_of(v + key * WIDTH, c, real, HEADS_BLOCK, DIM_BLOCK)
        total = total * kept + share
        most = higher
    seen = tl.reshape(seen / total[:, :, None], (ROWS, HEADS_BLOCK * DIM_BLOCK))
    tl.store(out + at, seen.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_kernel(
    q,  # [B N, W]
    q_weight,  # [W]
    out,  # [B N, W], written: rms_norm(q) q_weight
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tl.static_assert(BLOCK >= WIDTH, "a program holds a whole row: its norm is over all channels")
    c = tl.arange(0, BLOCK)
    real = c < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + c
    x = tl.load(q + at, mask=real, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x) / WIDTH + eps)
    x *= tl.load(q_weight + c, mask=real, other=0.0).to(tl.float32)
    tl.store(out + at, x.to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["frames", "tokens"])
def many_keys_kernel(
    out,  # [B, F, T, W]: normed queries, overwritten with what they see
    k,  # [B or 1, F, A, W]
    v,  # [B or 1, F, A, W]
    frames,
    tokens,  # T
    scale,  # D^-1/2 log2(e)
    KEYS: tl.constexpr,  # A
    SHARED: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS_BLOCK: tl.constexpr,
    DIM_BLOCK: tl.constexpr,
):
    tl.static_assert(DIM_BLOCK >= DIM and DIM_BLOCK >= 16, "a program holds whole heads; tl.dot wants 16 channels")
    WIDTH: tl.constexpr = HEADS * DIM
    tiles = tl.cdiv(tokens, ROWS)
    head, tile = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    row = tile % tiles * ROWS + tl.arange(0, ROWS)
    frame, lane = tile // tiles % frames, (tile // (tiles * frames)).to(tl.int64)
    d = tl.arange(0, DIM_BLOCK)
    at = ((lane * frames + frame) * tokens + row)[:, None] * WIDTH + (head * DIM + d)[None]
    real = (row < tokens)[:, None] & (d < DIM)[None]
    q = tl.load(out + at, mask=real, other=0.0)

    of_head = first_key(lane, frame, frames, KEYS, SHARED) * WIDTH + head * DIM
    k += of_head
    v += of_head
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    seen = tl.zeros((ROWS, DIM_BLOCK), tl.float32)
    for first in range(0, KEYS, KEYS_BLOCK):
        key = first + tl.arange(0, KEYS_BLOCK)
        there = key[:, None] * WIDTH + d[None]
        exists = (key < KEYS)[:, None] & (d < DIM)[None]
        block = tl.load(k + there, mask=exists, other=0.0)
        score = tl.dot(q, tl.trans(block), input_precision="ieee") * scale
        score = tl.where((key < KEYS)[None], score, float("-inf"))
        higher = tl.maximum(most, tl.max(score, 1))
        kept, share = tl.exp2(most - higher), tl.exp2(score - higher[:, None])
        value = tl.load(v + there, mask=exists, other=0.0)
        seen = tl.dot(share.to(value.dtype), value, seen * kept[:, None], input_precision="ieee")
        total = total * kept + tl.sum(share, 1)
        most = higher
    tl.store(out + at, (seen / total[:, None]).to(out.dtype.element_ty), mask=real)
