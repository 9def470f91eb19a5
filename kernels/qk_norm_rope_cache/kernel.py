"""One program per (lane, token): both norms, the rotation, and the three writes."""

import triton
import triton.language as tl


@triton.jit
def place(row_index, bank_index, write_slot, base, lane, rows, banks, slots, tokens, positions, frames):
    """The lane's first slot to write (int64), its first position, and whether all its indices are in range."""
    row, bank = tl.load(row_index + lane), tl.load(bank_index + lane)
    slot, first = tl.load(write_slot + lane), tl.load(base + lane)
    inside = (row >= 0) & (row < rows) & (bank >= 0) & (bank < banks)
    inside = inside & (slot >= 0) & (slot <= slots - tokens) & (first >= 0) & (first <= positions - frames)
    return (row.to(tl.int64) * banks + bank) * slots + slot, first, inside


@triton.jit
def turn_of_pairs(
    t,  # fp32 [n, 2]: (cos, sin) at the token's place on each of the three axes
    y,
    x,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """cos and sin of every channel pair, fp32 [PAIRS]."""
    PAD: tl.constexpr = WIDTH // 2 - 3 * (WIDTH // 6)
    j = tl.arange(0, PAIRS) - PAD
    turned = (j >= 0) & (j < 3 * (WIDTH // 6))
    m = j // 3
    axis = j - 3 * m
    table = tl.where(axis == 0, t + 2 * m, tl.where(axis == 1, y + 2 * m, x + 2 * m))
    return tl.load(table, mask=turned, other=1.0), tl.load(table + 1, mask=turned, other=0.0)


@triton.jit
def turn_of_heads(
    t,  # fp32 [pairs of the axis, 2]: (cos, sin) at the token's place on each of the three axes
    y,
    x,
    WIDTH: tl.constexpr,
    PAIRS: tl.constexpr,
    HEAD: tl.constexpr,  # pairs of a head, of which the first OF_T are those of t, the next OF_Y those of y
    OF_T: tl.constexpr,
    OF_Y: tl.constexpr,
):
    """cos and sin of every channel pair, fp32 [PAIRS], where each head has the same."""
    j = tl.arange(0, PAIRS)
    m = j % HEAD
    spatial = tl.where(m < OF_T + OF_Y, y + 2 * (m - OF_T), x + 2 * (m - OF_T - OF_Y))
    table = tl.where(m < OF_T, t + 2 * m, spatial)
    real = j < WIDTH // 2
    return tl.load(table, mask=real, other=1.0), tl.load(table + 1, mask=real, other=0.0)


@triton.jit
def norm_rotate(x, weight, cosine, sine, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """x fp32 [BLOCK], zero beyond WIDTH -> rope(rms_norm(x) weight), fp32."""
    x = x * tl.rsqrt(tl.sum(x * x) / WIDTH + eps) * weight.to(tl.float32)
    a, b = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
    return tl.reshape(tl.join(a * cosine - b * sine, a * sine + b * cosine), (BLOCK,))


# Alignment follows from WIDTH. The other sizes must not be specialised.
@triton.jit(do_not_specialize=["rows", "banks", "slots", "tokens", "positions", "grid_h", "grid_w"])
def qk_norm_rope_cache_kernel(
    qkv,  # [B, N, 3 W]
    q_weight,  # [W]
    k_weight,  # [W]
    rope_t,  # fp32 [positions, n, 2]; by head [positions, OF_T, 2]
    rope_y,  # fp32 [h, n, 2]; [h, OF_Y, 2]
    rope_x,  # fp32 [w, n, 2]; [w, HEAD - OF_T - OF_Y, 2]
    k_cache,  # [rows, banks, slots, W]
    v_cache,  # [rows, banks, slots, W]
    q_out,  # [B, N, W]
    row_index,  # int32 [B], as the next three
    bank_index,
    write_slot,
    base,
    rows,
    banks,
    slots,
    tokens,
    positions,
    grid_h,
    grid_w,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD: tl.constexpr,  # channel pairs of a head; 0: the axes alternate over the full width
    OF_T: tl.constexpr,
    OF_Y: tl.constexpr,
):
    tl.static_assert(WIDTH % 2 == 0 and BLOCK >= WIDTH, "channels turn in pairs; a program holds whole rows")
    lane, token = tl.program_id(0) // tokens, tl.program_id(0) % tokens
    first_slot, first, inside = place(
        row_index,
        bank_index,
        write_slot,
        base,
        lane,
        rows,
        banks,
        slots,
        tokens,
        positions,
        tokens // (grid_h * grid_w),
    )
    if not inside:
        return
    c = tl.arange(0, BLOCK)
    real = c < WIDTH
    row = tl.program_id(0).to(tl.int64)
    source = qkv + row * (3 * WIDTH) + c
    q = tl.load(source, mask=real, other=0.0).to(tl.float32)
    k = tl.load(source + WIDTH, mask=real, other=0.0).to(tl.float32)
    v = tl.load(source + 2 * WIDTH, mask=real)

    at_t, at_y, at_x = first + token // (grid_h * grid_w), token // grid_w % grid_h, token % grid_w
    if HEAD > 0:
        t, y, x = rope_t + at_t * 2 * OF_T, rope_y + at_y * 2 * OF_Y, rope_x + at_x * 2 * (HEAD - OF_T - OF_Y)
        cosine, sine = turn_of_heads(t, y, x, WIDTH, BLOCK // 2, HEAD, OF_T, OF_Y)
    else:
        N: tl.constexpr = WIDTH // 6
        t, y, x = rope_t + at_t * 2 * N, rope_y + at_y * 2 * N, rope_x + at_x * 2 * N
        cosine, sine = turn_of_pairs(t, y, x, WIDTH, BLOCK // 2)
    q = norm_rotate(q, tl.load(q_weight + c, mask=real, other=0.0), cosine, sine, eps, WIDTH, BLOCK)
    k = norm_rotate(k, tl.load(k_weight + c, mask=real, other=0.0), cosine, sine, eps, WIDTH, BLOCK)

    slot = (first_slot + token) * WIDTH + c
    tl.store(q_out + row * WIDTH + c, q.to(q_out.dtype.element_ty), mask=real)
    tl.store(k_cache + slot, k.to(k_cache.dtype.element_ty), mask=real)
    tl.store(v_cache + slot, v, mask=real)
