"""``qk_norm_rope_cache``: from the fused projection to a query and two written cache slots, in one pass.

    q' = rope(rms_norm(q) q_weight),  k' = rope(rms_norm(k) k_weight),  v' = v

The norm spans the full width, before the head split; statistics and rotation are fp32, with one rounding at the end.
The rotation has one of two forms (``rope``, see :mod:`rest_fast.ops.rope`): ``interleaved``, LTX-Video's, whose three
axes alternate over the full width; or ``by_head``, Wan's, the same for every head, with an axis after the other.
The other ops follow the pattern of this file: functional reference, checks, in-place reference, backends, :class:`Op`.
"""

from __future__ import annotations

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import IDLE, Op, OpError, Spec, expect, expect_float, expect_range
from rest_fast.ops.rope import head_table, rotate, token_table

NAME = "qk_norm_rope_cache"
ROPES = ("interleaved", "by_head")
CUDA_ROW = 4 * 512 * 16  # bytes: vectors, threads and bytes of a load in csrc/cuda/qk_norm_rope_cache.cu


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMS norm over the last axis, computed and returned in at least fp32."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide if weight is None else wide * weight.to(wide.dtype)


def qk_norm_rope(
    qkv: torch.Tensor,  # [B, N, 3 W]
    q_weight: torch.Tensor,  # [W]
    k_weight: torch.Tensor,  # [W]
    table: torch.Tensor,  # [N, W / 2, 2] or [B, N, W / 2, 2]: cos, sin of each pair of each token
    *,
    heads: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Functional reference: q, k, v ``[B, N, H, D]`` in the dtype of ``qkv``. Differentiable."""
    q, k, v = qkv.chunk(3, dim=-1)
    q = rotate(rms_norm(q, q_weight, eps), table).to(qkv.dtype)
    k = rotate(rms_norm(k, k_weight, eps), table).to(qkv.dtype)
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q, k, v))
    return q, k, v


def check(
    qkv,
    q_weight,
    k_weight,
    rope_t,
    rope_y,
    rope_x,
    k_cache,
    v_cache,
    q_out,
    *,
    row_index,
    bank_index,
    write_slot,
    base,
    eps,
    rope="interleaved",
) -> Spec:
    if rope not in ROPES:
        raise OpError(f"{NAME}: argument rope: expected one of {list(ROPES)}, got {rope!r}")
    expect_float(NAME, "qkv", qkv)
    expect(NAME, "qkv", qkv, (-1, -1, -1))
    expect(NAME, "k_cache", k_cache, (-1, -1, -1, -1, -1))
    lanes, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[-1] // 6 * 2
    dev, h, w = qkv.device, rope_y.shape[0], rope_x.shape[0]
    expect(NAME, "qkv", qkv, (lanes, tokens, 3 * width))
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        expect(NAME, name, weight, (width,), dtype=qkv.dtype, device=dev)
    counts = _pairs(rope, width, k_cache.shape[-1], rope_t, rope_y)
    for name, table, n in zip(("rope_t", "rope_y", "rope_x"), (rope_t, rope_y, rope_x), counts):
        expect(NAME, name, table, (-1, n, 2), dtype=torch.float32, device=dev)
    if h * w == 0 or tokens % (h * w):
        expect(NAME, "qkv", qkv, (lanes, -(-tokens // max(h * w, 1)) * h * w, 3 * width))
    slots, heads, dim = k_cache.shape[-3:]
    if tokens > slots:
        raise OpError(f"{NAME}: argument k_cache: expected at least {tokens} slots, got {slots}")
    if tokens > rope_t.shape[0] * h * w:
        frames = tokens // (h * w)
        raise OpError(f"{NAME}: argument rope_t: expected at least {frames} positions, got {rope_t.shape[0]}")
    expect(NAME, "q_out", q_out, (lanes, tokens, heads, dim), dtype=qkv.dtype, device=dev)
    expect(NAME, "q_out", q_out.flatten(2), (lanes, tokens, width))
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        expect(NAME, name, cache, (*tuple(k_cache.shape[:3]), heads, dim), dtype=qkv.dtype, device=dev)
    for name, index in (
        ("row_index", row_index),
        ("bank_index", bank_index),
        ("write_slot", write_slot),
        ("base", base),
    ):
        expect(NAME, name, index, (lanes,), dtype=torch.int32, device=dev)
    return Spec(dev.type, qkv.dtype, (("lanes", lanes), ("tokens", tokens), ("width", width), ("rope", rope)))


def _pairs(rope: str, width: int, dim: int, rope_t: torch.Tensor, rope_y: torch.Tensor) -> tuple[int, int, int]:
    """The channel pairs that each axis turns: a sixth of the width, or those of a head as the tables divide them."""
    if rope == "interleaved":
        return width // 6, width // 6, width // 6
    t, y = (table.shape[1] if table.ndim == 3 else 0 for table in (rope_t, rope_y))
    return t, y, max(dim // 2 - t - y, 0)


def ranges(
    qkv,
    q_weight,
    k_weight,
    rope_t,
    rope_y,
    rope_x,
    k_cache,
    v_cache,
    q_out,
    *,
    row_index,
    bank_index,
    write_slot,
    base,
    eps,
    rope="interleaved",
) -> None:
    tokens = qkv.shape[1]
    rows, banks, slots = k_cache.shape[:3]
    frames = tokens // (rope_y.shape[0] * rope_x.shape[0])
    expect_range(NAME, "row_index", row_index, IDLE, rows - 1)
    expect_range(NAME, "bank_index", bank_index, 0, banks - 1)
    expect_range(NAME, "write_slot", write_slot, 0, slots - tokens)
    expect_range(NAME, "base", base, 0, rope_t.shape[0] - frames)


def reference(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    rope_t: torch.Tensor,
    rope_y: torch.Tensor,
    rope_x: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_out: torch.Tensor,
    *,
    row_index: torch.Tensor,
    bank_index: torch.Tensor,
    write_slot: torch.Tensor,
    base: torch.Tensor,
    eps: float,
    rope: str = "interleaved",
) -> None:
    """Norm and rotate the queries and keys of B lanes of N tokens; K and V go into N slots of each lane's cache row.

    Args:
        qkv: [B, N, 3 H D], floating: q, k, v in this order.
        q_weight, k_weight: [H D], of the norms.
        rope_t, rope_y, rope_x: float32 [positions or grid, n, 2], (cos, sin) of n = H D // 6 frequencies an axis; by
            head, of as many as the axis has of the D / 2 pairs.
        k_cache, v_cache: [rows, banks, slots, H, D]. Written.
        q_out: [B, N, H, D]. Written; of an idle lane anything.
        row_index: int32 [B] in [0, rows), or -1: an idle lane, of which nothing goes into the cache.
        bank_index: int32 [B] in [0, banks).
        write_slot: int32 [B] in [0, slots - N].
        base: int32 [B], the position in time of each lane's first token.
        eps: of the norms.
        rope: ``interleaved`` or ``by_head``; see the module.
    """
    tokens, (heads, dim) = qkv.shape[1], k_cache.shape[-2:]
    frames = tokens // (rope_y.shape[0] * rope_x.shape[0])
    offsets = torch.arange(frames, device=qkv.device)
    times = rope_t[base[:, None].long() + offsets]  # [B, frames, n, 2]
    if rope == "interleaved":
        tables = torch.stack([token_table(t, rope_y, rope_x, heads * dim) for t in times])
    else:
        tables = torch.stack([head_table(t, rope_y, rope_x) for t in times]).repeat(1, 1, heads, 1)
    q, k, v = qk_norm_rope(qkv, q_weight, k_weight, tables, heads=heads, eps=eps)
    q_out.copy_(q)
    slots = write_slot[:, None].long() + torch.arange(tokens, device=qkv.device)
    busy = row_index != IDLE
    where = (row_index[busy].long()[:, None], bank_index[busy].long()[:, None], slots[busy])
    k_cache[where] = k[busy]
    v_cache[where] = v[busy]


def _arguments(
    qkv,
    q_weight,
    k_weight,
    rope_t,
    rope_y,
    rope_x,
    k_cache,
    v_cache,
    q_out,
    *,
    row_index,
    bank_index,
    write_slot,
    base,
    eps,
    rope="interleaved",
) -> tuple[int | float, ...]:
    """The arguments that csrc/ops/qk_norm_rope_cache.h lists: addresses, sizes, strides."""
    rows, banks, slots, heads, dim = k_cache.shape
    return (
        *(
            t.data_ptr()
            for t in (
                qkv,
                q_weight,
                k_weight,
                rope_t,
                rope_y,
                rope_x,
                k_cache,
                v_cache,
                q_out,
                row_index,
                bank_index,
                write_slot,
                base,
            )
        ),
        qkv.shape[0],
        qkv.shape[1],
        heads * dim,
        rope_t.shape[0],
        rope_y.shape[0],
        rope_x.shape[0],
        rows,
        banks,
        slots,
        k_cache.stride(0),
        k_cache.stride(1),
        *((0, 0, 0) if rope == "interleaved" else (dim // 2, rope_t.shape[1], rope_y.shape[1])),
        eps,
        native.DTYPES[qkv.dtype],
    )


def _cuda_unfit(spec: Spec) -> str:
    width, most = spec.get("width") or 0, CUDA_ROW // spec.dtype.itemsize
    return f"rows of at most {most} channels, got {width}" if width > most else ""


qk_norm_rope_cache = Op(
    f"{NAME}(Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor rope_t, Tensor rope_y, Tensor rope_x, "
    "Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!) q_out, *, Tensor row_index, Tensor bank_index, "
    'Tensor write_slot, Tensor base, float eps, str rope="interleaved")',
    check=check,
    ranges=ranges,
    reference=reference,
    reference_uncaptured="it picks the lanes that are not idle on the host",
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, measured="ops_cpu.json"),
        native.cuda_backend(NAME, _arguments, _cuda_unfit),
    ),
)
