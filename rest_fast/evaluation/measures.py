"""Numbers from videos and readings; every one has a known answer on a constructed input.

A video is float [3, n, H, W] in -1..1 with the reference as frame 0; a reading is a curve [n].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast.config import TEMPORAL

Array = NDArray[Any]
LAGS = tuple(range(-5, 6))  # frames


def correlation(a: Array, b: Array) -> float:
    """Pearson's r of two curves; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0


def lag_correlations(reading: Array, truth: Array) -> Array:
    """r at each of :data:`LAGS`; a positive lag is a reading that comes after the truth."""
    n = len(truth)
    # the stretches of both that lie above each other once the reading is moved
    pairs = [(reading[max(lag, 0) :][: n - abs(lag)], truth[max(-lag, 0) :][: n - abs(lag)]) for lag in LAGS]
    return np.array([correlation(*pair) for pair in pairs])


def best_lag(correlations: Array) -> int:
    """The lag in frames at which correlations [lags] are highest."""
    return LAGS[int(np.argmax(correlations))]


def psnr(mse: float) -> float:
    """dB of a mean squared error of pixels in -1..1."""
    return float(-10 * np.log10(mse / 4))


def _border_changes(video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean change of pixels (at latent borders [m], inside latents) of the generated frames 1 .. n - 1."""
    change = video[:, 1:].diff(dim=1).abs().mean((0, 2, 3))  # between generated frames k and k + 1
    border = torch.arange(len(change)) % TEMPORAL == TEMPORAL - 1
    return change[border], change[~border]


def border_ratio(video: torch.Tensor) -> float:
    """Change of pixels from frame to frame at latent borders over that inside latents; 1 is smooth."""
    border, inner = _border_changes(video)
    return float(border.mean() / inner.mean())


def chunk_border_ratio(video: torch.Tensor, chunk: int) -> float:
    """Change at borders of chunks of that many latents over that at the other latent borders."""
    border, _ = _border_changes(video)
    at_chunk = torch.arange(len(border)) % chunk == chunk - 1
    return float(border[at_chunk].mean() / border[~at_chunk].mean())


def colour_change(frames: Array, reference: Array) -> float:
    """Levels of 255 by which the mean colour of frames [n, H, W, 3] (or of their mean colours [n, 3]) differs from
    that of a reference [H, W, 3], averaged over the channels."""
    mean, wanted = (x.reshape(-1, 3).mean(0, dtype=np.float64) for x in (frames, reference))
    return float(np.abs(mean - wanted).mean())


def summary(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


@dataclass(frozen=True)
class Bar:
    """A number and the range that it must lie in, ends included; None is open."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""  # stands beside the name

    @property
    def passed(self) -> bool:
        """NaN passes nothing."""
        low = -np.inf if self.low is None else self.low
        high = np.inf if self.high is None else self.high
        return bool(low <= self.value <= high)

    def report(self) -> dict[str, Any]:
        return vars(self) | {"passed": self.passed}
