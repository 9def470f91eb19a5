"""What a session hands out, and what it keeps of a generated latent frame and of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from rest_fast.config import TEMPORAL
from rest_fast.media import av_frames
from rest_fast.units import FPS

if TYPE_CHECKING:
    import av


class Pictures(NamedTuple):
    """Of one latent, uint8 [8, H, W, 3] on the host; from an accelerator they are there when ``arrived`` is."""

    frames: torch.Tensor
    arrived: torch.cuda.Event | None = None

    @classmethod
    def of(cls, decoded: torch.Tensor) -> list[Pictures]:
        """The pictures [8 n, H, W, 3] of n latents, copied; from a GPU without waiting."""
        parts = [decoded[i : i + TEMPORAL] for i in range(0, len(decoded), TEMPORAL)]
        if decoded.device.type != "cuda":
            return [cls(part.clone()) for part in parts]
        hosts = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in parts]
        for host, part in zip(hosts, parts, strict=True):
            host.copy_(part, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return [cls(host, arrived) for host in hosts]

    def numpy(self) -> np.ndarray:
        frames: np.ndarray
        if self.arrived is None:
            frames = self.frames.numpy()
        else:
            self.arrived.synchronize()
            frames = self.frames.numpy().copy()  # pinned memory is scarce, and a viewer may keep the array
        return frames


@dataclass(frozen=True, eq=False)
class Block:
    """One latent frame, 8 video frames, and their sound; or a held frame, 1 video frame without sound.

    A held frame takes no time of the stream: its ``pts`` is that of the block that is late.
    """

    video: np.ndarray  #: uint8 [8, H, W, 3]; [1, H, W, 3] where ``held``
    audio: np.ndarray  #: the caller's samples of these frames, in the caller's format; silence is zeros
    pts: float  #: seconds from the start of the stream to the first frame
    epoch: int  #: grows by one at each interrupt
    segment: int  #: grows behind each segment end and at each interrupt, so that no two segments share a number
    idle: bool  #: made from silence because nothing was due
    segment_end: bool
    true_samples: int  #: how many of ``audio`` are the caller's; fewer than all only at a segment's end or in idling
    degraded: bool = False  #: made with fewer sampling steps, which an engine does only if it is asked to
    held: bool = False  #: the last frame again, since the next block is late

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.video) / FPS

    def to_av_frames(self, first: int | None = None, *, colours: str = "ITU709") -> list[av.VideoFrame]:
        """The pictures as I420 frames with timestamps.

        Args:
            first: number of the first frame on the viewer's clock, on which held frames count, too; None: ``pts``.
            colours: ``ITU709`` as files say it, or ``ITU601``, which receivers of WebRTC assume.
        """
        start = round(self.pts * FPS) if first is None else first
        return [av_frames.video_frame(picture, start + k, colours) for k, picture in enumerate(self.video)]


@dataclass(frozen=True, eq=False)
class Latent:
    """A generated latent frame and the speech code it was made with."""

    z: torch.Tensor  # fp32 [T, C]
    code: torch.Tensor  # [A, Wa]
    idle: bool = False
    degraded: bool = False


@dataclass(frozen=True, eq=False)
class Made:
    """A block that is decoded and was not handed out. Its pictures may still be on their way from a GPU."""

    pictures: Pictures
    idle: bool
    starved: bool  # made from silence inside a segment, whose sound did not come in time
    about: dict[str, Any]  # the other fields of the block

    @property
    def arrived(self) -> bool:
        return self.pictures.arrived is None or self.pictures.arrived.query()

    def wait(self) -> None:
        if self.pictures.arrived is not None:
            self.pictures.arrived.synchronize()

    def block(self) -> Block:
        """Waits for the pictures."""
        return Block(self.pictures.numpy(), idle=self.idle, **self.about)
