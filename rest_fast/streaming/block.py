"""What a session hands out, and what it keeps of a generated latent frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rest_fast.units import FPS


@dataclass(frozen=True, eq=False)
class Block:
    """One latent frame: 8 video frames and their sound."""

    video: np.ndarray  # uint8 [8, H, W, 3]
    audio: np.ndarray  # the caller's samples of these frames, in the caller's format; silence is zeros
    pts: float  # seconds from the start of the stream to the first frame
    epoch: int  # grows by one at each interrupt
    segment: int  # grows behind each segment end and at each interrupt, so that no two segments share a number
    idle: bool  # made from silence because nothing was due
    segment_end: bool
    true_samples: int  # how many of ``audio`` are the caller's; fewer than all only at a segment's end or in idling
    degraded: bool = False  # made with less work than the preset asks for; a session never does that

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.video) / FPS


@dataclass(frozen=True, eq=False)
class Latent:
    """A generated latent frame and the speech code it was made with."""

    z: torch.Tensor  # fp32 [T, C]
    code: torch.Tensor  # [A, Wa]
    idle: bool = False
