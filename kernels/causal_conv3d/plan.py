"""Chooses the tile, and whether the taps are split, by the layer and its picture, never by a call's frames or streams.

So the order of every sum is the same however a stream is cut into pieces, and results are equal bit by bit.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
import triton


@dataclass(frozen=True)
class Gpu:
    """``shared``: KiB that a program may have. ``descriptors``: tiles are fetched by tensor descriptors, and products
    read them where they arrive; else by asynchronous copies of each thread.
    """

    shared: int
    descriptors: bool


INTERPRETER = Gpu(227, True)


def of_capability(capability: tuple[int, int]) -> Gpu:
    if capability[0] in (9, 10):
        return Gpu(227, True)
    # sm_120 has descriptors, too, but not the products that go with them; and ptxas gives such code a stack.
    return Gpu(163 if capability in ((8, 0), (8, 7)) else 99, False)


@functools.cache
def gpu(device: torch.device) -> Gpu:
    if device.type != "cuda":
        return INTERPRETER
    return of_capability(torch.cuda.get_device_capability(device))


# Layers (input channels, output channels, rows, columns) that cuDNN does faster in bf16, by compute capability: from
# ``benchmarks/vae_tables.py --layers`` of a run of ``make gpu-suite PART=vae``. There has been none yet.
CUDNN_FASTER: dict[tuple[int, int], frozenset[tuple[int, int, int, int]]] = {}


@dataclass(frozen=True)
class Tile:
    """Windows and output channels of a program, and channels of a step."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    part: int  # columns of its store at a time


@dataclass(frozen=True)
class Plan:
    """How one layer is divided into programs.

    ``by_cell``: a tile holds one place of the upsampler's cell, and its channels lie side by side in the result; else
    all places of a few channels. ``splits``: 3 where each plane of taps gets programs of its own, else 1.
    """

    tile: Tile
    by_cell: bool
    splits: int
    descriptors: bool
    norm: bool  # a program sees all channels of its pixels

    def programs(self, slots: int, area: int, outputs: int, cell: int) -> int:
        groups, columns = (cell, outputs) if self.by_cell else (1, outputs * cell)
        tiles = triton.cdiv(area, self.tile.rows) * groups * triton.cdiv(columns, self.tile.columns)
        return tiles * slots * self.splits


SMALL_FRAME = 512  # windows: a 16 x 16 picture has 288
LARGE_FRAME = 4096  # windows: a 64 x 64 picture has 4224
FEW = 48  # programs of one frame that leave most of a GPU idle
LONG = 8192  # terms of a sum; with fewer, a split saves less than its memory traffic costs
WIDEST = 1024  # channels that a program of the combining kernel holds


@functools.lru_cache(maxsize=1024)
def plan(*, channels: int, outputs: int, cell: int, area: int, dtype: torch.dtype, gpu: Gpu) -> Plan:
    """``outputs``: channels of the result; ``area``: windows of a frame, H (W + 2)."""
    by_cell = cell == 1 or outputs >= 16
    tile = _tile(outputs if by_cell else outputs * cell, area, by_cell and cell > 1, dtype, gpu)
    while channels % tile.depth:
        tile = replace(tile, depth=tile.depth // 2)
    whole = Plan(tile, by_cell, 1, gpu.descriptors, by_cell and outputs <= tile.columns)
    split = by_cell and area <= SMALL_FRAME and 27 * channels >= LONG and dtype != torch.float32
    if split and whole.programs(1, area, outputs, cell) <= FEW:
        return Plan(tile, by_cell, 3, gpu.descriptors, outputs <= WIDEST)
    return whole


def _tile(columns: int, area: int, cells: bool, dtype: torch.dtype, gpu: Gpu) -> Tile:
    width = max(triton.next_power_of_2(columns), 16)
    part = 16 if cells else 32  # a residual that is gathered from cells takes more registers
    if dtype == torch.float32:  # no tensor cores: a thread holds whole rows of both factors, and wider tiles spill
        return Tile(32, min(width, 32), 16, 4, 2, part)
    if width == 256:  # all channels: the norm is part of the store
        return Tile(128, 256, 64 if gpu.descriptors else 32, 8, 4, part)
    if area <= SMALL_FRAME:  # of few pixels: more programs for the same weights
        return Tile(64, min(width, 128), 64, 4, 4, part)
    # With three stages ptxas makes the products of the large pictures' layers wait for one another (its note C7515).
    if width <= 64:
        return Tile(128, width, 64, 4, 4 if gpu.descriptors else 3, part)
    if area >= LARGE_FRAME and gpu.descriptors and not cells:
        return Tile(256, 128, 64, 8, 4, part)
    return Tile(128, 128, 64, 8, 3, part)
