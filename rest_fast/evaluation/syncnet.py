"""Sync-C and Sync-D by the public SyncNet (Chung and Zisserman 2016, "Out of time"), with the user's weights.

Not compared with the original program: the network, its inputs and the scores follow its description (25 fps, 5 frames
of 224 x 224, 13 cepstral coefficients at 100 Hz, offsets up to 15 frames). The original cuts the face out with a
detector first; here it gets the whole portrait. So compare these numbers with each other, not with those of papers.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from rest_fast.evaluation.sources import EvaluationError
from rest_fast.units import RATE

SIDE, FRAMES = 224, 5  # of what the picture's half sees
STEPS, PER_FRAME = 20, 4  # cepstra of 10 ms that the sound's half sees, and those of one frame
REACH = 15  # frames of offset
BATCH = 16
Array = NDArray[Any]


def _layers(convolution: type, norm: type, plan: list[Any]) -> nn.Sequential:
    """Convolutions (channels in, out, kernel, stride, padding), each with norm and ReLU; a module stands for itself."""
    layers: list[nn.Module] = []
    for entry in plan:
        layers += [entry] if isinstance(entry, nn.Module) else [convolution(*entry), norm(entry[1]), nn.ReLU()]
    return nn.Sequential(*layers)


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 1024))


class SyncNetwork(nn.Module):
    """Two halves that map matching pictures and sound to near points; attributes are named as in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = _layers(
            nn.Conv2d,
            nn.BatchNorm2d,
            [
                (1, 64, 3, 1, 1),
                nn.MaxPool2d(1, 1),
                (64, 192, 3, 1, 1),
                nn.MaxPool2d(3, (1, 2)),
                (192, 384, 3, 1, 1),
                (384, 256, 3, 1, 1),
                (256, 256, 3, 1, 1),
                nn.MaxPool2d(3, 2),
                (256, 512, (5, 4), 1, 0),
            ],
        )
        self.netcnnlip = _layers(
            nn.Conv3d,
            nn.BatchNorm3d,
            [
                (3, 96, (5, 7, 7), (1, 2, 2), 0),
                nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
                (96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)),
                nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
                (256, 256, (1, 3, 3), 1, (0, 1, 1)),
                (256, 256, (1, 3, 3), 1, (0, 1, 1)),
                (256, 256, (1, 3, 3), 1, (0, 1, 1)),
                nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
                (256, 512, (1, 6, 6), 1, 0),
            ],
        )
        self.netfcaud, self.netfclip = _head(), _head()

    def sound(self, cepstra: torch.Tensor) -> torch.Tensor:
        """[n, 1, 13, 20] -> [n, 1024]."""
        out: torch.Tensor = self.netfcaud(self.netcnnaud(cepstra).flatten(1))
        return out

    def lips(self, pictures: torch.Tensor) -> torch.Tensor:
        """[n, 3, 5, 224, 224] in 0..255, channels blue, green, red -> [n, 1024]."""
        out: torch.Tensor = self.netfclip(self.netcnnlip(pictures).flatten(1))
        return out


class SyncNet:
    """Scores a video with its sound; cepstra by python_speech_features (extra ``syncnet``)."""

    def __init__(self, weights: Path):
        if not weights.is_file():
            raise EvaluationError(f"syncnet: expected a file of weights, got {weights}")
        try:
            self.mfcc = importlib.import_module("python_speech_features").mfcc
        except ImportError as e:
            raise ImportError(f'syncnet: expected pip install "rest_fast[syncnet]" ({e})') from None
        self.network = SyncNetwork()
        try:
            self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as e:  # whatever torch finds wrong with it
            line = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise EvaluationError(
                f"syncnet: {weights}: expected weights of syncnet_v2, got other ones ({line})"
            ) from None
        self.network.eval().requires_grad_(False)

    def score(self, frames: Array, sound: Array) -> tuple[float, float]:
        """Sync-C (confidence) and Sync-D (distance) of a video uint8 [n, H, W, 3] and its sound [640 n] at 16 kHz."""
        if len(frames) < FRAMES + 1:
            raise EvaluationError(f"syncnet: expected at least {FRAMES + 1} frames, got {len(frames)}")
        return sync_scores(self.embed_lips(frames), self.embed_sound(sound))

    @torch.no_grad()
    def embed_lips(self, frames: Array) -> torch.Tensor:
        """[n - 5, 1024]: of the frames i .. i + 4."""
        video = torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float()
        video = F.interpolate(video, (SIDE, SIDE), mode="bilinear", antialias=True).transpose(0, 1)
        starts = torch.arange(len(frames) - FRAMES).split(BATCH)
        pieces = (torch.stack([video[:, i : i + FRAMES] for i in part.tolist()]) for part in starts)
        return torch.cat([self.network.lips(piece) for piece in pieces])

    @torch.no_grad()
    def embed_sound(self, sound: Array) -> torch.Tensor:
        """[n - 5, 1024]: of the 0.2 s that begin with frame i."""
        scaled = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
        cepstra = torch.from_numpy(np.asarray(self.mfcc(scaled, RATE), np.float32)).T  # [13, 100 a second]
        count = min((cepstra.shape[1] - STEPS) // PER_FRAME + 1, len(sound) // (RATE // 25) - FRAMES)
        pieces = [cepstra[:, PER_FRAME * i : PER_FRAME * i + STEPS] for i in range(count)]
        return torch.cat([self.network.sound(piece[:, None]) for piece in torch.stack(pieces).split(4 * BATCH)])


def sync_scores(lips: torch.Tensor, sound: torch.Tensor) -> tuple[float, float]:
    """Confidence and distance of embeddings [n, D] and [m, D], one a frame: distances at all offsets up to 15 frames,
    averaged over the frames; the smallest is the distance, the median less the smallest the confidence."""
    count = min(len(lips), len(sound))
    padded = F.pad(sound[:count], (0, 0, REACH, REACH))
    windows = padded.unfold(0, 2 * REACH + 1, 1)[:count].transpose(1, 2)  # [n, offsets, D]
    mean = torch.linalg.vector_norm(lips[:count, None] - windows + 1e-6, dim=2).mean(0)
    return float(mean.median() - mean.min()), float(mean.min())
