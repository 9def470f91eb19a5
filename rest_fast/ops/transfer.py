"""From the host to the device that computes, without a wait."""

from __future__ import annotations

import torch


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A CPU tensor on ``device``. For the CPU it is the tensor itself.

    To CUDA it is copied through pinned memory in the current stream, and nothing waits: the caller may change or drop
    ``tensor`` at once, and the pinned copy lives until the device has read it.
    """
    assert tensor.device.type == "cpu", f"sent: expected a tensor of the CPU, got one on {tensor.device}"
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
