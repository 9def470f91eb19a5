"""At commit: context keys back by one chunk, in place, all layers and lanes in one launch.

    k' = k e^(i shift)   for the time pairs of the slots that are neither sink nor the chunk just written

Values and the other pairs stay. A program holds a few slots. It ends at once if nothing moves there: for a lane that is
not enabled, for slots inside the current chunk, for an index out of range. Two thirds of a moving key do not change,
but they share its 32-byte sectors, so it is read and written as a whole. It computes in fp32 and rounds once.
Limits: W at most ``rows.WIDEST``; an enabled lane shares its row with no other lane.
"""

from __future__ import annotations

from typing import Any

import torch
import triton

from rest_fast.kernels import rows as tile
from rest_fast.kernels.rotate_context.kernel import rotate_context_kernel

SLOTS = 4  # of a program, which share one load of the angles; with more, a small cache would give too few programs


def plan(width: int) -> dict[str, int]:
    """The constants of a launch."""
    block = tile.block(width)
    return {"WIDTH": width, "SLOTS": SLOTS, "BLOCK": block, "num_warps": tile.warps(block * SLOTS)}


def supports(spec: Any) -> tuple[bool, str]:
    return tile.fits(spec)


def launch(
    k_cache: torch.Tensor,  # [L, rows, banks, slots, H, D], written
    shift: torch.Tensor,  # fp32 [n, 2]
    *,
    row_index: torch.Tensor,  # int32 [B], as the next two
    skip_slot: torch.Tensor,
    enabled: torch.Tensor,
    sink: int,
    chunk: int,
) -> None:
    layers, rows, banks, slots, heads, dim = k_cache.shape
    lanes, blocks = row_index.shape[0], triton.cdiv(slots - sink, SLOTS)
    if layers * lanes * banks * blocks == 0:
        return
    with tile.on(k_cache):
        rotate_context_kernel[(layers * lanes * banks * blocks,)](
            *(k_cache, shift, row_index, skip_slot, enabled),
            *(lanes, rows, banks, slots, sink, chunk, blocks),
            **plan(heads * dim),
        )
