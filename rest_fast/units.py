"""Units that all modules share: video frames, samples of sound, levels of a pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FPS = 25  # video frames a second
RATE = 16_000  # samples a second of the sound from which features are computed
FRAME = RATE // FPS  # samples of that sound in a video frame


def from_levels(pixels: torch.Tensor) -> torch.Tensor:
    """Levels 0..255, uint8 or floating -> fp32 (or the floating dtype) in -1..1, as networks take them.

    :func:`rest_fast.ops.frames_to_uint8` is the inverse.
    """
    return pixels / 127.5 - 1
