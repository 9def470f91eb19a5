"""Bytes that sessions of one model take, by what they are for: a table, a sum, and a refusal before memory runs out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from rest_fast.errors import ArgumentError
from rest_fast.ops.derived import Derived
from rest_fast.streaming.memory import free_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that sessions of one model take on its device; see :func:`rest_fast.streaming.plan.memory_plan`."""

    sessions: int
    lanes: int
    weights: int  # parameters and buffers
    constants: int  # what follows from them: keys and values of the prompt, noise levels, orders; a step's integers
    decoding: int  # scratch and one state of a decoder, which all sessions share
    per_lane: int  # workspace and scratch of an evaluation
    cache: int  # of a session, as all that follow: its cache rows, one or (guided) two
    slot: int  # latents and audio in the step
    states: int  # of the decoder, for interrupts
    history: int  # its latest latents and codes
    avatar: int  # its sink, latent and features; sessions of one face share it
    pictures: int  # that wait to be taken
    pictures_apart: bool  # whether these are in the host's memory, and that is not the device's

    @property
    def fixed(self) -> int:
        """Of no session and no lane, beside the weights."""
        return self.constants + self.decoding

    @property
    def per_session(self) -> int:
        """On the device."""
        pictures = 0 if self.pictures_apart else self.pictures
        return self.cache + self.slot + self.states + self.history + self.avatar + pictures

    @property
    def host(self) -> int:
        """Of all sessions, beside the device."""
        return self.sessions * self.pictures if self.pictures_apart else 0

    def total(self) -> int:
        """On the device."""
        return self._shared() + self.sessions * self.per_session

    def most_sessions(self, free: int) -> int:
        """How many sessions fit into so many bytes, with this plan's lanes."""
        return max(0, free - self._shared()) // self.per_session

    def loaded(self) -> MemoryPlan:
        """The same for a model whose weights are on the device: what is still to come."""
        return dataclasses.replace(self, weights=0)

    def require(self, device: torch.device) -> None:
        """Raise ArgumentError where this is more than what is free on the device."""
        free = free_bytes(device)
        if free is not None and self.total() > free:
            raise ArgumentError(
                f"memory: {self.sessions} sessions and {self.lanes} lanes: expected at most what fits into the "
                f"{free / 2**30:.1f} GiB that are free on {device}, which is {self.most_sessions(free)} sessions, "
                f"got {self.total() / 2**30:.1f} GiB"
            )

    def table(self, free: int | None = None) -> str:
        """As text, in MiB; with ``free`` bytes also how many sessions would fit."""
        rows = [
            ("weights", self.weights),
            ("fixed", self.fixed),
            ("  constants of weights and step", self.constants),
            ("  decoding, shared", self.decoding),
            (f"per session ({self.sessions})", self.per_session),
            ("  cache rows", self.cache),
            ("  latents and audio", self.slot),
            ("  decoder states", self.states),
            ("  history", self.history),
            ("  avatar", self.avatar),
            *([] if self.pictures_apart else [("  pictures that wait", self.pictures)]),
            (f"per lane ({self.lanes})", self.per_lane),
            ("total", self.total()),
            *([("on the host: pictures that wait", self.host)] if self.pictures_apart else []),
            *([] if free is None else [("free", free)]),
        ]
        lines = [f"{'':34}{'MiB':>12}", *(f"{name:34}{count / 2**20:12,.1f}" for name, count in rows)]
        if free is not None:
            lines.append(f"{'sessions that fit':34}{self.most_sessions(free):12,}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def _shared(self) -> int:
        return self.weights + self.fixed + self.lanes * self.per_lane


def held_bytes(held: Any) -> int:
    """Of the tensors in nested lists, tuples and dicts; memory that several share counts once."""
    leaves = tree_leaves(held)
    tensors = tree_leaves([x.value if isinstance(x, Derived) else x for x in leaves])
    storages = [x.untyped_storage() for x in tensors if isinstance(x, torch.Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
