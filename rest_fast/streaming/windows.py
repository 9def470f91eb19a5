"""SoulX-FlashHead's evaluations of several lanes in static memory, as plain calls or as a CUDA graph.

A lane is one session's window: latents of the motion, clean, and new ones at some noise level. Which sessions are
served, at which of their steps and with how many motion latents, is said by small integers that are read on the device:
so a stream's first chunk, with one, and all later ones, with two, are the same work. Latents, noise and what is heard
belong to the slots of a pool, as in :mod:`rest_fast.streaming.step`; nothing is kept from chunk to chunk.

    step.load(slot, chunk)           # a chunk: noise, motion, reference, and what it hears
    step.run([Turn(...), ...])       # one step of the sampler for each session named
    step.latents(slot)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rest_fast import ops
from rest_fast.errors import ArgumentError
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.flashhead.dit import FlashHeadDiT, Windows
from rest_fast.models.flashhead.sampling import Level
from rest_fast.ops.dispatch import IDLE
from rest_fast.streaming.evaluations import Evaluations
from rest_fast.streaming.graphs import Capture
from rest_fast.streaming.inputs import Inputs
from rest_fast.streaming.memory import require_memory
from rest_fast.streaming.step import ModulationTable

# Of each lane: its slot, its own row of keys and values (IDLE: none), the row of the table of noise levels, which of
# the slot's noise it mixes in, and the tokens of motion, which stay.
LANE = ("slot", "row", "level", "fresh", "held")
NUMBERS = ("now", "after")  # the noise levels themselves, fp32


@dataclass(frozen=True, eq=False)
class Window:
    """What a chunk's evaluations begin with: a window of F latents, N tokens."""

    reference: torch.Tensor  # [1, N, C]
    motion: torch.Tensor  # [1, M, C], the first latents of the window
    heard: torch.Tensor  # audio tokens [1, F, A, W]
    noise: tuple[torch.Tensor, ...]  # [1, N, C]: the initial one, and the fresh one behind each step but the last


@dataclass(frozen=True)
class Turn:
    """One session's part in an evaluation: the latents of its slot move on by one step of the sampler."""

    slot: int
    level: Level
    fresh: int  # which of the slot's noise is mixed in
    held: int  # tokens of motion

    @property
    def dt(self) -> float:
        return self.level.after - self.level.now


