"""What sessions of SoulX-FlashHead will take of memory: the part of :mod:`rest_fast.streaming.plan` for this family.

There is no cache and no decoder's state. What the networks of a chunk take at most while they run is found by running
them on PyTorch's meta device and counting what is alive, in the order in which PyTorch asks for it; a graph has
that much memory for itself. Ops count what they return; what a library takes inside of one product is not known there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from rest_fast.config import TEMPORAL
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.flashhead.sampling import levels
from rest_fast.ops.derived import all_of
from rest_fast.streaming.budget import MemoryPlan, held_bytes
from rest_fast.streaming.flashhead import Networks, longest_history
from rest_fast.streaming.windows import WindowStep, lane_bytes, slot_bytes

WAITING = 2  # chunks whose pictures were made and not taken: the one that is shown, and one run ahead


def windows_plan(model: FlashHead, *, sessions: int, lanes: int, on_gpu: bool) -> MemoryPlan:
    """What so many sessions take in a step of so many lanes, of a model on the meta device."""
    config, dtype = model.config, model.dtype
    steps, picture = config.sampling.steps, 3 * config.height * config.width
    weights = held_bytes([*model.parameters(), *model.buffers()])
    step, networks = WindowStep(model, levels(config.sampling), steps, lanes=lanes), Networks(model)
    inputs = [x.packed for x in (*step.inputs, step.heard_slot)]
    static = [step.modulations.vectors, step.work.tables, step.heard, inputs]
    constants = held_bytes([*all_of(model), *static]) - weights
    parts = (networks.hear, networks.encode, networks.show)
    fixed = sum(held_bytes([part.given, part(*part.given) if on_gpu else []]) for part in parts)  # memory of graphs
    reference = config.stream.window * config.tokens * config.vae.latent_channels * max(dtype.itemsize, 4)
    return MemoryPlan(
        sessions=sessions,
        lanes=lanes,
        weights=weights,
        constants=constants + slot_bytes(model.dit, steps),  # that of idle lanes
        decoding=fixed + max(peak(part, *part.given) for part in parts),
        per_lane=lane_bytes(model.dit),
        cache=0,
        slot=slot_bytes(model.dit, steps),
        states=0,
        history=longest_history(config) * TEMPORAL * picture * dtype.itemsize,
        avatar=2 * reference + picture * dtype.itemsize,  # its own and a stream's, and the photo
        pictures=WAITING * config.stream.chunk * TEMPORAL * picture,
        pictures_apart=on_gpu,
    )


def peak(function: Callable[..., Any], *given: torch.Tensor) -> int:
    """The most bytes that tensors take at once which this call makes, its result among them."""
    with torch.no_grad(), _Alive() as alive:
        function(*given)
    return alive.most


class _Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs or {})):
            self._seen.setdefault(storage)
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._seen:
                self._seen[storage] = None
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _gone(self, count: int) -> None:
        self.now -= count


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    """Of all tensors but a CPU's weights in oneDNN's order, which no device has and which hide theirs."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn:
            yield leaf.untyped_storage()
