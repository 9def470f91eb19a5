"""What is counted in what: frames, samples, levels of a pixel. Once, for all modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FPS = 25  # video frames a second
RATE = 16_000  # samples a second of the sound that features are made of
FRAME = RATE // FPS  # of these samples in a video frame


def from_levels(pixels: torch.Tensor) -> torch.Tensor:
    """Levels 0..255, uint8 or floating -> fp32 (or the floating dtype) in -1..1, as networks take them.

    Back goes :func:`rest_fast.ops.frames_to_uint8`.
    """
    return pixels / 127.5 - 1
