"""Attention over the valid slots of each lane's cache row, read in place: nothing is gathered, rolled or joined.

    out = softmax(scale q K[:n_valid]^T) V[:n_valid];   lse = log sum exp(scale q K[:n_valid]^T)

Queries and keys arrive rotated, and the order of slots makes no difference to softmax. Row, bank and length are read on
the device, so the first chunk, the steady state and a lane that joins later are the same launch with other integers.
Scores, sums and the result are fp32; weights are rounded to the dtype of V for the second product, and the result is
rounded once. A lane with an index out of range reads no slot and writes nothing.

The plan (``plan.py``) splits the keys only if whole tiles would leave most of the machine idle. Then partial results go
through scratch memory, which ``launch`` takes from PyTorch's allocator (inside a graph: from the graph's pool).
Limits: head size 16, 32, 64 or 128; a lane's slots and its queries fewer than 2^31 elements. See
docs/kernels/sink_ring_attention.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from rest_fast.kernels.rows import DTYPES, on
from rest_fast.kernels.sink_ring_attention.kernel import combine_kernel, sink_ring_attention_kernel
from rest_fast.kernels.sink_ring_attention.plan import Plan, plan, processors

HEAD_SIZES = (16, 32, 64, 128)
COMBINED = 16  # queries of a program of the combining kernel


def supports(spec: Any) -> tuple[bool, str]:
    if spec.dtype not in DTYPES:
        return False, f"float32, bfloat16 and float16 only, got {spec.dtype}"
    heads, dim, slots, tokens = (spec.get(n) for n in ("heads", "head_dim", "slots", "tokens"))
    if dim is not None and dim not in HEAD_SIZES:
        return False, f"head size 16, 32, 64 or 128 only, got {dim}"
    if None not in (heads, dim, slots, tokens) and max(slots, tokens) * heads * dim >= 2**31:
        return False, f"fewer than 2^31 elements a lane, got {max(slots, tokens)} x {heads} x {dim}"
    return True, ""


def launch(
    q: torch.Tensor,  # [B, Nq, H, D], rotated
    k_cache: torch.Tensor,  # [rows, banks, slots, H, D]
    v_cache: torch.Tensor,  # [rows, banks, slots, H, D]
    out: torch.Tensor,  # [B, Nq, H, D], written
    *,
    row_index: torch.Tensor,  # int32 [B], as the next two
    bank_index: torch.Tensor,
    n_valid: torch.Tensor,
    host_n_valid: list[int],  # for other backends: the device's lengths count here
    scale: float,
    lse: torch.Tensor | None = None,  # fp32 [B, H, Nq], written: natural logarithm
    host_place: list[int] | None = None,  # for other backends
) -> None:
    lanes, tokens, heads, dim = q.shape
    sizes = {"lanes": lanes, "heads": heads, "tokens": tokens, "slots": k_cache.shape[2], "dim": dim}
    chosen = plan(**sizes, dtype=q.dtype, processors=processors(q.device))
    launch_plan(chosen, q, k_cache, v_cache, out, row_index, bank_index, n_valid, scale, lse)


def launch_plan(
    chosen: Plan,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    out: torch.Tensor,
    row_index: torch.Tensor,
    bank_index: torch.Tensor,
    n_valid: torch.Tensor,
    scale: float,
    lse: torch.Tensor | None = None,
) -> None:
    """:func:`launch` under a plan of the caller's choice: for tests and measurements."""
    (lanes, tokens, heads, dim), splits = q.shape, chosen.splits
    programs = chosen.programs(lanes, heads, tokens)
    if programs == 0:
        return
    sink, sums = out, lse
    if splits > 1:
        sink = torch.empty(lanes, splits, tokens, heads, dim, dtype=torch.float32, device=q.device)
        sums = torch.empty(lanes, splits, heads, tokens, dtype=torch.float32, device=q.device)
    with on(q):
        sink_ring_attention_kernel[(programs,)](
            *(q, k_cache, v_cache, sink, sums, row_index, bank_index, n_valid),
            *(*k_cache.shape[:3], tokens),
            float(scale) * math.log2(math.e),
            **constants(chosen, heads, dim, q.dtype, negative=scale < 0),
        )
        if splits > 1:
            combine_kernel[(lanes * heads * triton.cdiv(tokens, COMBINED),)](
                sink, sums, out, lse, tokens, **combine_constants(chosen, heads, dim)
            )


def constants(chosen: Plan, heads: int, dim: int, dtype: torch.dtype, *, negative: bool = False) -> dict[str, Any]:
    """What the attention kernel is compiled for."""
    tile = chosen.tile
    sizes = {"H": heads, "D": dim, "QUERIES": tile.queries, "KEYS": tile.keys, "SPLITS": chosen.splits}
    precision = "ieee" if dtype == torch.float32 else None  # the default would be TF32
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return sizes | {"NEGATIVE": negative, "PRECISION": precision} | options


def combine_constants(chosen: Plan, heads: int, dim: int) -> dict[str, Any]:
    """What the combining kernel is compiled for."""
    return {"H": heads, "D": dim, "QUERIES": COMBINED, "SPLITS": chosen.splits, "num_warps": 4}
