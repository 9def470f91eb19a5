"""From features of video frames to the audio tokens of latent frames, as SoulX-FlashHead hears them."""

from __future__ import annotations

import torch
from torch import nn

from rest_fast.config import TEMPORAL
from rest_fast.config.flashhead import FlashHeadConfig


def windows(features: torch.Tensor, frames: int, width: int) -> torch.Tensor:
    """The features that the last ``frames`` video frames hear: [B, n, L, C] -> [B, frames, width, L, C].

    A frame stands in the middle of ``width`` frames. Behind the end nothing is known: the last frame stands for it.
    """
    end = features.shape[1]
    centre = torch.arange(end - frames, end, device=features.device)
    around = torch.arange(width, device=features.device) - width // 2
    return features[:, (centre[:, None] + around).clamp(0, end - 1)]


class AudioProjection(nn.Module):
    """The first latent frame is one video frame and hears its whole window. A later one is eight: of these the first
    one's window up to itself, the own features of six, and the last one's window from itself on."""

    def __init__(self, config: FlashHeadConfig):
        super().__init__()
        dit, speech = config.dit, config.speech
        self.frames, self.window, self.tokens = config.stream.frames, dit.audio_window, dit.audio_tokens
        each, hidden = speech.layers * speech.width, dit.audio_hidden
        self.first = nn.Linear(self.window * each, hidden)
        self.later = nn.Linear((TEMPORAL - 1 + self.window) * each, hidden)
        self.mix, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, self.tokens * dit.width)
        self.norm = nn.LayerNorm(dit.width, eps=dit.audio_eps)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, n, L, C] of video frames, of which the last are those of a window -> [B, F, A, W]."""
        seen = windows(features, self.frames, self.window).to(self.first.weight.dtype)
        middle = self.window // 2
        groups = seen[:, 1:].unflatten(1, (-1, TEMPORAL))
        parts = [groups[:, :, 0, : middle + 1], groups[:, :, 1:-1, middle], groups[:, :, -1, middle:]]
        first = self.first(seen[:, :1].flatten(2)).relu()
        later = self.later(torch.cat(parts, 2).flatten(2)).relu()
        tokens = self.out(self.mix(torch.cat([first, later], 1)).relu()).unflatten(-1, (self.tokens, -1))
        return self.norm(tokens)
