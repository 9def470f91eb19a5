"""What a cache and a step take of a device's memory, and a refusal before it runs out."""

from __future__ import annotations

from pathlib import Path

import torch

from rest_fast.config import ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.dit import StreamingDiT
from rest_fast.ops.frame_audio_update import MOST


def step_bytes(dit: StreamingDiT, slots: int, lanes: int) -> int:
    """Static memory of a step's slots and lanes, and the largest tensors that live at once while it runs.

    ``slots`` are of latents and of what is heard, exactly; the one for idle turns is not among them.
    """
    c, size, chunk = dit.config, dit.table.element_size(), dit.stream.chunk
    tokens, width, heard = chunk * dit.tokens, c.width, dit.audio_shape[0]
    update = 1 + (heard - 1) * (1 + c.heads)  # base; keys and an update, by head, for each token but the first
    audio = (update if 1 < heard <= MOST else 2 * heard) * width if c.audio else 0  # else keys and values
    slot = tokens * dit.channels * max(size, 4) + c.layers * chunk * audio * size
    lane = tokens * size * width * (4 + 3 + 2 * c.mlp_ratio)  # workspace; qkv, or the MLP before and after its GELU
    return slots * slot + lanes * lane


def cache_bytes(config: ModelConfig, rows: int, banks: int, slots: int, dtype: torch.dtype) -> int:
    """Keys and values of a cache; ``slots`` are those of a row."""
    return 2 * config.dit.layers * rows * banks * slots * config.dit.width * dtype.itemsize


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where the system does not tell, and for the meta device, which has none."""
    if device.type == "meta":
        return None
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free to PyTorch itself
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def require_memory(needed: int, device: torch.device, what: str) -> None:
    """Raise ArgumentError where ``needed`` bytes are more than what is free."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ArgumentError(
            f"{what}: expected at most what fits into the {free / 2**30:.1f} GiB that are free on {device}, "
            f"got {needed / 2**30:.1f} GiB"
        )
