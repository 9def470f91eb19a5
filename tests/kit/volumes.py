"""Tensors [B, C, T, H, W] that lie in memory in all the ways that the VAE's ops may meet."""

from __future__ import annotations

import torch

# name -> axes of the tensor in the order of memory, slowest first
ORDERS = {
    "contiguous": (0, 1, 2, 3, 4),
    "channels_last": (0, 2, 3, 4, 1),
    "turned": (0, 1, 2, 4, 3),
    "frames_first": (2, 0, 1, 3, 4),
    "buffer": (0, 1, 2, 3, 4),
    "margin": (0, 1, 2, 3, 4),
}


def laid_out(x: torch.Tensor, name: str, fill: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(x in that layout, all the memory around it, which starts as ``fill``).

    A ``buffer`` has two more frames before the tensor's, a ``margin`` a column after each row.
    """
    shape = list(x.shape)
    if name == "buffer":
        shape[2] += 2
    if name == "margin":
        shape[4] += 1
    order = ORDERS[name]
    memory = torch.full([shape[axis] for axis in order], fill, dtype=x.dtype)
    view = memory.permute([order.index(axis) for axis in range(5)])
    if name == "buffer":
        view = view[:, :, 2:]
    if name == "margin":
        view = view[..., :-1]
    view.copy_(x)
    return view, memory
