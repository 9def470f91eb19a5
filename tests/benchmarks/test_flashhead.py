"""FlashHead's benchmark: what it measures against computes the same, and its tables."""

from __future__ import annotations

import torch

from tests.kit import flashhead
from tests.kit.bench import module, script

bench, tables = module("flashhead"), script("flashhead_tables")
F64 = torch.float64


def test_the_published_arithmetic_is_the_functional_pass():
    model = flashhead.toy_model(F64)
    z, reference, features = flashhead.window(model)
    t = torch.tensor(936.0, dtype=F64)
    want = model.dit(z, reference, t, model.dit.hear(model.dit.audio(features)))
    got = bench.published_velocity(model.dit, z, reference, t, features)
    # Its RMS norms are those of float32, as published: 2^-24 of numbers below 10, through two blocks.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_the_published_size_has_the_published_numbers():
    config = bench.config_of(1, 512)
    assert (config.dit.width, config.dit.head_dim, config.tokens * config.stream.window) == (1536, 128, 1280)
    assert (config.speech.width, config.speech.mlp_width, config.vae.decoder_channels) == (
        768,
        3072,
        (512, 512, 256, 128),
    )
    assert bench.config_of(4, 128).dit.heads == 3


def test_tables():
    stages = {
        "wav2vec and audio tokens": {"ours": 10.0, "plain": 20.0},
        "four evaluations": {"ours": 50.0, "plain": 100.0, "compiled": 75.0},
        "decode, 33 frames": {"ours": 25.0, "plain": 30.0},
        "colour match": {"ours": 5.0},
        "encode back, 9 frames": {"ours": 10.0},
        "decode, 24 frames of a stream": {"ours": 15.0},
    }
    lines = tables.stage_table({"stages": stages}).splitlines()
    assert lines[3] == "| four evaluations | 50 ms | 50% | 100 ms | 2.00 | 75 ms | 1.50 |"
    assert lines[5] == "| colour match | 5 ms | 5% |  |  |  |  |"
    assert lines[-1] == "| chunk | 100 ms | 100% | 165 ms | 1.65 | 140 ms | 1.40 |"
    assert tables.cache_table({"stages": stages}).splitlines()[2:] == [
        "| encoding 9 frames back | 10 ms | 10% |",
        "| colour match, since what was shown comes back | 5 ms | 5% |",
        "| decoding 9 frames that were shown before | 10 ms | 10% |",
        "| together | 25 ms | 25% |",
    ]
