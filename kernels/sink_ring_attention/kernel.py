"""One program per (lane, head, split of the keys, tile of queries): softmax in one pass over the lane's valid slots."""

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def valid_slots(row_index, bank_index, n_valid, lane, rows, banks, slots):
    """The lane's first slot in the cache (int64) and how many are valid: (0, 0) where any index is out of range."""
    row, bank, n = tl.load(row_index + lane), tl.load(bank_index + lane), tl.load(n_valid + lane)
    inside = (row >= 0) & (row < rows) & (bank >= 0) & (bank < banks) & (n > 0) & (n <= slots)
    return tl.where(inside, (row.to(tl.int64) * banks + bank) * slots, 0), tl.where(inside, n, 0)


@triton.jit
def scores(q, keys, PRECISION: tl.constexpr):
    """q K^T, fp32 [QUERIES, KEYS]."""
    D: tl.constexpr = q.shape[1]
    # Without tensor cores a thread holds whole rows of both factors: of 128 channels only quarters fit its registers.
    if PRECISION is not None and D > 64:
        q = tl.permute(tl.reshape(q, (q.shape[0], 4, D // 4)), (1, 0, 2))
        keys = tl.permute(tl.reshape(keys, (keys.shape[0], 4, D // 4)), (1, 2, 0))
        score = tl.sum(tl.dot(q, keys, input_precision=PRECISION), 0)
    else:
        score = tl.dot(q, tl.trans(keys), input_precision=PRECISION)
    return score


@triton.jit
def attend(
    numerator,  # fp32 [QUERIES, D]
    total,  # fp32 [QUERIES]: sum of the weights so far
    top,  # fp32 [QUERIES]: largest scaled score so far
    q,  # [QUERIES, D]
    k,  # pointers [KEYS, D]
    v,  # pointers [KEYS, D]
    left,  # valid keys in this tile; read where PARTIAL
    scale,  # of the softmax, times log2 e
    PARTIAL: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of keys into the running softmax."""
    if PARTIAL:
        valid = tl.arange(0, k.shape[0]) < left
        keys = tl.load(k, mask=valid[:, None], other=0.0)
    else:
        keys = tl.load(k)
    score = scores(q, keys, PRECISION)
    if PARTIAL:
        score = tl.where(valid[None, :], score * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
    else:  # the maximum of the raw scores: scaling them is then one multiply-add inside the exponential
        higher = tl.maximum(top, tl.max(-score if NEGATIVE else score, 1) * tl.abs(scale))
        weight = tl.exp2(score * scale - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weight, 1)
    if PARTIAL:
        values = tl.load(v, mask=valid[:, None], other=0.0)  # 0 * NaN of an unwritten slot would leak
    else:
        values = tl.load(v)
    numerator = tl.dot(weight.to(values.dtype), values, numerator * shrink[:, None], input_precision=PRECISION)
    return numerator, total, higher


@triton.jit(do_not_specialize=["rows", "banks", "slots", "tokens"])
def sink_ring_attention_kernel(
    q,  # [B, Nq, H, D]
    k_cache,  # [rows, banks, slots, H, D]
    v_cache,  # [rows, banks, slots, H, D]
    out,  # [B, Nq, H, D]; fp32 [B, SPLITS, Nq, H, D] where SPLITS > 1
    lse,  # fp32 [B, H, Nq] or None; [B, SPLITS, H, Nq] and of base 2 where SPLITS > 1
    row_index,  # int32 [B], as the next two
    bank_index,
    n_valid,
    rows,
    banks,
    slots,
    tokens,
    scale,  # times log2 e
    H: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tl.static_assert(SPLITS >= 1 and KEYS >= 16 and QUERIES >= 16, "tl.dot wants tiles of at least 16")
    # Tiles of queries innermost: those that read the same keys run side by side and share them in L2.
    tiles = tl.cdiv(tokens, QUERIES)
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    split, head, lane = rest % SPLITS, rest // SPLITS % H, rest // SPLITS // H
    first, n = valid_slots(row_index, bank_index, n_valid, lane, rows, banks, slots)

    token, channel = tile * QUERIES + tl.arange(0, QUERIES), tl.arange(0, D)
    real = token < tokens
    within = token[:, None] * (H * D) + (head * D + channel)[None, :]  # int32: a lane is smaller than 2^31
    queries = tl.load(q + lane.to(tl.int64) * tokens * (H * D) + within, mask=real[:, None], other=0.0)

    share = tl.cdiv(tl.cdiv(n, KEYS), SPLITS) * KEYS  # keys of a split: whole tiles, save at the end
    start = tl.minimum(split * share, n)
    end = tl.minimum(start + share, n)
    whole = start + (end - start) // KEYS * KEYS
    numerator = tl.zeros((QUERIES, D), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    slot = tl.arange(0, KEYS)[:, None] * (H * D) + (head * D + channel)[None, :]
    k, v = k_cache + first * (H * D), v_cache + first * (H * D)
    for at in tl.range(start, whole, KEYS):
        here = at * (H * D) + slot
        numerator, total, top = attend(
            numerator, total, top, queries, k + here, v + here, KEYS, scale, False, NEGATIVE, PRECISION
        )
    if whole < end:
        here = whole * (H * D) + slot
        numerator, total, top = attend(
            numerator, total, top, queries, k + here, v + here, end - whole, scale, True, NEGATIVE, PRECISION
        )

    if SPLITS == 1:
        real = real & (n > 0)
        result = numerator / total[:, None]
    else:  # a split without keys weighs nothing: its log-sum-exp is -inf, its result must not be 0 / 0
        result = numerator / tl.where(total == 0, 1.0, total)[:, None]
    slab = lane.to(tl.int64) * SPLITS + split
    tl.store(out + slab * tokens * (H * D) + within, result.to(out.dtype.element_ty), mask=real[:, None])
    if lse is not None:
        sums = top + tl.log2(total)
        tl.store(lse + (slab * H + head) * tokens + token, sums * LN2 if SPLITS == 1 else sums, mask=real)


@triton.jit(do_not_specialize=["tokens"])
def combine_kernel(
    part,  # fp32 [B, SPLITS, Nq, H, D]
    part_lse,  # fp32 [B, SPLITS, H, Nq], base 2
    out,  # [B, Nq, H, D]
    lse,  # fp32 [B, H, Nq] or None
    tokens,
    H: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The splits' results, weighted by their sums. A lane without any key is left as it is."""
    tiles = tl.cdiv(tokens, QUERIES)
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    head, lane = rest % H, (rest // H).to(tl.int64)
    token, channel = tile * QUERIES + tl.arange(0, QUERIES), tl.arange(0, D)
    real = token < tokens
    within = token[:, None] * (H * D) + (head * D + channel)[None, :]

    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    for s in tl.static_range(SPLITS):
        sums = tl.load(part_lse + ((lane * SPLITS + s) * H + head) * tokens + token, mask=real, other=float("-inf"))
        top = tl.maximum(top, sums, propagate_nan=tl.PropagateNan.ALL)  # else NaN beside a split without keys is lost
    real = real & (top != float("-inf"))
    numerator, total = tl.zeros((QUERIES, D), tl.float32), tl.zeros((QUERIES,), tl.float32)
    for s in tl.static_range(SPLITS):
        slab = lane * SPLITS + s
        sums = tl.load(part_lse + (slab * H + head) * tokens + token, mask=real, other=0.0)
        weight = tl.exp2(sums - top)
        result = tl.load(part + slab * tokens * (H * D) + within, mask=real[:, None], other=0.0)
        numerator += weight[:, None] * result
        total += weight
    result = (numerator / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + lane * tokens * (H * D) + within, result, mask=real[:, None])
    if lse is not None:
        tl.store(lse + (lane * H + head) * tokens + token, (top + tl.log2(total)) * LN2, mask=real)
