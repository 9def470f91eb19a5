"""One denoising evaluation for several lanes (paper section 3.4), as plain calls or as a CUDA graph.

A lane is one branch of guidance of one session; which sessions are served, and at which of their sampling steps, is
said by small integers that the kernels read on the device. So the first chunk, the steady state, a new session in a
used row, guided and unguided sessions and idle lanes are the same work with other integers, and one captured graph
serves them all. Latents and audio constants belong to the *slots* of a pool, not to lanes: a session that was put aside
goes on in any lane.

    step.load(slot, z, codes)      # a chunk: its initial noise, and what it hears
    step.run([Turn(...), ...])     # one evaluation and Euler step for each session named
    step.commit(rows)              # the chunk becomes context
    step.latents(slot)

Eager calls compute the lanes that are in use. A captured step computes all of them every time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rest_fast import ops
from rest_fast.errors import ArgumentError
from rest_fast.models.cross_attention import KV
from rest_fast.models.dit import Lanes, Modulation, StreamingDiT
from rest_fast.models.dit_block import Workspace
from rest_fast.ops.dispatch import IDLE
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.evaluations import Evaluations
from rest_fast.streaming.graphs import Capture
from rest_fast.streaming.inputs import Inputs
from rest_fast.streaming.memory import require_memory, step_bytes

# Of each lane: where it lies in the cache, its noise level, its turn, and the slot whose audio it hears (IDLE: none).
LANE = ("row_index", "bank_index", "write_slot", "base", "n_valid", "level", "turn", "hears")
TURN = ("slot", "cond", "uncond")  # of each turn: the slot of its latents, and the lanes of its velocities
NUMBERS = ("guidance", "dt")  # of each turn, fp32
COMMIT = ("row_index", "skip_slot", "enabled")


@dataclass(frozen=True)
class Branches:
    """Where one session lies in the pools: its cache rows, of which one is without a condition when there is guidance,
    and the slot of its latents and audio."""

    cond: int
    uncond: int | None
    slot: int = 0

    @property
    def rows(self) -> list[int]:
        return [self.cond] if self.uncond is None else [self.cond, self.uncond]


@dataclass(frozen=True)
class Turn:
    """One session's part in an evaluation: its latents z become z + dt v, where v is its guided velocity."""

    session: Branches
    level: int  # of the noise in z; an index in :attr:`Step.levels`
    bank: int = 0  # of the cache; the sampling step under ``per_step``
    dt: float = 0.0  # 0: only what the evaluation writes into the cache is of use
    guidance: float = 1.0


