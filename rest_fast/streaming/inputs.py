"""The small numbers of an evaluation: host lists in, device vectors out, by one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch


class Inputs:
    """Vectors of up to ``width`` numbers by name, in one static piece of memory.

    Each begins at a multiple of 16 bytes, since Triton compiles a kernel again where one does not.
    """

    def __init__(self, integers: Sequence[str], floats: Sequence[str], width: int, device: torch.device):
        names = (*integers, *floats)
        self.places = {name: i for i, name in enumerate(names)}
        self.floats = frozenset(floats)
        with torch.inference_mode(False):
            self.packed = torch.zeros(len(names), -(-width // 4) * 4, dtype=torch.int32, device=device)
        self._views: dict[tuple[Sequence[str], int], list[torch.Tensor]] = {}

    def first(self, count: int, names: Sequence[str]) -> list[torch.Tensor]:
        """The first ``count`` numbers of each of these vectors, int32 or fp32: the same memory at every call."""
        key = (names, count)
        if key not in self._views:
            self._views[key] = [self._whole(self.packed, name)[:count] for name in names]
        return self._views[key]

    def fill(self, entries: Mapping[str, Sequence[float]]) -> None:
        """Write the first numbers of each vector."""
        on_gpu = self.packed.device.type == "cuda"
        # Pinned memory comes from PyTorch's cache, which gives it out again only when the copy is done.
        host = torch.empty(self.packed.shape, dtype=torch.int32, pin_memory=True) if on_gpu else self.packed
        array = host.numpy()
        for name, values in entries.items():
            row = array[self.places[name]]
            (row.view(np.float32) if name in self.floats else row)[: len(values)] = values
        if on_gpu:
            self.packed.copy_(host, non_blocking=True)

    def _whole(self, packed: torch.Tensor, name: str) -> torch.Tensor:
        row = packed[self.places[name]]
        return row.view(torch.float32) if name in self.floats else row
