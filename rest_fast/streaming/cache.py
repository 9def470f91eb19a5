"""ID-Context cache (paper section 3.3): keys and values of reference, context chunks and current chunk, in slots.

    slots of a cache row:  [ sink (reference) | chunk | chunk | ... ]   context_chunks + 1 chunks

The current chunk is written into the slots of the chunk that is being evicted, so what a query may see is always the
dense range ``[0, n_valid)``. Commit advances one integer per row and, once the window is full, rotates the context keys
back by one chunk. Nothing is rolled, copied or concatenated.
"""

from __future__ import annotations

import torch

from rest_fast import ops
from rest_fast.config import ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.dit import Lanes
from rest_fast.models.positions import PositionTables
from rest_fast.streaming.memory import cache_bytes, require_memory


class IDContextCache:
    """A pool of cache rows; a row belongs to one (session, guidance branch)."""

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        steps: int | None = None,
    ):
        if rows < 1:
            raise ArgumentError(f"cache: rows: expected at least 1, got {rows}")
        stream, dit = config.stream, config.dit
        self.stream, self.rows = stream, rows
        self.reference, self.chunk = config.tokens, stream.chunk * config.tokens
        self.sink = self.reference if stream.sink else 0
        self.slots = max(self.sink + (stream.context_chunks + 1) * self.chunk, self.chunk + self.reference)
        self.banks = (steps or config.sampling.steps) if stream.context == "per_step" else 1
        needed = cache_bytes(config, rows, self.banks, self.slots, dtype)
        require_memory(needed, torch.device(device), f"cache: {rows} rows")
        shape = (dit.layers, rows, self.banks, self.slots, dit.heads, dit.head_dim)
        self.k, self.v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self._positions = PositionTables(config).to(device)
        # The window's positions are the same for all rows. Absolute ones grow: each row has its chunk's, and moves on.
        grown = torch.zeros(rows * stream.chunk, *self._positions.window.shape[1:], device=device)
        self.times = self._positions.window if stream.positions == "window" else grown
        self.rotates = stream.positions == "window" and stream.context_chunks > 0
        self.committed = [0] * rows  # chunks committed since the row was opened
        self._opened = [False] * rows

    def open(self, row: int, sink_k: torch.Tensor, sink_v: torch.Tensor) -> None:
        """Start a stream in a row, used before or not: sink [L, T, H, D] into every bank, context empty."""
        self._check([row], opened=False)
        first = 0 if self.sink else self.chunk  # without a sink: where the second chunk will be written
        for cache, sink, name in ((self.k, sink_k, "sink_k"), (self.v, sink_v, "sink_v")):
            want = (self.k.shape[0], self.reference, *self.k.shape[-2:])
            if tuple(sink.shape) != want:
                raise ArgumentError(f"cache.open: {name}: expected shape {list(want)}, got {list(sink.shape)}")
            cache[:, row, :, first : first + self.reference] = sink[:, None].to(cache.dtype)
        self._opened[row] = True
        self._move(row, 0)

    def write_slot(self, row: int) -> int:
        """First slot of the current chunk."""
        return self._current(self.committed[row])[0]

    def n_valid(self, row: int) -> int:
        """Slots that hold something once the current chunk is written."""
        return self._current(self.committed[row])[1]

    def held(self, committed: int) -> list[int]:
        """Slots that the next chunk reads and does not write, in a row of so many committed chunks."""
        start, valid = self._current(committed)
        return [*range(start), *range(start + self.chunk, valid)]

    def _current(self, committed: int) -> tuple[int, int]:
        start = self.sink + committed % (self.stream.context_chunks + 1) * self.chunk
        if committed == 0:
            return start, self.reference + self.chunk
        return start, self.sink + min(committed + 1, self.stream.context_chunks + 1) * self.chunk

    def base(self, row: int) -> int:
        """The index in :attr:`times` of the first frame of the current chunk."""
        grows = self.stream.positions == "absolute"
        return row * self.stream.chunk if grows else self._positions.base(self.committed[row])

    def lanes(self, rows: list[int], bank: int = 0, *, sessions: int | None = None) -> Lanes:
        """The slots as the next step of these rows sees them; ``bank`` is the step index under ``per_step``.

        The first rows are those of ``sessions`` (None: all of them), which have their latents and hear their audio.
        Further rows are branches without a condition of the same sessions, in the same order.
        """
        self.require_open(rows)
        if not 0 <= bank < self.banks:
            raise ArgumentError(f"cache.lanes: bank: expected 0..{self.banks - 1}, got {bank}")
        count, n_valid = sessions or len(rows), [self.n_valid(r) for r in rows]
        turns = [i % count for i in range(len(rows))]
        entries = [rows, [bank] * len(rows), [self.write_slot(r) for r in rows], [self.base(r) for r in rows], n_valid]
        row, bank_index, slot, base, valid, turn = vectors([*entries, turns], torch.int32, self.k.device)
        hears, places = turn[:count], [r * self.banks + bank for r in rows]
        return Lanes(self.k, self.v, self.times, row, bank_index, slot, base, valid, turn, hears, n_valid, places)

    def commit(self, rows: list[int]) -> None:
        """Make the chunk that was written context; the slots of the oldest context become the current ones."""
        skip_slot, enabled = self.advance(rows)
        if self.rotates and any(enabled):
            self.rotate(*vectors([rows, skip_slot, enabled], torch.int32, self.k.device))

    def advance(self, rows: list[int]) -> tuple[list[int], list[int]]:
        """The part of :meth:`commit` that only counts. Returns what :meth:`rotate` needs for these rows: the slots of
        their new current chunks, and 1 for those whose window was full."""
        self.require_open(rows)
        enabled = [int(self.committed[r] >= self.stream.context_chunks) for r in rows]
        for row in rows:
            self._move(row, self.committed[row] + 1)
        return [self.write_slot(r) for r in rows], enabled

    def rotate(self, row_index: torch.Tensor, skip_slot: torch.Tensor, enabled: torch.Tensor) -> None:
        """The part of :meth:`commit` that computes, of a window that moves on; int32 [B] each."""
        sizes = {"sink": self.sink, "chunk": self.chunk}
        indices = {"row_index": row_index, "skip_slot": skip_slot, "enabled": enabled}
        ops.rotate_context(self.k, self._positions.chunk_back, **indices, **sizes)

    def _move(self, row: int, committed: int) -> None:
        """Set the number of a row's current chunk."""
        self.committed[row] = committed
        if self.stream.positions == "absolute":
            first, chunk = self._positions.base(committed), self.stream.chunk
            positions = torch.arange(first, first + chunk, device=self.times.device)
            self.times[row * chunk : (row + 1) * chunk] = self._positions.time(positions)

    def snapshot(self, row: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """(k, v, committed) of one row; :meth:`restore` continues from it bit for bit, in any row of any pool."""
        self.require_open([row])
        return self.k[:, row].clone(), self.v[:, row].clone(), self.committed[row]

    def restore(self, row: int, state: tuple[torch.Tensor, torch.Tensor, int]) -> None:
        self._check([row], opened=False)
        self.k[:, row], self.v[:, row], committed = state
        self._opened[row] = True
        self._move(row, committed)

    def require_open(self, rows: list[int]) -> None:
        """Raise unless these rows exist, are opened and differ."""
        self._check(rows, opened=True)

    def _check(self, rows: list[int], opened: bool) -> None:
        for row in rows:
            if not 0 <= row < self.rows:
                raise ArgumentError(f"cache: row: expected 0..{self.rows - 1}, got {row}")
            if opened and not self._opened[row]:
                raise ArgumentError(f"cache: row {row}: expected an opened row (sink loaded), got a fresh one")
        if len(set(rows)) != len(rows):
            raise ArgumentError(f"cache: rows: expected distinct rows, got {rows}")


def vectors(rows: list[list[int]] | list[list[float]], dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Short lists of one length on the device, by one copy that the host does not wait for.

    Each vector begins at a multiple of 16 bytes, since Triton compiles a kernel again where one does not.
    """
    count, four = len(rows[0]), 16 // dtype.itemsize
    padded = [[*row, *[0] * (-count % four)] for row in rows]
    on_gpu = device.type == "cuda"
    together = torch.tensor(padded, dtype=dtype, pin_memory=on_gpu).to(device, non_blocking=on_gpu)
    return [row[:count] for row in together]
