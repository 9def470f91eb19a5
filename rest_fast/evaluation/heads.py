"""Where the head is in each frame, and how far its upper face has gone from the photo's.

No weights: the photo's own upper face is found again in each frame by least squares (Lucas and Kanade 1981, shifts
only). What still differs once it lies on the photo's is no shift, hence a change of the person; turning, blinking and
brows differ, too, so a drift is read against the first seconds or against true video, never against 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rest_fast.errors import ArgumentError
from rest_fast.evaluation.measures import ssim

ROWS, COLUMNS = (0.125, 0.53), (0.235, 0.765)  # of the picture's height and width: from the hair to the nose
COARSE, FINE = 4.0, 1.5  # blur in pixels of a 128 px picture: first for a wide basin, then for a sharp minimum
FLAT = 1e-3  # levels of 255: a picture with less contrast has no shape
STEPS = 6  # Gauss-Newton steps at each
Array = NDArray[Any]


class HeadTracker:
    """Finds the upper face of a photo in frames of the same size."""

    def __init__(self, photo: Array):
        """``photo``: uint8 [H, W, 3]."""
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise ArgumentError(f"head: photo: expected uint8 [H, W, 3], got {photo.dtype} {list(photo.shape)}")
        self.size = height, width = photo.shape[:2]
        spans = ((ROWS, height), (COLUMNS, width))
        rows, columns = (torch.arange(round(a * n), round(b * n)).float() for (a, b), n in spans)
        self.y, self.x = torch.meshgrid(rows, columns, indexing="ij")
        self.levels = [self._level(photo, sigma * height / 128) for sigma in (COARSE, FINE)]

    def track(self, frames: Array) -> Array:
        """How far right and down of the photo's the head lies in frames uint8 [n, H, W, 3]: pixels [n, 2].

        Vertically blinks and brows pull at it; docs/evaluation.md says how well it finds drawn heads.
        """
        grey, place = self._grey(frames), torch.zeros(len(frames), 2)
        for sigma, face, descent in self.levels:
            blurred = blur(grey, sigma)
            for _ in range(STEPS):
                error = _standard(self._sample(blurred, place)) - _standard(face)
                place = place - torch.einsum("nyx,yxd->nd", error, descent)
        return place.numpy()

    def drift(self, frames: Array, place: Array) -> Array:
        """1 - SSIM of the photo's upper face and that of frames uint8 [n, H, W, 3] with the head at ``place`` [n, 2]
        (as :meth:`track` gives it), both blurred, since a decoder's softness is no other person: [n]."""
        sigma, face, _ = self.levels[-1]
        found = self._sample(blur(self._grey(frames), sigma), torch.from_numpy(place))
        return np.array([1 - ssim(one.numpy(), face[0].numpy(), span=255) for one in found])

    def _level(self, photo: Array, sigma: float) -> tuple[float, torch.Tensor, torch.Tensor]:
        """Blur, face [1, h, w], and what an error [h, w] says about the place, [h, w, 2]."""
        blurred = blur(self._grey(photo[None]), sigma)
        steps = torch.tensor([[0.0, 0.0], [0.5, 0.0], [-0.5, 0.0], [0.0, 0.5], [0.0, -0.5]])
        face, right, left, down, up = self._sample(blurred.expand(5, -1, -1), steps)
        slope = torch.stack([right - left, down - up], -1) / face.std().clamp(min=FLAT)
        normal = torch.einsum("yxd,yxe->de", slope, slope)
        return sigma, face[None], slope @ torch.linalg.pinv(normal)  # a flat photo has no slope: nothing is found

    def _grey(self, frames: Array) -> torch.Tensor:
        if frames.shape[1:] != (*self.size, 3):
            raise ArgumentError(
                f"head: frames: expected [n, {self.size[0]}, {self.size[1]}, 3], got {list(frames.shape)}"
            )
        return torch.from_numpy(frames.mean(3, dtype=np.float32))

    def _sample(self, grey: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The region of pictures [n, H, W], moved by ``place`` [n, 2]: [n, h, w]."""
        height, width = self.size
        x = (self.x + place[:, 0, None, None]) * 2 / (width - 1) - 1
        y = (self.y + place[:, 1, None, None]) * 2 / (height - 1) - 1
        grid = torch.stack([x, y], -1)
        return F.grid_sample(grey[:, None], grid, padding_mode="border", align_corners=True)[:, 0]


def _standard(x: torch.Tensor) -> torch.Tensor:
    """[n, h, w] without brightness and contrast."""
    return (x - x.mean((1, 2), keepdim=True)) / x.std((1, 2), keepdim=True).clamp(min=FLAT)


def blur(grey: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of [n, H, W]."""
    reach = int(3 * sigma) + 1
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    line = (line / line.sum()).expand(1, 1, 1, -1)
    padded = F.pad(grey[:, None], (reach, reach, reach, reach), "replicate")
    return F.conv2d(F.conv2d(padded, line), line.mT)[:, 0]
