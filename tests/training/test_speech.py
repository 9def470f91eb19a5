"""SpeechAE pre-training: what its losses are of, and that it learns to carry sound."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rest_fast.model import Model
from rest_fast.training import losses
from rest_fast.training.config import TrainingConfig, training_preset
from rest_fast.training.distributed import World
from rest_fast.training.flow import clip_codes, pick
from rest_fast.training.loop import Trainer
from rest_fast.training.reports import read_log
from rest_fast.training.shards import DataError, Shards
from rest_fast.training.speech import Speech, SpeechData
from tests.kit.clips import small, write_clips


def config_of(**changes) -> TrainingConfig:
    return training_preset("toy").replace(model=small(), **{f"speech__{k}": v for k, v in changes.items()})


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return Shards(write_clips(tmp_path_factory.mktemp("speech"), small(), 4, fields=("features", "labels")))


def stage_of(config: TrainingConfig, labels: int = 0) -> Speech:
    torch.manual_seed(0)
    stage = Speech(Model(config.model).requires_grad_(False), config, labels)
    stage.encoder.requires_grad_(True)
    return stage


def test_batches_are_the_clips_that_were_picked(shards):
    """Features of frames 1..96, and the labels of the same frames; rows are the same whoever draws them."""
    config = config_of(labels=1.0, batch=4)
    data, index = SpeechData(config, shards), pick(4, 4, 0, 3)
    whole = data(3, range(4))
    assert torch.equal(whole.features, shards.read("features", index).float())
    assert torch.equal(whole.labels, shards.read("labels", index)[:, 1:])
    assert whole.features.shape == (4, 96, 20, 80) and whole.labels.shape == (4, 96, 2)
    parts = [data(3, range(i, i + 2)) for i in (0, 2)]
    assert torch.equal(torch.cat([p.features for p in parts]), whole.features)
    assert torch.equal(torch.cat([p.labels for p in parts]), whole.labels)
    assert SpeechData(config_of(), shards)(3, range(2)).labels is None


def test_data_that_does_not_fit(tmp_path, shards):
    bare = Shards(write_clips(tmp_path, small(), 2, fields=["features"]))
    with pytest.raises(DataError, match=r"expected clips with labels, found \['features'\]"):
        SpeechData(config_of(labels=0.1), bare)
    SpeechData(config_of(), bare)
    with pytest.raises(DataError, match=r"features of another configuration: expected speech.width 32 \(got 16\)"):
        SpeechData(config_of().replace(model__speech__width=32), bare)


def test_the_loss_is_of_features_through_codes_and_back(shards):
    """10 MSE + 1 InfoNCE of the decoder's features; and the error of labels that a linear head reads off the codes."""
    config = config_of(labels=5.0)
    stage = stage_of(config, labels=2)
    batch = SpeechData(config, shards)(0, range(2))
    terms = stage(batch)
    codes = clip_codes(stage.encoder, batch.features)
    again = stage.decoder(codes)
    assert again.shape == batch.features.shape and codes.shape == (2, 12, 4, 16)
    read = torch.stack([stage.head(codes[:, k].flatten(1)).view(2, 8, 2) for k in range(12)], 1).flatten(1, 2)
    want = {
        "reconstruction": (again - batch.features).square().mean(),
        "contrastive": losses.contrastive(again.flatten(2), batch.features.flatten(2), 0.1),
        "labels": F.mse_loss(read, batch.labels),
    }
    for name, value in want.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=0)
    total = 10 * want["reconstruction"] + want["contrastive"] + 5 * want["labels"]
    torch.testing.assert_close(terms["loss"], total, rtol=1e-5, atol=0)
    plain = stage_of(config_of())(batch)
    assert set(plain) == {"loss", "reconstruction", "contrastive"}


def test_codes_learn_what_was_planted(shards, tmp_path):
    """The loudness, a label of every frame, is in the codes soon; features come back better than their mean.

    Over draws of the weights a head's error falls to 8 to 13 % of the labels' variance, that of features to 38 to 43 %
    of theirs, and the contrastive loss by 0.07 to 0.09 from that of chance, about log 96.
    """
    config = config_of(labels=10.0, steps=100, rate=6e-3, warmup=5).replace(report_every=100, save_every=100)
    stage = stage_of(config, labels=2)
    data = SpeechData(config, shards)
    trainer = Trainer(stage, config.speech, config, tmp_path, World())
    batch = data(500, range(2))
    before = stage(batch)
    trainer.run(data)
    after = stage(batch)
    labels, features = ((x - x.mean((0, 1))).square().mean() for x in (batch.labels, batch.features))
    assert after["labels"] < 0.4 * labels < before["labels"]
    assert after["reconstruction"] < 0.7 * features < before["reconstruction"]
    assert after["contrastive"] < before["contrastive"] - 0.02
    assert not any("features" in name for name in trainer.names)
    assert {name.split(".")[0] for name in trainer.names} == {"encoder", "decoder", "head"}
    assert set(read_log(tmp_path)[0]) >= {"loss", "reconstruction", "contrastive", "labels", "gradient"}
