"""Trains the motion VAE's encoder to read what moves off single pictures: heads in three dimensions and drawn faces.

Its codes are those that :func:`~rest_fast.training.motion_pairs.labels_to_codes` gives to the true motion labels, so
that decoder and encoder fit together without having met.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.models.vae.motion import MotionEncoder, at_work_size
from rest_fast.training.config import TrainingConfig
from rest_fast.training.flow import autocast, step_generator
from rest_fast.training.motion_pairs import PairBatches, coloured, labels_to_codes, scales
from rest_fast.training.synthetic.clips import Clips
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION
from rest_fast.training.synthetic.visemes import MOUTH

# How much an error of a label counts.
WEIGHTS = dict.fromkeys(HEAD_MOTION, 1.0) | dict.fromkeys(MOUTH, 3.0) | {"smile": 3.0, "blink": 2.0}
BESIDE = 0.1  # weight of what lies beside the codes that stand for labels


@dataclass(eq=False)
class PictureBatch:
    pictures: torch.Tensor  # [N, 3, 128, 128] in -1..1
    labels: torch.Tensor  # [N, 14], scaled

    def to(self, device: torch.device) -> PictureBatch:
        return PictureBatch(self.pictures.to(device), self.labels.to(device))


class PictureBatches:
    """All frames of a batch of people, and ``drawn`` frames of drawn clips beside each of them."""

    def __init__(self, people: PairBatches, clips: Clips | None = None, drawn: int = 1):
        self.people, self.clips, self.drawn = people, clips, drawn if clips is not None else 0
        self.scales = scales()

    def __call__(self, step: int, rows: range) -> PictureBatch:
        batch = self.people(step, rows)
        pictures = [batch.photo, *batch.frames]
        labels = [batch.labels[:, 0], *batch.labels[:, 1:]]
        for row in rows:
            for n in range(self.drawn):
                picture, label = self._drawn(step_generator(self.people.seed, step, 1_000_000 + self.drawn * row + n))
                pictures.append(picture)
                labels.append(label)
        return PictureBatch(torch.cat(pictures), torch.cat(labels))

    def _drawn(self, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.clips is not None
        clip, frame = (int(torch.randint(n, (1,), generator=g)) for n in self.clips.video.shape[:2])
        picture = self.clips.pixels(clip, slice(frame, frame + 1)).transpose(0, 1)
        motion = torch.from_numpy(np.array(self.clips.motion[clip, frame]))
        label = F.pad(motion, (0, len(HEAD_MOTION) - len(motion)))  # drawn faces do not smile, heads do
        return coloured(at_work_size(picture), g), (label * self.scales)[None]


class MotionEncoderStage(nn.Module):
    """Codes against those of the true labels."""

    codes: torch.Tensor
    weights: torch.Tensor

    def __init__(self, encoder: MotionEncoder, config: TrainingConfig):
        super().__init__()
        self.config = config
        self.encoder = encoder.requires_grad_(True)
        self.register_buffer("codes", labels_to_codes(encoder.frame_channels), persistent=False)
        self.register_buffer("weights", torch.tensor([WEIGHTS[n] for n in HEAD_MOTION]), persistent=False)

    def forward(self, batch: PictureBatch) -> dict[str, torch.Tensor]:
        with autocast(self.config, batch.pictures.device):
            z = self.encoder.codes(batch.pictures).flatten(1)
        z = z.float()
        read = z @ self.codes
        errors = F.smooth_l1_loss(read, batch.labels, reduction="none", beta=0.3)
        beside = (z - read @ self.codes.T).square().mean()
        loss = (self.weights * errors).mean() + BESIDE * beside
        named = {f"error of {name}": error for name, error in zip(HEAD_MOTION, (read - batch.labels).abs().mean(0))}
        return {"loss": loss, "beside": beside, **{k: named[k] for k in ("error of open", "error of blink")}}
