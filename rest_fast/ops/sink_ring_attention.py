"""``sink_ring_attention``: one softmax over the valid slots of each lane's cache row, read in place.

    out = softmax(scale q K[:n_valid]^T) V[:n_valid]

The slots of the ring are in no particular order, which makes no difference to softmax. The current chunk is written
into the slots of the evicted chunk, so the visible keys are the dense range ``[0, n_valid)``. Queries and keys arrive
rotated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from rest_fast.ops import cudnn_attention, flash_attention, native, triton_kernels
from rest_fast.ops.dispatch import IDLE, Backend, Op, OpError, Spec, expect, expect_float, expect_range

NAME = "sink_ring_attention"
MAX_HEAD_DIM = 256  # kMaxRingHeadDim of csrc/ops/sink_ring_attention.h
CUDA_HEAD_SIZES = (64, 128)  # of csrc/cuda/sink_ring_attention.cu
ON_HOST = "it reads host_n_valid, which a replay would not read again"
LARGE = 1 << 26  # multiplications of one of the two products: a millisecond of an AVX-512 core


def attention(
    q: torch.Tensor,  # [B, Nq, H, D]
    k: torch.Tensor,  # [B, Nk, H, D]
    v: torch.Tensor,  # [B, Nk, H, D]
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """Functional reference: softmax attention without a mask, ``[B, Nq, H, D]``. Differentiable."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale)
    return out.transpose(1, 2)


def check(
    q, k_cache, v_cache, out, *, row_index, bank_index, n_valid, host_n_valid, scale, lse=None, host_place=None
) -> Spec:
    expect_float(NAME, "q", q)
    expect(NAME, "q", q, (-1, -1, -1, -1))
    expect(NAME, "k_cache", k_cache, (-1, -1, -1, -1, -1))
    lanes, tokens = q.shape[:2]
    heads, dim = k_cache.shape[-2:]
    expect(NAME, "q", q, (lanes, tokens, heads, dim))
    expect(NAME, "out", out, (lanes, tokens, heads, dim), dtype=q.dtype, device=q.device)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        expect(NAME, name, cache, (*tuple(k_cache.shape[:3]), heads, dim), dtype=q.dtype, device=q.device)
    for name, index in (("row_index", row_index), ("bank_index", bank_index), ("n_valid", n_valid)):
        expect(NAME, name, index, (lanes,), dtype=torch.int32, device=q.device)
    if lse is not None:
        expect(NAME, "lse", lse, (lanes, heads, tokens), dtype=torch.float32, device=q.device)
    slots = k_cache.shape[2]
    return Spec(
        q.device.type,
        q.dtype,
        (
            ("lanes", lanes),
            ("tokens", tokens),
            ("heads", heads),
            ("head_dim", dim),
            ("slots", slots),
            ("lengths", "on the device" if host_n_valid is None else "on the host"),
            ("places", "on the device" if host_place is None else "on the host"),
        ),
    )


def host(
    q, k_cache, v_cache, out, *, row_index, bank_index, n_valid, host_n_valid, scale, lse=None, host_place=None
) -> None:
    lanes, slots, places = q.shape[0], k_cache.shape[2], k_cache.shape[0] * k_cache.shape[1]
    if host_place is not None and (len(host_place) != lanes or any(not IDLE < p < places for p in host_place)):
        raise OpError(f"{NAME}: argument host_place: expected {lanes} in 0..{places - 1}, got {host_place}")
    if host_n_valid is None:
        return
    fits = isinstance(host_n_valid, (list, tuple)) and len(host_n_valid) == lanes
    if not fits or any(not 0 < n <= slots for n in host_n_valid):
        _refuse_lengths(f"{lanes} lengths in 1..{slots}", host_n_valid)


def ranges(
    q, k_cache, v_cache, out, *, row_index, bank_index, n_valid, host_n_valid, scale, lse=None, host_place=None
) -> None:
    expect_range(NAME, "row_index", row_index, IDLE, k_cache.shape[0] - 1)
    expect_range(NAME, "bank_index", bank_index, 0, k_cache.shape[1] - 1)
    if host_n_valid is None:
        expect_range(NAME, "n_valid", n_valid, 1, k_cache.shape[2])
    elif n_valid.tolist() != list(host_n_valid):
        _refuse_lengths(f"the same as n_valid {n_valid.tolist()}", host_n_valid)
    if host_place is not None:
        banks = k_cache.shape[1]
        places = [row * banks + bank for row, bank in zip(row_index.tolist(), bank_index.tolist(), strict=True)]
        if places != list(host_place):
            raise OpError(f"{NAME}: argument host_place: expected {places}, row * banks + bank, got {host_place}")


def reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    out: torch.Tensor,
    *,
    row_index: torch.Tensor,
    bank_index: torch.Tensor,
    n_valid: torch.Tensor,
    host_n_valid: Sequence[int] | None,
    scale: float,
    lse: torch.Tensor | None = None,
    host_place: Sequence[int] | None = None,
) -> None:
    """out = softmax(scale q K[:n_valid]^T) V[:n_valid] of B lanes of N tokens, each over the slots of its cache row.

    The reference computes a masked softmax in float32 (float64 for float64), which needs no lengths on the host.

    Args:
        q: [B, N, H, D], floating, rotated.
        k_cache, v_cache: [rows, banks, slots, H, D], dtype of q.
        out: [B, N, H, D], dtype of q. Written.
        row_index: int32 [B] in [0, rows), or -1: an idle lane, whose ``out`` and ``lse`` may become anything.
        bank_index: int32 [B] in [0, banks).
        n_valid: int32 [B] in [1, slots], on the device.
        host_n_valid: the same B numbers on the host; None, as a captured step needs it, where only the device knows
            them: backends that ask the host then refuse the call.
        scale: of the scores.
        lse: float32 [B, H, N], the logarithm of the sum of each softmax, or None. Written.
        host_place: row * banks + bank of each lane, none of them idle, for backends that ask the host; else None.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    where = (row_index.clamp(min=0).long(), bank_index.long())
    k, v = k_cache[where].to(wide), v_cache[where].to(wide)
    valid = torch.arange(k.shape[1], device=q.device) < n_valid[:, None]  # [B, slots]
    score = torch.einsum("bqhd,bkhd->bhqk", q.to(wide), k) * scale
    score = score.masked_fill(~valid[:, None, None], -torch.inf)
    v = v.masked_fill(~valid[:, :, None, None], 0)  # 0 * NaN of an unwritten slot would leak
    if lse is not None:
        lse.copy_(score.logsumexp(-1))
    out.copy_(torch.einsum("bhqk,bkhd->bqhd", score.softmax(-1), v))


def _arguments(
    q, k_cache, v_cache, out, *, row_index, bank_index, n_valid, host_n_valid, scale, lse=None, host_place=None
):
    """The arguments that csrc/ops/sink_ring_attention.h lists."""
    rows, banks, slots, heads, dim = k_cache.shape
    return (
        *(t.data_ptr() for t in (q, k_cache, v_cache, out)),
        0 if lse is None else lse.data_ptr(),
        *(t.data_ptr() for t in (row_index, bank_index, n_valid)),
        q.shape[0],
        q.shape[1],
        heads,
        dim,
        rows,
        banks,
        slots,
        k_cache.stride(0),
        k_cache.stride(1),
        0,  # vectors as wide as the machine has
        scale,
        native.DTYPES[q.dtype],
    )


def _sdpa(
    q, k_cache, v_cache, out, *, row_index, bank_index, n_valid, host_n_valid, scale, lse=None, host_place=None
) -> None:
    """PyTorch's attention on views of the cache; the log-sum-exp, which it does not return, is computed separately.

    SDPA has no ``out=``, so its result is copied once. One call takes all lanes if a view can show them as a batch: if
    they have one length, and lie in the cache at even distances.
    """
    banks = k_cache.shape[1]
    places = [row * banks + bank for row, bank in zip(row_index.tolist(), bank_index.tolist(), strict=True)]
    q, keys, values = q.transpose(1, 2), k_cache.flatten(0, 1), v_cache.flatten(0, 1)
    for lanes, where in _batches(places, host_n_valid):
        if places[lanes.start] < 0:  # idle
            continue
        size = (lanes.stop - lanes.start, -1, -1, -1)  # one place may serve several lanes
        k, v = (c[where, : host_n_valid[lanes.start]].transpose(1, 2).expand(size) for c in (keys, values))
        out[lanes].copy_(F.scaled_dot_product_attention(q[lanes], k, v, scale=scale).transpose(1, 2))
    if lse is not None:
        for lane, (place, n) in enumerate(zip(places, host_n_valid, strict=True)):  # a batched product rounds otherwise
            if place < 0:
                continue
            score = q[lane].float() @ keys[place, :n].permute(1, 2, 0).float()
            lse[lane].copy_(score.mul(scale).logsumexp(-1))


def _sdpa_gathered(
    q, k_cache, v_cache, out, *, row_index, bank_index, n_valid, host_n_valid, scale, lse=None, host_place=None
) -> None:
    """PyTorch's attention on copies of the lanes' keys and values: which rows those are is read on the device alone.

    Lanes that follow one another and have one length are one call. Their rows are copied as far as they are valid, so
    nothing of an unwritten slot is seen; at rest-512 these are 29 MB for two lanes.
    """
    rows, banks = k_cache.shape[:2]
    # A row out of range, which the contract excludes and a device cannot refuse, must not be followed.
    places = torch.add(bank_index, row_index, alpha=banks).clamp_(0, rows * banks - 1)
    for lanes in _runs(host_n_valid):
        n = host_n_valid[lanes.start]
        k, v = (c.flatten(0, 1)[:, :n].index_select(0, places[lanes]).transpose(1, 2) for c in (k_cache, v_cache))
        queries = q[lanes].transpose(1, 2)
        out[lanes].copy_(F.scaled_dot_product_attention(queries, k, v, scale=scale).transpose(1, 2))
        if lse is not None:
            wide = torch.promote_types(q.dtype, torch.float32)
            score = queries.to(wide) @ k.to(wide).transpose(2, 3)
            lse[lanes].copy_(score.mul_(scale).logsumexp(-1))


def _runs(lengths: Sequence[int]) -> Iterator[slice]:
    """Lanes that follow one another and have one length."""
    start = 0
    for lane in range(1, len(lengths) + 1):
        if lane == len(lengths) or lengths[lane] != lengths[start]:
            yield slice(start, lane)
            start = lane


def _batches(places: list[int], lengths: list[int]) -> Iterator[tuple[slice, slice]]:
    """(lanes, their places in a flat cache) of each call: one call for all if a view shows them, else one per lane."""
    step = places[1] - places[0] if len(places) > 1 else 0
    even = min(places, default=0) >= 0 and all(b - a == step for a, b in pairwise(places))
    if even and step >= 0 and len(set(lengths)) == 1:
        yield slice(0, len(places)), slice(places[0], places[-1] + 1, step or 1)
        return
    for lane, place in enumerate(places):
        yield slice(lane, lane + 1), slice(place, place + 1)


def _cpp_unfit(spec: Spec) -> str:
    """Takes everything but what is faster with an Intel matrix unit (AMX).

    On a Zen 5 core SDPA takes 1.0 to 2.9 times as long at all sizes tried, from one query (1.0, memory-bound) over the
    demo model's 2 x 48 (2.3 in fp32, 2.7 in bf16) to rest-512's 2 x 768 over 1792 slots (1.9, 2.1); with only AVX2 1.0
    to 2.7 times. All products are fp32, so AMX, which does 16-bit ones sixteen times as fast, must win where they
    dominate (by that arithmetic; not measured).
    """
    if (spec.get("head_dim") or 0) > MAX_HEAD_DIM:
        return f"head_dim {spec.get('head_dim')} is over {MAX_HEAD_DIM}"
    products = math.prod(size for _, size in spec.dims if isinstance(size, int))
    if spec.dtype != torch.float32 and products >= LARGE and has_matrix_unit():
        return f"16-bit with AMX: SDPA is faster from {LARGE} products on, got {products}"
    return ""


def _cuda_unfit(spec: Spec) -> str:
    fits = spec.get("head_dim") in (None, *CUDA_HEAD_SIZES)
    return "" if fits else f"head size {' or '.join(map(str, CUDA_HEAD_SIZES))} only, got {spec.get('head_dim')}"


def has_matrix_unit() -> bool:
    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def _sdpa_supports(spec: Spec) -> tuple[bool, str]:
    if spec.device != "cpu":
        return False, "reads row_index on the host, which would wait for an accelerator"
    if spec.get("lengths") == "on the device":
        return False, "reads lengths on the host, and host_n_valid is None"
    return True, ""


def _sdpa_gathered_supports(spec: Spec) -> tuple[bool, str]:
    if spec.device not in ("cuda", "cpu"):
        return False, f"CUDA and CPU tensors only, got {spec.device}"
    if spec.get("lengths") == "on the device":
        return False, "reads lengths on the host, and host_n_valid is None"
    return True, ""


def _sdpa_gathered_reluctance(spec: Spec) -> str:
    return "on a CPU sdpa reads the cache without a copy" if spec.device == "cpu" else ""


def _refuse_lengths(expected: str, got: object) -> None:
    raise OpError(f"{NAME}: argument host_n_valid: expected {expected}, got {got}")


sink_ring_attention = Op(
    f"{NAME}(Tensor q, Tensor k_cache, Tensor v_cache, Tensor(a!) out, *, Tensor row_index, Tensor bank_index, "
    "Tensor n_valid, int[]? host_n_valid, float scale, Tensor(b!)? lse=None, "
    "int[]? host_place=None)",
    check=check,
    ranges=ranges,
    host=host,
    varying=("host_n_valid", "host_place"),
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, _cpp_unfit, measured="attention_cpu.json"),
        native.cuda_backend(NAME, _arguments, _cuda_unfit, dtypes=(torch.bfloat16, torch.float16)),
        Backend("sdpa", _sdpa_supports, _sdpa, uncaptured=ON_HOST),
        Backend("sdpa_gathered", _sdpa_gathered_supports, _sdpa_gathered, _sdpa_gathered_reluctance, ON_HOST),
        flash_attention.backend(flash_attention.FLASH_3),
        flash_attention.backend(flash_attention.FLASH_4),
        cudnn_attention.BACKEND,
    ),
)
