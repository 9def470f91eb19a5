"""Scores of planted embeddings; windows of pictures and sound; weights of the user."""

from __future__ import annotations

import importlib
import types

import numpy as np
import pytest
import torch

from rest_fast.evaluation.sources import EvaluationError
from rest_fast.evaluation.syncnet import SyncNet, SyncNetwork, sync_scores


def test_scores_are_of_mean_distances_at_all_offsets():
    """Against a loop over frames and offsets with torch's own distance; silence (zeros) beyond both ends."""
    g = torch.Generator().manual_seed(0)
    lips, sound = torch.randn(40, 8, generator=g), torch.randn(37, 8, generator=g)
    zeros = torch.zeros(15, 8)
    padded = torch.cat([zeros, sound, zeros])
    rows = [
        [float(torch.nn.functional.pairwise_distance(lips[i : i + 1], padded[i + k : i + k + 1])) for k in range(31)]
        for i in range(37)
    ]
    means = np.mean(rows, 0)
    confidence, distance = sync_scores(lips, sound)
    assert distance == pytest.approx(means.min(), rel=1e-5)
    assert confidence == pytest.approx(np.median(means) - means.min(), rel=1e-4)


@pytest.mark.parametrize("offset", [-3, 0, 5])
def test_a_match_is_found_at_any_offset(offset):
    g = torch.Generator().manual_seed(1)
    both = torch.randn(300, 16, generator=g)
    matched = sync_scores(both[20:220], both[20 - offset : 220 - offset])
    other = sync_scores(both[:100], both[150:250])
    assert matched[0] > 5 * other[0] and matched[1] < 0.1 * other[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(SyncNetwork().state_dict(), path)
    return path


@pytest.fixture
def cepstra(monkeypatch):
    """In the place of python_speech_features: 13 coefficients every 10 ms that tell their time; what was asked."""
    asked = []

    def mfcc(samples, rate):
        asked.append((samples.dtype, len(samples), rate))
        return np.repeat(np.arange(len(samples) // 160 - 1)[:, None], 13, 1)  # the last window is not whole

    monkeypatch.setattr(importlib, "import_module", lambda name: types.SimpleNamespace(mfcc=mfcc))
    return asked


def test_windows_of_both_halves_lie_above_each_other(weights, cepstra, monkeypatch):
    net = SyncNet(weights)
    seen: dict[str, list[torch.Tensor]] = {"lips": [], "sound": []}
    for name in seen:
        monkeypatch.setattr(net.network, name, lambda x, name=name: seen[name].append(x) or x.flatten(1)[:, :1])
    frames = np.zeros((24, 32, 32, 3), np.uint8)
    frames[..., 0], frames[..., 2] = np.arange(24)[:, None, None], 200
    net.score(frames, np.zeros(24 * 640, np.float32))
    lips, sound = (torch.cat(x) for x in seen.values())
    assert lips.shape == (19, 3, 5, 224, 224) and sound.shape == (19, 1, 13, 20)
    for i in range(19):
        torch.testing.assert_close(lips[i, 2, :, 100, 100], torch.arange(i, i + 5.0))  # red is the last channel
        assert (lips[i, 0] == 200).all()
        torch.testing.assert_close(sound[i, 0, 4], torch.arange(4.0 * i, 4 * i + 20))
    assert cepstra == [(np.int16, 24 * 640, 16000)]


def test_the_network_takes_and_gives_what_it_says(weights, cepstra):
    net = SyncNet(weights)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 40, 40, 3)).astype(np.uint8)
    assert net.embed_lips(frames).shape == (4, 1024)
    assert net.embed_sound(np.zeros(9 * 640, np.float32)).shape == (4, 1024)
    confidence, distance = net.score(frames, np.zeros(9 * 640, np.float32))
    assert confidence >= 0 and np.isfinite(distance)
    with pytest.raises(EvaluationError, match="at least 6 frames, got 5"):
        net.score(frames[:5], np.zeros(5 * 640, np.float32))


def test_weights_are_checked(tmp_path, weights, cepstra):
    with pytest.raises(EvaluationError, match="syncnet: expected a file of weights"):
        SyncNet(tmp_path / "none")
    (tmp_path / "text").write_text("no weights")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other")
    for name in ("text", "other"):
        with pytest.raises(EvaluationError, match=f"{name}: expected weights of syncnet_v2"):
            SyncNet(tmp_path / name)


def test_the_extra_is_named(weights, monkeypatch):
    def without(name):
        raise ImportError(f"No module named {name}")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"rest_fast\[syncnet\].*python_speech_features"):
        SyncNet(weights)
