"""SpeechAE pre-training (paper section 3.2; READ section 3.1): features to codes and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.config import TEMPORAL
from rest_fast.model import Model
from rest_fast.models.speech import SpeechDecoder
from rest_fast.training import losses
from rest_fast.training.config import TrainingConfig
from rest_fast.training.flow import clip_codes, pick
from rest_fast.training.shards import Shards


@dataclass
class SpeechBatch:
    features: torch.Tensor  # fp32 [B, 96, positions, channels]
    labels: torch.Tensor | None  # fp32 [B, 96, L]

    def to(self, device: torch.device) -> SpeechBatch:
        return SpeechBatch(self.features.to(device), None if self.labels is None else self.labels.to(device))


class SpeechData:
    def __init__(self, config: TrainingConfig, clips: Shards):
        clips.require("features")
        clips.require_speech(config.model.speech)
        if config.speech.labels:
            clips.require("labels")
        self.config, self.clips = config, clips

    def __call__(self, step: int, rows: range) -> SpeechBatch:
        picked = pick(len(self.clips), self.config.speech.batch, self.config.seed, step)
        index = [picked[row] for row in rows]
        labels = self.clips.read("labels", index)[:, 1:].float() if self.config.speech.labels else None
        return SpeechBatch(self.clips.read("features", index).float(), labels)


class Speech(nn.Module):
    """The encoder, and a decoder and a head for labels that serve training only. It is small, so it trains in fp32."""

    def __init__(self, model: Model, config: TrainingConfig, labels: int = 0):
        super().__init__()
        self.settings = config.speech
        self.encoder, self.decoder = model.speech, SpeechDecoder(model.config.speech)
        codes = model.config.speech.tokens * model.config.speech.width
        self.head = nn.Linear(codes, TEMPORAL * labels) if labels else None

    def forward(self, batch: SpeechBatch) -> dict[str, torch.Tensor]:
        settings = self.settings
        codes = clip_codes(self.encoder, batch.features)
        again = self.decoder(codes)
        terms = {
            "reconstruction": losses.reconstruction(again, batch.features),
            "contrastive": losses.frame_contrastive(again, batch.features, settings.temperature),
        }
        total = settings.reconstruction * terms["reconstruction"] + settings.contrastive * terms["contrastive"]
        if self.head is not None and batch.labels is not None:
            read = self.head(codes.flatten(2)).unflatten(2, (TEMPORAL, -1)).flatten(1, 2)
            terms["labels"] = F.mse_loss(read, batch.labels)
            total = total + settings.labels * terms["labels"]
        return {"loss": total, **terms}
