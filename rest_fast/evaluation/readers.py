"""Two instruments that read the mouth of a video, fitted on true training clips only.

They stand beside each other since each is blind to something: the pixels show what a viewer sees, muted by the VAE's
decoder; the latents show what the DiT does, whatever the decoder makes of it. So those of a generated video are the
DiT's own, never the video encoded again; those of the truth are the encoder's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from rest_fast.config import TEMPORAL
from rest_fast.errors import ArgumentError
from rest_fast.model import Model
from rest_fast.training.synthetic.clips import FRAMES, Clips
from rest_fast.training.synthetic.portraits import GEOMETRY
from rest_fast.units import from_levels

ROWS, COLUMNS = (56, 112), (32, 96)  # of the lower face at 128 x 128
SHIFT = 3  # pixels by which training crops are moved at most
TARGETS = [GEOMETRY.index("gap"), GEOMETRY.index("width")]
Array = NDArray[Any]


class PixelReader(nn.Module):
    """A small CNN on the lower face of single frames: mouth gap and width in pixels of a 128 px picture."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.GroupNorm(4, 32),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GroupNorm(8, 64),
            nn.SiLU(),
            nn.Conv2d(64, 16, 1),
            nn.Flatten(),  # 16 x 7 x 8
            nn.Linear(896, 64),
            nn.SiLU(),
            nn.Linear(64, len(TARGETS)),
        )
        self.register_buffer("mean", torch.zeros(len(TARGETS)))
        self.register_buffer("std", torch.ones(len(TARGETS)))

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Crops [n, 3, 56, 64] in -1..1 -> standardised [n, 2]."""
        out: torch.Tensor = self.net(crops)
        return out

    @torch.no_grad()
    def read(self, video: torch.Tensor) -> Array:
        """Gap and width in pixels of all frames of a video [3, n, 128, 128] in -1..1: [n, 2]."""
        if video.shape[-2:] != (128, 128):
            raise ArgumentError(f"reader: expected a video of 128 x 128, got {list(video.shape)}")
        crops = video[..., slice(*ROWS), slice(*COLUMNS)].transpose(0, 1)
        out = torch.cat([self(piece) for piece in crops.split(128)]) * self.std + self.mean
        return out.numpy()

    def save(self, path: Path) -> None:
        save_file(self.state_dict(), path)

    @classmethod
    def load(cls, path: Path) -> PixelReader:
        reader = cls()
        reader.load_state_dict(load_file(path))
        return reader.eval().requires_grad_(False)


def at_128(video: torch.Tensor) -> torch.Tensor:
    """A video [3, n, H, W] at the size that :class:`PixelReader` takes, [3, n, 128, 128]."""
    if video.shape[-2:] == (128, 128):
        return video
    return F.interpolate(video.transpose(0, 1), (128, 128), mode="bilinear", antialias=True).transpose(0, 1)


def training_crops(clips: Clips, count: int = 1000, frames: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower faces with a rim for shifts, uint8 [M, 62, 70, 3], and their gap and width [M, 2], of random frames."""
    rng = np.random.default_rng(0)
    rows, columns = (slice(low - SHIFT, high + SHIFT) for low, high in (ROWS, COLUMNS))
    crops, targets = [], []
    for clip in rng.permutation(len(clips))[:count]:
        picks = np.sort(rng.choice(FRAMES, frames, replace=False))
        whole = at_128(torch.from_numpy(np.stack([clips.video[clip, i] for i in picks])).permute(3, 0, 1, 2).float())
        crops.append(whole[:, :, rows, columns].round().byte().permute(1, 2, 3, 0))
        targets.append(np.asarray(clips.geometry[clip])[picks][:, TARGETS])
    return torch.cat(crops), torch.from_numpy(np.concatenate(targets))


def fit_pixel_reader(
    crops: torch.Tensor, targets: torch.Tensor, *, steps: int = 800, batch: int = 128, peak: float = 2e-3, seed: int = 0
) -> PixelReader:
    """Fit on crops uint8 [M, 62, 70, 3] and targets [M, 2] in pixels; the same bits for the same seed.

    Half of each batch is blurred, so that the reader does not take a decoder's softness for a shut mouth.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = PixelReader()
    reader.mean.copy_(targets.mean(0))
    reader.std.copy_(targets.std(0).clamp(min=1e-3))
    wanted = (targets - reader.mean) / reader.std
    optimiser = torch.optim.AdamW(reader.parameters(), lr=peak, weight_decay=0.01)
    course = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps, pct_start=0.1)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(len(crops), (batch,), generator=g)
        optimiser.zero_grad()
        F.smooth_l1_loss(reader(_augment(crops[index], g)), wanted[index]).backward()
        optimiser.step()
        course.step()
    return reader.eval().requires_grad_(False)


def _augment(crops: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """uint8 [n, 62, 70, 3] -> [n, 3, 56, 64] in about -1..1: shifted, brighter or darker, the first half blurred."""
    pixels = from_levels(crops.permute(0, 3, 1, 2))
    height, width = ROWS[1] - ROWS[0], COLUMNS[1] - COLUMNS[0]
    moves = torch.randint(2 * SHIFT + 1, (len(crops), 2), generator=g).tolist()
    pixels = torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(pixels, moves)])
    gain, offset = (torch.rand(2, len(crops), 1, 1, 1, generator=g) - 0.5) * 0.2
    pixels = pixels * (1 + gain) + offset
    sigma = 0.3 + 0.9 * float(torch.rand(1, generator=g))
    half = len(crops) // 2
    return torch.cat([blur(pixels[:half], sigma), pixels[half:]])


def blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of [n, 3, H, W]."""
    line = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    line = (line / line.sum()).expand(3, 1, 1, -1)
    pixels = F.conv2d(F.pad(pixels, (3, 3, 3, 3), "replicate"), line, groups=3)
    return F.conv2d(pixels, line.mT, groups=3)


class LatentReader:
    """Ridge regression from the linear latents of a latent frame, [T C], to the gaps of its 8 frames."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, ridge: float = 300.0):
        """Fit on latents x [M, T C] and gaps y [M, 8] in pixels."""
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        x, y = x - self.x_mean, y - self.y_mean
        self.weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y)

    @classmethod
    def fit(cls, model: Model, clips: Clips, count: int = 400) -> LatentReader:
        chosen = range(min(count, len(clips)))
        x = torch.cat([latents(model, clips.pixels(i)) for i in chosen])
        y = torch.cat([torch.from_numpy(clips.gap(i)[1:].copy()).unflatten(0, (-1, TEMPORAL)) for i in chosen])
        return cls(x, y)

    def __call__(self, x: torch.Tensor) -> Array:
        """Latents [m, T C] -> gap in pixels of their frames, [8 m]."""
        return ((x - self.x_mean) @ self.weight + self.y_mean).flatten().numpy()


@torch.no_grad()
def latents(model: Model, video: torch.Tensor) -> torch.Tensor:
    """Video [3, 1 + 8 m, H, W] in -1..1 -> latents of the frames behind the reference, [m, T C]."""
    return flat(model.vae.encode(video[None]))


def flat(z: torch.Tensor) -> torch.Tensor:
    """Latents [1, C, 1 + m, h, w] -> those behind the reference, each as its tokens [T, C] in a row: [m, T C]."""
    return z[0, :, 1:].flatten(2).permute(1, 2, 0).flatten(1).float().cpu()
