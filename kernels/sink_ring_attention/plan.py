"""Chooses the tile and the number of parts of the keys, by a table and a cost model, never by timing at run time."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

SPLITS = (1, 2, 4)
PARTIAL = 1.0  # per program, to write a partial result in fp32 and read it back; unit as Tile.busy
COMBINE = 1.0  # the second launch
WORTH = 0.9  # a split allocates and launches twice, so it has to take at most this share of the time


@dataclass(frozen=True)
class Tile:
    """Sizes of a program and what one tile of keys costs it; the unit is a 128 x 128 tile at head size 64.

    ``resident`` programs fit on a multiprocessor; a tile of keys takes ``busy`` when all of them are there, ``alone``
    when one has the multiprocessor to itself. The costs are estimates, not measurements.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    resident: int
    busy: float
    alone: float

    def time(self, programs: int, key_tiles: float, processors: int) -> float:
        full, rest = divmod(programs, self.resident * processors)
        last = 0.0 if rest == 0 else self.alone if rest <= processors else self.busy
        return (full * self.busy + last) * key_tiles


# One program fills a multiprocessor (about 200 registers in each of 256 threads): three stages hide the loads.
LARGE = Tile(128, 128, warps=8, stages=3, resident=1, busy=1.0, alone=1.0)
# Half as much work for the same keys, so twice the traffic from L2; two share a multiprocessor and hide each other's
# loads, one alone leaves softmax and matrix units waiting for each other.
HALF = Tile(64, 128, warps=4, stages=2, resident=2, busy=1.15, alone=0.8)
# Few slots: half of a wide tile of keys would be padding. At head size 64 only: for smaller ones more programs fit into
# sm_100's tensor memory, and Triton leaves each of them so few registers that they spill.
SMALL = Tile(64, 64, warps=4, stages=2, resident=2, busy=0.7, alone=0.45)
FEW_SLOTS = 128
# Head size 128: wider tiles of keys spill registers on sm_80 and sm_120.
WIDE_HEAD = Tile(128, 32, warps=8, stages=2, resident=1, busy=0.6, alone=0.6)
# fp32 multiplies outside the tensor cores, and Triton keeps whole rows of both operands in registers: wider ones spill.
EXACT = Tile(16, 16, warps=8, stages=1, resident=1, busy=1.0, alone=1.0)


@dataclass(frozen=True)
class Plan:
    """How one call is divided into programs."""

    tile: Tile
    splits: int = 1

    def programs(self, lanes: int, heads: int, tokens: int) -> int:
        return lanes * heads * triton.cdiv(tokens, self.tile.queries) * self.splits

    def time(self, lanes: int, heads: int, tokens: int, slots: int, processors: int) -> float:
        """The predicted time, in the unit of :class:`Tile`."""
        tiles = float(triton.cdiv(triton.cdiv(slots, self.tile.keys), self.splits))
        extra = (0.0, 0.0) if self.splits == 1 else (PARTIAL * self.tile.queries / 128, COMBINE)
        return self.tile.time(self.programs(lanes, heads, tokens), tiles + extra[0], processors) + extra[1]


@functools.lru_cache(maxsize=1024)
def plan(*, lanes: int, heads: int, tokens: int, slots: int, dim: int, dtype: torch.dtype, processors: int) -> Plan:
    """The plan of a call. It depends on the capacity ``slots``, not on lengths: a captured launch serves them all."""
    if dtype == torch.float32:
        return Plan(EXACT)
    tiles = (WIDE_HEAD,) if dim > 64 else (SMALL,) if slots <= FEW_SLOTS and dim == 64 else (LARGE, HALF)

    def time(p: Plan) -> float:
        return p.time(lanes, heads, tokens, slots, processors)

    whole = min((Plan(t) for t in tiles), key=time)
    split = min((Plan(t, s) for t in tiles for s in SPLITS[1:] if s * t.keys <= slots), key=time, default=whole)
    return split if time(split) <= WORTH * time(whole) else whole


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 for the interpreter, which runs programs one by one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