class WindowStep(Evaluations):
    """Static memory of an evaluation for up to ``lanes`` windows of sessions in ``slots`` slots.

    Args:
        levels: every step of a sampler that it will evaluate.
        steps: of a chunk, at most.
    Raises: :class:`rest_fast.errors.ArgumentError` for more than fits into free memory.
    """

    def __init__(self, model: FlashHead, levels: Sequence[Level], steps: int, *, slots: int = 1, lanes: int = 1):
        self.dit: FlashHeadDiT = model.dit
        needed = lane_bytes(self.dit) * lanes + slot_bytes(self.dit, steps) * slots
        require_memory(needed, model.device, f"step: {lanes} lanes and {slots} slots")
        super().__init__(self.dit, lanes, LANE, NUMBERS)
        self.slots, self.steps, tokens, like = slots, steps, self.dit.tokens, self.dit.table
        self.levels = {level.timestep: i for i, level in enumerate({x.timestep: x for x in levels}.values())}
        with torch.inference_mode(False), torch.no_grad():  # a graph and later calls write into this memory
            exact = [torch.tensor(t, dtype=torch.float64, device=self.device) for t in self.levels]
            self.modulations = ModulationTable(torch.stack([self.dit.modulation(t) for t in exact], 1))
            self.work = Windows(lanes, self.dit)
            # Idle lanes move the latents behind the last slot.
            self.z = like.new_zeros(slots + 1, tokens, self.dit.channels, dtype=model.wide)
            self.fresh = self.z.new_zeros(slots + 1, steps, *self.z.shape[1:])
            self.reference = torch.zeros_like(self.z, dtype=self.dtype)
            self.heard = like.new_zeros(1, *self.dit.heard_shape)  # of the chunk that is loaded
            self.audio = [
                tuple(x.new_zeros(slots + 1, *x.shape[1:]) for x in pair) for pair in self.dit.hear(self.heard)
            ]
            self.heard_slot = Inputs(("slot",), (), 1, self.device)
        self._hear: Callable[[], None] | None = None

    # -- slots

    def load(self, slot: int, window: Window) -> None:
        """Begin a chunk in a slot. Raises: ArgumentError for another shape or slot, and for weights that changed."""
        if not 0 <= slot < self.slots:
            raise ArgumentError(f"step: slot: expected 0..{self.slots - 1}, got {slot}")
        whole, held = self.z[:1].shape, window.motion.shape[1]
        for name, got in (("reference", window.reference), *(("noise", noise) for noise in window.noise)):
            if got.shape != whole:
                raise ArgumentError(f"step: {name}: expected {list(whole)}, got {list(got.shape)}")
        if window.heard.shape != self.heard.shape or not 0 < held <= whole[1] or len(window.noise) > self.steps:
            raise ArgumentError(
                f"step: window: expected what is heard as {list(self.heard.shape)}, motion of 1..{whole[1]} tokens "
                f"and noise for at most {self.steps} steps, got {list(window.heard.shape)}, {held}, {len(window.noise)}"
            )
        self.require_weights()
        self.reference[slot].copy_(window.reference[0])
        self.z[slot].copy_(window.noise[0][0])
        self.z[slot, :held].copy_(window.motion[0])
        for mine, noise in zip(self.fresh[slot], window.noise):
            mine.copy_(noise[0])
        self.heard.copy_(window.heard)
        self.heard_slot.fill({"slot": [slot]})
        (self._hear or self._hear_window)()

    @torch.no_grad()
    def _hear_window(self) -> None:
        """Keys and values of what the slot of :attr:`heard_slot` hears."""
        (slot,) = self.heard_slot.first(1, ("slot",))
        for pools, heard in zip(self.audio, self.dit.hear(self.heard), strict=True):
            for pool, made in zip(pools, heard, strict=True):
                pool.index_copy_(0, slot.long(), made)

    def latents(self, slot: int) -> torch.Tensor:
        """A copy of the window of a slot [1, N, C], its motion included."""
        return self.z[slot : slot + 1].clone()

    # -- evaluations

    def _entries(self, turns: Sequence[Turn], captured: bool) -> dict[str, list[Any]]:
        rows = [
            (t.slot, lane, self.levels[t.level.timestep], t.slot * self.steps + t.fresh, t.held, t.level.now,
             t.level.after)
            for lane, t in enumerate(turns)
        ]  # fmt: skip
        if captured:
            rows += [(self.slots, IDLE, 0, self.slots * self.steps, 0, 1.0, 0.0)] * (self.lanes - len(turns))
        return {name: list(column) for name, column in zip((*LANE, *NUMBERS), zip(*rows, strict=True), strict=True)}

    @torch.no_grad()
    def _run_eagerly(self, turns: Sequence[Turn]) -> None:
        self.inputs[0].fill(self._entries(turns, captured=False))
        self._evaluate(self.inputs[0], self.work.first(len(turns)).all_busy())

    def _evaluate_captured(self, inputs: Inputs) -> None:
        self._evaluate(inputs, self.work)

    def _evaluate_idle(self) -> None:
        self._evaluate(self.inputs[0], self.work)
        self._hear_window()

    def _evaluate(self, inputs: Inputs, work: Windows) -> None:
        """The work of an evaluation; nothing here depends on anything but sizes and the contents of tensors."""
        lanes = len(work.x)
        (slot, row, level, fresh, held), (now, after) = inputs.first(lanes, LANE), inputs.first(lanes, NUMBERS)
        z, reference = self.z.index_select(0, slot), self.reference.index_select(0, slot)
        audio = [(k.index_select(0, slot), v.index_select(0, slot)) for k, v in self.audio]
        v = self.dit.step(z.to(self.dtype), reference, self.modulations.at(level), row, work, audio)
        ops.x0_renoise_step(z, v, self.fresh.flatten(0, 1).index_select(0, fresh), now, after, held)
        self.z.index_copy_(0, slot.long(), z)

    def _check(self, turns: Sequence[Turn]) -> None:
        slots = [turn.slot for turn in turns]
        if not 0 < len(turns) <= self.lanes:
            raise ArgumentError(f"step: turns: expected 1..{self.lanes}, its lanes, got {len(turns)}")
        if len(set(slots)) != len(slots) or not all(0 <= slot < self.slots for slot in slots):
            raise ArgumentError(f"step: slots: expected different ones in 0..{self.slots - 1}, got {slots}")
        for turn in turns:
            known = turn.level.timestep in self.levels and 0 <= turn.fresh < self.steps
            if not known or not 0 <= turn.held <= self.z.shape[1]:
                raise ArgumentError(
                    f"step: turn: expected a timestep among {list(self.levels)}, noise in 0..{self.steps - 1} and "
                    f"motion of at most {self.z.shape[1]} tokens, got {turn}"
                )

    def _capture_ends(self, graph: Capture) -> None:
        self._hear = graph(self._hear_window)


def slot_bytes(dit: FlashHeadDiT, steps: int) -> int:
    """Static memory of a slot: latents, noise of every step, reference, keys and values of what is heard."""
    size, (frames, audio, width) = dit.table.element_size(), dit.heard_shape
    latents = dit.tokens * dit.channels
    return latents * ((1 + steps) * max(size, 4) + size) + 2 * len(dit.blocks) * frames * audio * width * size


def lane_bytes(dit: FlashHeadDiT) -> int:
    """Static memory of a lane, and the largest tensors that live at once while it runs."""
    size, width, (frames, audio, _) = dit.table.element_size(), dit.config.width, dit.heard_shape
    static = dit.tokens * width * 6  # streams, query, output, keys and values
    passing = dit.tokens * max(3 * width, 2 * dit.config.mlp_width)  # qkv, or the MLP before and after its GELU
    return (static + passing + 2 * len(dit.blocks) * frames * audio * width) * size
