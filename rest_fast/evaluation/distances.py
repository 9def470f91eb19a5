"""Distances of distributions (FID, FVD) and networks that the user brings. Nothing is ever downloaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rest_fast.evaluation.sources import EvaluationError
from rest_fast.units import from_levels

WINDOW = 16  # frames of a piece of video whose features are one point of the FVD
BATCH = 32  # pictures at once
Array = NDArray[Any]


def frechet_distance(a: Array, b: Array) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of features [n, D] and [m, D]."""
    for name, features in (("a", a), ("b", b)):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != a.shape[1]:
            raise EvaluationError(f"frechet: {name}: expected at least 2 features [n, D], got {list(features.shape)}")
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.atleast_2d(np.cov(x, rowvar=False))) for x in _doubles(a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # the eigenvalues of cov_a cov_b, from a symmetric matrix: real also where few features make both singular
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * shared)


def _doubles(*arrays: Array) -> list[Array]:
    return [np.asarray(x, np.float64) for x in arrays]


def load_network(path: Path, what: str) -> Any:
    """A network that takes one tensor: TorchScript, or ``.pt2`` of ``torch.export``. Both hold code: trust the file."""
    if not path.is_file():
        raise EvaluationError(f"{what}: expected a file, got {path}")
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
        return torch.jit.load(path, map_location="cpu").eval()
    except Exception as e:  # whatever torch finds wrong with it
        line = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise EvaluationError(
            f"{what}: {path}: expected TorchScript or a .pt2, got what does not load ({line})"
        ) from None


class FID:
    """Fréchet Inception distance of frames, by torchmetrics and torch-fidelity (extra ``fid``) with the user's weights
    ``pt_inception-2015-12-05-6726825d.pth``."""

    def __init__(self, weights: Path):
        if not weights.is_file():
            raise EvaluationError(f"inception: expected a file of weights, got {weights}")
        try:
            fid = importlib.import_module("torchmetrics.image.fid")
            self.metric = fid.FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights))
        except ImportError as e:  # torchmetrics says so itself when torch-fidelity is missing
            raise ImportError(f'inception: expected pip install "rest_fast[fid]" ({e})') from None

    def add(self, real: Array, made: Array) -> None:
        """Frames uint8 [n, H, W, 3] of both kinds."""
        for frames, is_real in ((real, True), (made, False)):
            for piece in torch.from_numpy(frames).permute(0, 3, 1, 2).split(BATCH):
                self.metric.update(piece, real=is_real)

    def value(self) -> float:
        return float(self.metric.compute())


class FVD:
    """Fréchet video distance of pieces of 16 frames, with the user's TorchScript I3D (``i3d_torchscript.pt`` as
    StyleGAN-V used it)."""

    def __init__(self, network: Path):
        self.network = load_network(network, "i3d")
        self.features: tuple[list[Array], list[Array]] = ([], [])

    @torch.no_grad()
    def add(self, real: Array, made: Array) -> None:
        """Videos uint8 [n, H, W, 3] of both kinds, cut into pieces; what is left over is not looked at."""
        for frames, features in zip((real, made), self.features):
            for first in range(0, len(frames) - WINDOW + 1, WINDOW):
                video = from_levels(torch.from_numpy(frames[first : first + WINDOW]).permute(0, 3, 1, 2))
                video = F.interpolate(video, (224, 224), mode="bilinear", align_corners=False)
                x = video.transpose(0, 1)[None]  # [1, 3, 16, 224, 224]
                found = self.network(x, rescale=False, resize=False, return_features=True)
                features.append(found.flatten(1).double().numpy())

    def value(self) -> float:
        real, made = (np.concatenate(x) for x in self.features)
        return frechet_distance(real, made)


class Embedder:
    """A face recogniser of the user: TorchScript or ``.pt2`` that maps [n, 3, H, W] in -1..1 to [n, D]."""

    def __init__(self, network: Path, side: int = 112):
        self.network, self.side = load_network(network, "embedder"), side

    @torch.no_grad()
    def similarity(self, frames: Array, photo: Array) -> Array:
        """Cosine of each of the frames uint8 [n, H, W, 3] and a photo [H, W, 3]: [n]. The whole picture is shown."""
        pictures = from_levels(torch.from_numpy(np.concatenate([photo[None], frames])).permute(0, 3, 1, 2))
        pictures = F.interpolate(pictures, (self.side, self.side), mode="bilinear", antialias=True)
        found = torch.cat([self.network(piece) for piece in pictures.split(BATCH)]).flatten(1)
        return F.cosine_similarity(found[1:], found[:1]).double().numpy()
