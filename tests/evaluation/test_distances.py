"""Fréchet distances against the closed form for Gaussians; networks that the user brings."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from rest_fast.evaluation import distances
from rest_fast.evaluation.distances import FID, FVD, Embedder, frechet_distance
from rest_fast.evaluation.sources import EvaluationError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what public networks come as


def features(mean: np.ndarray, covariance: np.ndarray, count: int = 40, seed: int = 0) -> np.ndarray:
    """Random points with exactly this mean and this sample covariance."""
    x = np.random.default_rng(seed).standard_normal((count, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False)))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_lines():
    """One dimension: (m1 - m2)^2 + (s1 - s2)^2."""
    a, b = (features(np.array([m]), np.array([[s * s]]), seed=i) for i, (m, s) in enumerate(((1, 2), (4, 0.5))))
    assert frechet_distance(a, b) == pytest.approx(9 + 2.25)


def test_frechet_distance_of_gaussians():
    """Covariances with the same axes: |m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2. In general the distance is symmetric,
    0 for itself, and does not change under a rotation of both."""
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    one, two = rng.uniform(0.1, 4, (2, 5))
    means = rng.standard_normal((2, 5))
    a, b = (features(m, turn * v @ turn.T, seed=i) for i, (m, v) in enumerate(zip(means, (one, two))))
    want = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(one) - np.sqrt(two)).sum()
    assert frechet_distance(a, b) == pytest.approx(want)
    c = rng.standard_normal((30, 5)) @ rng.standard_normal((5, 5))
    assert frechet_distance(a, c) == pytest.approx(frechet_distance(c @ turn, a @ turn))
    assert frechet_distance(c, c) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_fewer_points_than_dimensions():
    """A shift is a shift, however singular the covariances."""
    x = np.random.default_rng(2).standard_normal((6, 50))
    assert frechet_distance(x, x + 0.5) == pytest.approx(50 * 0.25)


def test_frechet_distance_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((60, 8)), rng.standard_normal((50, 8)) @ rng.standard_normal((8, 8)) + 1
    stats = [(torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x, rowvar=False))) for x in (a, b)]
    want = fid._compute_fid(*stats[0], *stats[1])
    assert frechet_distance(a, b) == pytest.approx(float(want), rel=1e-6)


def test_points_are_checked():
    with pytest.raises(EvaluationError, match="at least 2 features"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(EvaluationError, match=r"frechet: b: .* got \[5, 4\]"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))


class Means(nn.Module):
    """Stands for an I3D: the mean of the first frame and that of the last one, in 0..255."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and not resize and return_features
        assert x.shape[1:] == (3, 16, 224, 224)
        levels = (x + 1) * 127.5
        return torch.stack([levels[:, :, 0].mean((1, 2, 3)), levels[:, :, -1].mean((1, 2, 3))], 1)


def test_fvd_is_over_pieces_of_16_frames(tmp_path):
    torch.jit.script(Means()).save(tmp_path / "i3d.pt")
    meter = FVD(tmp_path / "i3d.pt")
    levels = np.arange(70, dtype=np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (70, 32, 32, 3)).copy()
    meter.add(video, video + 7)
    np.testing.assert_allclose(meter.features[0], [[[i, i + 15]] for i in (0, 16, 32, 48)], atol=1e-3)
    assert meter.value() == pytest.approx(2 * 7**2, rel=1e-4)


class Colour(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) + 1


@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_similarity_of_faces_is_a_cosine(tmp_path, kind):
    path = tmp_path / f"face.{kind}"
    if kind == "pt":
        torch.jit.script(Colour()).save(path)
    else:
        shape = ({0: torch.export.Dim("n")},)
        torch.export.save(torch.export.export(Colour(), (torch.zeros(2, 3, 112, 112),), dynamic_shapes=shape), path)
    photo, frames = np.zeros((64, 64, 3), np.uint8), np.zeros((3, 64, 64, 3), np.uint8)
    photo[..., 0] = 200  # red
    frames[0, ..., 0] = 100  # darker red
    frames[1, ..., 1] = 100  # green
    frames[2, ..., :2] = 100  # both
    np.testing.assert_allclose(Embedder(path).similarity(frames, photo), [1, 0, 0.5**0.5], atol=1e-4)


@pytest.mark.parametrize("make", [FVD, Embedder])
def test_networks_that_do_not_load(tmp_path, make):
    with pytest.raises(EvaluationError, match=r"(i3d|embedder): expected a file, got .*none\.pt"):
        make(tmp_path / "none.pt")
    for name in ("text.pt", "text.pt2"):
        (tmp_path / name).write_text("no network")
        with pytest.raises(EvaluationError, match=f"{name}: expected TorchScript"):
            make(tmp_path / name)


def test_fid_names_what_it_needs(tmp_path, monkeypatch):
    with pytest.raises(EvaluationError, match="inception: expected a file of weights"):
        FID(tmp_path / "none.pth")
    (tmp_path / "some.pth").write_text("")

    def without(name):
        raise ImportError(f"No module named {name}")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"rest_fast\[fid\].*torchmetrics"):
        FID(tmp_path / "some.pth")


def test_fid_shows_frames_as_torchmetrics_wants_them(tmp_path, monkeypatch):
    """uint8 [n, 3, H, W] in small batches, the weights' path given, the true ones as real."""
    seen = []

    class Metric:
        def __init__(self, feature, feature_extractor_weights_path):
            seen.append((feature, feature_extractor_weights_path))

        def update(self, pictures, real):
            assert pictures.dtype == torch.uint8 and pictures.shape[1:] == (3, 8, 6)
            seen.append((len(pictures), real, int(pictures[0, 2, 0, 0])))

        def compute(self):
            return torch.tensor(3.5)

    class Module:
        FrechetInceptionDistance = Metric

    monkeypatch.setattr(distances.importlib, "import_module", lambda name: Module)
    (tmp_path / "w.pth").write_text("")
    meter = FID(tmp_path / "w.pth")
    real, made = np.zeros((40, 8, 6, 3), np.uint8), np.zeros((40, 8, 6, 3), np.uint8)
    real[..., 2], made[..., 2] = 9, 4
    meter.add(real, made)
    assert seen == [(2048, str(tmp_path / "w.pth")), (32, True, 9), (8, True, 9), (32, False, 4), (8, False, 4)]
    assert meter.value() == 3.5
