"""``rotate_context``: at commit, move the context keys back by one chunk, in place.

Positions are relative to the window: when a full window moves on, what was the current chunk becomes context, and its
keys must move one chunk back. Rotations compose, so one fixed rotation of the time pairs does that; values and the
other pairs stay. Lanes whose window is still filling pass ``enabled = 0``, and only those may share a row.

There is one rounding mode: fp32 inside, and each key rounded once, as the functional reference does.
"""

from __future__ import annotations

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import IDLE, Op, OpError, Spec, expect, expect_float, expect_range
from rest_fast.ops.rope import rotate

NAME = "rotate_context"


def shift_keys(k: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Functional reference: rotate the time pairs of rotated keys k [..., H, D] by shift [n, 2]. Differentiable.

    The other pairs are copied, not rotated by zero, which would turn an infinity into a NaN in its neighbour.
    """
    flat, n, wide = k.flatten(-2), shift.shape[0], torch.float64 if k.dtype == torch.float64 else torch.float32
    first = flat.shape[-1] - 6 * n
    time, space = flat[..., first:].unflatten(-1, (n, 6)).split([2, 4], -1)  # t; y and x, of each frequency
    turned = rotate(time.flatten(-2).to(wide), shift).to(k.dtype).unflatten(-1, (n, 2))
    moved = torch.cat([turned, space], -1).flatten(-2)
    return torch.cat([flat[..., :first], moved], -1).unflatten(-1, k.shape[-2:])


def check(k_cache, shift, *, row_index, skip_slot, enabled, sink, chunk) -> Spec:
    expect_float(NAME, "k_cache", k_cache)
    expect(NAME, "k_cache", k_cache, (-1,) * 6)
    slots, heads, dim = k_cache.shape[3:]
    if heads * dim % 2:
        raise OpError(f"{NAME}: argument k_cache: expected an even width (heads x head_dim), got {heads} x {dim}")
    if sink < 0 or chunk < 1 or sink + chunk > slots:
        raise OpError(
            f"{NAME}: argument sink: expected sink >= 0 and chunk >= 1 within {slots} slots, got {sink} and {chunk}"
        )
    expect(NAME, "shift", shift, (heads * dim // 6, 2), dtype=torch.float32, device=k_cache.device)
    for name, index in (("row_index", row_index), ("skip_slot", skip_slot), ("enabled", enabled)):
        expect(NAME, name, index, (row_index.shape[0],), dtype=torch.int32, device=k_cache.device)
    return Spec(
        k_cache.device.type, k_cache.dtype, (("lanes", row_index.shape[0]), ("slots", slots), ("width", heads * dim))
    )


def ranges(k_cache, shift, *, row_index, skip_slot, enabled, sink, chunk) -> None:
    expect_range(NAME, "row_index", row_index, IDLE, k_cache.shape[1] - 1)
    expect_range(NAME, "skip_slot", skip_slot, sink, k_cache.shape[3] - chunk)
    expect_range(NAME, "enabled", enabled, 0, 1)
    rows = row_index.tolist()
    moved = [row for row, on in zip(rows, enabled.tolist(), strict=True) if on and row != IDLE]
    if any(rows.count(row) > 1 for row in moved):
        raise OpError(f"{NAME}: argument row_index: expected a row of its own for each enabled lane, got {rows}")


def reference(
    k_cache: torch.Tensor,
    shift: torch.Tensor,
    *,
    row_index: torch.Tensor,
    skip_slot: torch.Tensor,
    enabled: torch.Tensor,
    sink: int,
    chunk: int,
) -> None:
    """Rotate the keys in slots [sink, slots) but for ``chunk`` slots from ``skip_slot`` on, in place, of B lanes.

    Args:
        k_cache: [L, rows, banks, slots, H, D], floating, H D even. Written.
        shift: float32 [n, 2], (cos, sin) of each of the n = H D // 6 frequencies.
        row_index: int32 [B] in [0, rows), different for enabled lanes; -1: an idle lane.
        skip_slot: int32 [B] in [sink, slots - chunk].
        enabled: int32 [B]; 0: the lane stays as it is, as an idle one does.
        sink, chunk: slots of the reference and of a chunk.
    """
    slot = torch.arange(k_cache.shape[3], device=k_cache.device)
    inside = (slot >= skip_slot[:, None]) & (slot < skip_slot[:, None] + chunk)
    moves = (slot >= sink) & ~inside  # [B, slots]
    turned = (enabled != 0) & (row_index != IDLE)
    rows, moves = row_index[turned].long(), moves[turned]
    keys = k_cache[:, rows]
    k_cache[:, rows] = torch.where(moves[:, None, :, None, None], shift_keys(keys, shift), keys)


def _arguments(k_cache, shift, *, row_index, skip_slot, enabled, sink, chunk) -> tuple:
    """Those that csrc/ops/rotate_context.h lists: addresses, sizes, strides."""
    layers, rows, banks, slots, heads, dim = k_cache.shape
    return (
        *(t.data_ptr() for t in (k_cache, shift, row_index, skip_slot, enabled)),
        row_index.shape[0],
        layers,
        rows,
        banks,
        slots,
        heads * dim,
        sink,
        chunk,
        native.DTYPES[k_cache.dtype],
    )


rotate_context = Op(
    f"{NAME}(Tensor(a!) k_cache, Tensor shift, *, Tensor row_index, Tensor skip_slot, Tensor enabled, int sink, "
    "int chunk)",
    check=check,
    ranges=ranges,
    reference=reference,
    reference_uncaptured="it picks the lanes that are not idle on the host",
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, measured="ops_cpu.json"),
        native.cuda_backend(NAME, _arguments),
    ),
)
