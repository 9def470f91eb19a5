"""Memory around tensors, to see whether a kernel that was called past the host's checks stays inside."""

from __future__ import annotations

import torch

from tests.kernels import kit
from tests.ops import calls

FAR = 2**31 - 1  # the largest int32: its address, were it used, is far outside of anything


def surrounded(call: calls.Call, *names: str) -> tuple[calls.Call, dict[str, torch.Tensor]]:
    """The call on the device, each of these tensors in the middle of three; and the three together, [3, *shape].

    An index that is one too small or too large then lands in memory that the test owns.
    """
    copy, memory = kit.copied(call), {}
    for name in names:
        inner = copy[name]
        memory[name] = torch.full((3, *inner.shape), 77.0, dtype=inner.dtype, device=inner.device)
        copy[name] = memory[name][1].copy_(inner)
    return copy, memory