class Step(Evaluations):
    """Static memory of an evaluation for up to ``lanes`` lanes of sessions in ``slots`` slots.

    Args:
        levels: every noise level at which it will evaluate, 0..1.
        text: of :meth:`StreamingDiT.text_kv`; None computes it.
        hearing: conditional lanes, which come first; as many as lanes by default. Half suffices where every session is
            guided, and saves a captured step their audio queries.
    Raises: :class:`rest_fast.errors.ArgumentError` for numbers below 1, or for more than fits into free memory.
    """

    def __init__(
        self,
        dit: StreamingDiT,
        cache: IDContextCache,
        levels: Sequence[float],
        *,
        text: list[KV | None] | None = None,
        slots: int = 1,
        lanes: int = 2,
        hearing: int | None = None,
    ):
        hearing = lanes if hearing is None else hearing
        if not 1 <= hearing <= lanes or slots < 1:
            raise ArgumentError(
                f"step: expected lanes and slots of at least 1, and hearing in 1..lanes, got lanes {lanes}, "
                f"slots {slots}, hearing {hearing}"
            )
        require_memory(step_bytes(dit, slots, lanes), dit.table.device, f"step: {lanes} lanes and {slots} slots")
        super().__init__(dit, lanes, LANE + TURN, NUMBERS)
        self.dit, self.cache, self.slots, self.hearing = dit, cache, slots, hearing
        self.levels = {t: i for i, t in enumerate(dict.fromkeys(levels))}
        with torch.inference_mode(False), torch.no_grad():  # a graph and later calls write into this memory
            self.text = dit.text_kv() if text is None else text
            self.modulations = modulation_table(dit, list(self.levels))
            self.work = Workspace(lanes, cache.chunk, dit.config, dit.table)
            # Idle turns move the latents behind the last slot.
            wide = torch.float64 if self.dtype == torch.float64 else torch.float32
            self.z = dit.table.new_zeros(slots + 1, cache.chunk, dit.channels, dtype=wide)
            self.audio = dit.hear(dit.table.new_zeros(slots, cache.stream.chunk, *dit.audio_shape))
            self.codes = dit.table.new_zeros(1, cache.stream.chunk, *dit.audio_shape)  # of the chunk that is loaded
            self.heard_slot = Inputs(("slot",), (), 1, self.device)
            self.commits = Inputs(COMMIT, (), lanes, self.device)
        self._commit: Callable[[], None] | None = None
        self._hear: Callable[[], None] | None = None

    def level(self, t: float) -> int:
        """The index of a noise level. Raises: ArgumentError for one that is not among :attr:`levels`."""
        if t not in self.levels:
            raise ArgumentError(f"step: noise level: expected one of {list(self.levels)}, got {t}")
        return self.levels[t]

    # -- slots

    def load(self, slot: int, z: torch.Tensor, codes: torch.Tensor) -> None:
        """Begin a chunk in a slot: latents [1, N, C] to start from, codes [1, F, A, Wa] to hear.

        Raises: ArgumentError for another shape or slot, and where the model's weights have changed.
        """
        if codes.shape != self.codes.shape:
            raise ArgumentError(f"step: codes: expected {list(self.codes.shape)}, got {list(codes.shape)}")
        self.require_weights()
        self.fill(slot, z)
        self.codes.copy_(codes)
        self.heard_slot.fill({"slot": [slot]})
        if self._hear is None:
            self._hear_codes()
        else:
            self._hear()

    @torch.no_grad()
    def _hear_codes(self) -> None:
        """What the slot of :attr:`heard_slot` hears, from :attr:`codes`."""
        (slot,) = self.heard_slot.first(1, ("slot",))
        for block, heard in zip(self.audio, self.dit.hear(self.codes), strict=True):
            if block is not None and heard is not None:
                block.put(slot, heard)

    def fill(self, slot: int, z: torch.Tensor) -> None:
        """Replace the latents of a slot by z [1, N, C]."""
        if not 0 <= slot < self.slots:
            raise ArgumentError(f"step: slot: expected 0..{self.slots - 1}, got {slot}")
        if z.shape != self.z[:1].shape:
            raise ArgumentError(f"step: latents: expected {list(self.z[:1].shape)}, got {list(z.shape)}")
        self.z[slot : slot + 1].copy_(z)

    def latents(self, slot: int) -> torch.Tensor:
        """A copy of the latents of a slot, fp32 (fp64 for a float64 model) [1, N, C]."""
        return self.z[slot : slot + 1].clone()

    # -- evaluations

    def commit(self, rows: list[int]) -> None:
        """The current chunk of these cache rows becomes context. Raises: ArgumentError for more rows than lanes."""
        if len(rows) > self.lanes:
            raise ArgumentError(f"step: commit: expected at most {self.lanes} rows, got {len(rows)}")
        skip, enabled = self.cache.advance(rows)
        if not self.cache.rotates or (self._commit is None and not any(enabled)):
            return
        idle = self.lanes - len(rows) if self._commit else 0
        rows, skip, enabled = rows + [IDLE] * idle, skip + [self.cache.sink] * idle, enabled + [0] * idle
        self.commits.fill({"row_index": rows, "skip_slot": skip, "enabled": enabled})
        if self._commit is not None:
            self._commit()
        else:
            self.cache.rotate(*self.commits.first(len(rows), COMMIT))

    @torch.no_grad()
    def _run_eagerly(self, turns: Sequence[Turn]) -> None:
        inputs, lanes = self.inputs[0], sum(len(turn.session.rows) for turn in turns)
        entries = self._entries(turns, captured=False)
        inputs.fill(entries)
        places = [row * self.cache.banks + bank for row, bank in zip(entries["row_index"], entries["bank_index"])]
        self._evaluate(inputs, len(turns), lanes, len(turns), entries["n_valid"], places)

    def _entries(self, turns: Sequence[Turn], captured: bool) -> dict[str, list[Any]]:
        """Conditional lanes come first, in the order of turns."""
        second = itertools.count(self._first_unconditional(len(turns)) if captured else len(turns))
        placed: list[list[tuple[int, int]]] = []  # of each turn: its lanes and their cache rows
        for first, turn in enumerate(turns):
            rows = turn.session.rows
            placed.append([(first, rows[0]), *((next(second), row) for row in rows[1:])])
        count = self.lanes if captured else sum(len(lanes) for lanes in placed)
        idle = {"row_index": IDLE, "n_valid": 1, "hears": IDLE, "slot": self.slots}
        entries: dict[str, list[Any]] = {name: [idle.get(name, 0)] * count for name in (*LANE, *TURN, *NUMBERS)}
        for i, (turn, lanes) in enumerate(zip(turns, placed)):
            slot = turn.session.slot
            for lane, row in lanes:
                place = (row, turn.bank, self.cache.write_slot(row), self.cache.base(row), self.cache.n_valid(row))
                for name, value in zip(LANE, (*place, turn.level, i)):
                    entries[name][lane] = value
            entries["hears"][i] = slot
            for name, number in zip((*TURN, *NUMBERS), (slot, i, lanes[-1][0], turn.guidance, turn.dt)):
                entries[name][i] = number
        return entries

    def _first_unconditional(self, turns: int) -> int:
        """The first lane without a condition: behind those that may hear, where that is fewer than all lanes."""
        return self.hearing if self.hearing < self.lanes else turns

    def _evaluate(
        self,
        inputs: Inputs,
        turns: int,
        lanes: int,
        hearing: int,
        host_n_valid: list[Any] | None,
        host_place: list[int] | None = None,
    ) -> None:
        """The work of an evaluation; nothing here depends on anything but sizes and the contents of tensors."""
        cache = self.cache
        row, bank, write_slot, base, n_valid, level, turn, hears = inputs.first(lanes, LANE)
        (slot, cond, uncond), (guidance, dt) = inputs.first(turns, TURN), inputs.first(turns, NUMBERS)
        hears, on_host = hears[:hearing], (host_n_valid, host_place)
        seen = Lanes(cache.k, cache.v, cache.times, row, bank, write_slot, base, n_valid, turn, hears, *on_host)
        z, mod = self.z.index_select(0, slot), self.modulations.at(level)
        v = self.dit.step(z.to(self.dtype), mod, seen, self.work.first(lanes), self.text, self.audio)
        ops.cfg_euler_step(z, v.index_select(0, cond), v.index_select(0, uncond), guidance, dt)
        self.z.index_copy_(0, slot.long(), z)

    def _check(self, turns: Sequence[Turn]) -> None:
        rows = [row for turn in turns for row in turn.session.rows]
        slots = [turn.session.slot for turn in turns]
        most = self.lanes - self._first_unconditional(len(turns))
        if not 0 < len(turns) <= self.hearing or len(rows) - len(turns) > most:
            raise ArgumentError(
                f"step: turns: expected 1..{self.hearing} with {self.lanes} lanes in all (a guided session takes two), "
                f"got {len(turns)} with {len(rows)}"
            )
        self.cache.require_open(rows)
        if len(set(slots)) != len(slots) or not all(0 <= slot < self.slots for slot in slots):
            raise ArgumentError(f"step: slots: expected different ones in 0..{self.slots - 1}, got {slots}")
        for turn in turns:
            if not 0 <= turn.level < len(self.levels) or not 0 <= turn.bank < self.cache.banks:
                raise ArgumentError(
                    f"step: turn: expected a level in 0..{len(self.levels) - 1} and a bank in "
                    f"0..{self.cache.banks - 1}, got {turn.level} and {turn.bank}"
                )
            if turn.guidance != 1 and turn.session.uncond is None:
                raise ArgumentError(
                    f"step: turn: expected a second cache row for guidance {turn.guidance}, got {turn.session}"
                )

    # -- graphs

    def _evaluate_idle(self) -> None:
        self._evaluate(self.inputs[0], self.lanes, self.lanes, self.hearing, [1] * self.lanes)
        if self.cache.rotates:
            self.cache.rotate(*self.commits.first(self.lanes, COMMIT))

    def _evaluate_captured(self, inputs: Inputs) -> None:
        self._evaluate(inputs, self.lanes, self.lanes, self.hearing, None)

    def _capture_ends(self, graph: Capture) -> None:
        if self.cache.rotates:
            self._commit = graph(lambda: self.cache.rotate(*self.commits.first(self.lanes, COMMIT)))
        self._hear = graph(self._hear_codes)

    def _fill_idle(self) -> None:
        super()._fill_idle()
        idle = {"row_index": IDLE, "skip_slot": self.cache.sink, "enabled": 0}
        self.commits.fill({name: [value] * self.lanes for name, value in idle.items()})


class ModulationTable:
    """AdaLN vectors of every noise level and block, from which each lane gathers its own."""

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors  # [6 L + 2, levels, W]

    def at(self, level: torch.Tensor) -> Modulation:
        """Those of lanes at these levels, int32 [B]: [6, B, 1, W] of each block, [2, B, 1, W] before the output."""
        found = self.vectors.index_select(1, level)[:, :, None]
        blocks = found[:-2].unflatten(0, (-1, 6))
        return Modulation(list(blocks), found[-2:])


def modulation_table(dit: StreamingDiT, levels: list[float]) -> ModulationTable:
    """Each level is computed by itself, so that its last bits do not depend on the others."""
    columns = []
    for t in levels:
        made = dit.modulation(torch.full((1, 1), t, dtype=torch.float32, device=dit.table.device))
        columns.append(torch.cat([*made.blocks, made.final])[:, 0])  # [6 L + 2, 1, W]
    return ModulationTable(torch.cat(columns, 1))
