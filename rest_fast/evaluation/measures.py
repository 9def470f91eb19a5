"""Numbers from videos and readings; every one has a known answer on a constructed input.

A video is uint8 [n, H, W, 3] without the reference; a reading is a curve [n].
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rest_fast.config import TEMPORAL
from rest_fast.training.losses import MOUTH

Array = NDArray[Any]
LAGS = tuple(range(-5, 6))  # frames


def correlation(a: Array, b: Array) -> float:
    """Pearson's r of two curves; 0 where one of them is constant, NaN where one is not known."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size != 0 else 0.0


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


def mouth_box(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the lower face of a portrait, heads in the middle."""
    top, bottom, left, right = MOUTH
    return slice(top * height // 128, bottom * height // 128), slice(left * width // 128, right * width // 128)


def ssim_library() -> Any:
    """What computes :func:`ssim`. ImportError: names the extra."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise ImportError('ssim: expected scikit-image: pip install "rest_fast[evaluate]"') from None
    return structural_similarity


def ssim(a: Array, b: Array, *, span: float) -> float:
    """Structural similarity of two pictures [H, W] or [H, W, 3] whose values can differ by ``span``; 1 is equal.

    Gaussian windows of 11 x 11 as in Wang et al. 2004, by scikit-image (extra ``evaluate``); colours are averaged.
    """
    structural_similarity = ssim_library()
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(a, b, data_range=span, channel_axis=2 if a.ndim == 3 else None, **wang))


def changes(frames: Array) -> Array:
    """Mean change of pixels of frames [n, H, W, 3] from each to the next, in their units, [n - 1]."""
    return np.array([np.abs(b.astype(np.float32) - a).mean() for a, b in itertools.pairwise(frames)])


def border_ratio(changes: Array) -> float:
    """Mean change at latent borders over that inside latents, of the changes [n - 1] between frames 0 .. n - 1 (the
    reference is none of them); 1 is smooth."""
    border = np.arange(len(changes)) % TEMPORAL == TEMPORAL - 1
    return float(changes[border].mean() / changes[~border].mean())


def chunk_ratio(changes: Array, chunk: int) -> float:
    """Mean of the changes [m - 1] between latents 0 .. m - 1 at borders of chunks over that at other borders; those
    that are NaN do not count."""
    at_chunk = np.arange(len(changes)) % chunk == chunk - 1
    return float(np.nanmean(changes[at_chunk]) / np.nanmean(changes[~at_chunk]))


def latent_chunk_ratio(latents: Array, chunk: int) -> float:
    """Change of latents [m, ...] from one to the next (root mean square) at borders of chunks over that elsewhere.

    The decoder has no part in it.
    """
    step = np.diff(latents.reshape(len(latents), -1), axis=0)
    return chunk_ratio(np.sqrt(np.square(step).mean(1)), chunk)


def border_bends(place: Array) -> Array:
    """How abruptly a head at ``place`` [n] moves between frames k and k + 1, [n - 1]; NaN at both ends.

    The mean size of the two second differences that see both frames: a jump of the place and one of the velocity show.
    """
    second = np.abs(np.diff(place, 2))  # [i] is that of frames i .. i + 2
    return np.concatenate([[np.nan], (second[:-1] + second[1:]) / 2, [np.nan]])


def motion_chunk_ratio(place: Array, chunk: int) -> float:
    """:func:`border_bends` at borders of chunks over that at the other latent borders, where a decoder leaves the same
    mark of its own."""
    return chunk_ratio(border_bends(place)[TEMPORAL - 1 :: TEMPORAL], chunk)


def colour_change(frames: Array, reference: Array) -> float:
    """Levels of 255 by which the mean colour of frames [n, H, W, 3] (or of their mean colours [n, 3]) differs from
    that of a reference [H, W, 3], averaged over the channels."""
    mean, wanted = (x.reshape(-1, 3).mean(0, dtype=np.float64) for x in (frames, reference))
    return float(np.abs(mean - wanted).mean())


def summary(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation of what is known (not NaN); NaN where nothing is."""
    known = [v for v in values if not np.isnan(v)]
    return {"mean": float(np.mean(known)), "std": float(np.std(known))} if known else {"mean": np.nan, "std": np.nan}


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
