"""Streams side by side are the sessions' streams; what is measured of them was planted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import rest_fast
from rest_fast.evaluation import batched
from rest_fast.evaluation.batched import StreamMeasures, StreamRecord
from rest_fast.evaluation.streams import Talk
from rest_fast.streaming.stream import Stream
from tests.kit import toys


@pytest.fixture(scope="module")
def demo():
    return rest_fast.load("demo", device="cpu", dtype=torch.float32)  # all of it: bfloat16 would round on other edges


@pytest.fixture(scope="module")
def talks():
    """Of different length, neither a whole number of chunks."""
    return [Talk.random(0, 1, 256), Talk.random(1, 2, 256)]


def played(model, talk, seed, guidance):
    """What a session's stream makes alone: pictures uint8 [n, H, W, 3] and latents [m, T C]."""
    changes = {} if guidance is None else {"sampling__guidance": guidance}
    avatar, sampling = model.prepare(talk.photo, crop="center"), model.config.replace(**changes).sampling
    stream = Stream.alone(model, avatar, sampling, seed=seed)
    stream.push(talk.samples)
    stream.end_segment()
    video, latents = [], []
    while stream.has_block() or stream.due():
        if not stream.has_block():
            stream.generate()
            continue
        latents.append(stream.upcoming.z)
        video.append(stream.make_block().video)
        stream.deliver()
        stream.forget()
    return np.concatenate(video), torch.stack(latents).flatten(1).float()


@pytest.mark.parametrize(("guidance", "count"), [(None, 2), (1.0, 1)])
def test_lanes_are_sessions(demo, talks, guidance, count):
    """Latents and pixels of each lane against a session with its seed."""
    talks = talks[:count]
    z = batched.stream_latents(demo, talks, seeds=[5, 6][:count], guidance=guidance)
    videos = np.concatenate(list(batched.decode(demo, np.stack([t.photo for t in talks]), z)), 1)
    for lane, talk in enumerate(talks):
        own, latents = demo.compute(played, demo, talk, 5 + lane, guidance)
        # batched matrix products may sum in another order: 4 steps of 6 blocks on values of about 1
        torch.testing.assert_close(z[lane, : len(latents)].flatten(1), latents, atol=1e-4, rtol=0)
        assert abs(videos[lane, : len(own)].astype(int) - own).max() <= 1  # one level


def test_a_lane_does_not_see_its_neighbours(model):
    """The toy has random weights in every part, text and convolutional VAE included."""
    photo = toys.photo()[:64, :64]
    talks = [Talk(photo, toys.sound(16000, 1.2, seed=i), np.zeros(30)) for i in range(3)]
    z = batched.stream_latents(model, talks, seeds=[1, 2, 3])
    others = [talks[2], talks[1], talks[0]]
    again = batched.stream_latents(model, others, seeds=[9, 2, 8])
    torch.testing.assert_close(z[1], again[1], atol=1e-4, rtol=1e-4)
    assert (z[0] - again[0]).abs().max() > 0.1


def test_a_decoder_of_another_precision_leaves_the_models_own_alone(model):
    photo = toys.photo()[:64, :64]
    z = torch.randn(1, 3, model.config.tokens, model.config.vae.latent_channels)
    (whole,), (half,) = (list(batched.decode(model, photo[None], z, d)) for d in (None, torch.bfloat16))
    assert whole.shape == half.shape == (1, 24, 64, 64, 3)
    assert 0 < abs(whole.astype(float) - half).mean() < 4
    assert next(model.vae.parameters()).dtype == torch.float32


def test_seeds_are_counted(model):
    with pytest.raises(ValueError, match="expected one for each of at least 1 talk, got 2 for 1"):
        batched.stream_latents(model, [Talk(toys.photo(), np.zeros(16000, np.float32), np.zeros(25))], seeds=[1, 2])
    with pytest.raises(ValueError, match="got 0 for 0"):
        batched.stream_latents(model, [], seeds=[])


class Level:
    """A reader whose mouths are the brightness of a frame."""

    def read(self, video):
        return video.mean((0, 2, 3))[:, None].double().numpy()


def test_records_hold_every_frame_once(model, monkeypatch):
    """Two talks of 30 and 51 frames; the pictures are put in the place of the decoder's."""
    photo = np.full((64, 64, 3), 100, np.uint8)
    photo[20:40, 20:40] = 200
    talks = [Talk(photo, np.zeros(n * 640, np.float32), np.arange(float(n))) for n in (30, 51)]
    rows = np.broadcast_to(photo, (2, 72, 64, 64, 3)).copy()
    rows[:, :, -1, -1] = np.arange(72)[:, None]  # each frame says which it is
    monkeypatch.setattr(batched, "decode", lambda *_: iter(np.split(rows, 3, 1)))
    seen = []
    records = batched.record_streams(model, talks, Level(), seeds=[0, 1], progress=lambda *now: seen.append(now))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for record, n in zip(records, (30, 51)):
        assert len(record.latents) == -(-n // 8)
        np.testing.assert_allclose(record.gap, rows[0, :n].mean((1, 2, 3)) / 127.5 - 1, atol=1e-6)
        np.testing.assert_allclose(record.colour, rows[0, :n].mean((1, 2)))
        np.testing.assert_allclose(record.change, 1 / 64**2)
        assert record.head.shape == (n, 2) and np.abs(record.head).max() < 1e-3
        assert record.drift.shape == (-(-n // 5),) and record.drift.max() < 1e-6
        assert record.seconds[:, -1, -1, 0].tolist() == [k for k in (12, 37, 62) if k < n]


def record(n: int = 1500, **changes) -> StreamRecord:
    """A stream of 60 s in which nothing happens, but for the changes."""
    rng = np.random.default_rng(0)
    values = {
        "latents": rng.standard_normal((n // 8, 2, 3)).cumsum(0),
        "gap": rng.standard_normal(n),
        "colour": np.full((n, 3), 100.0),
        "change": np.ones(n - 1),
        "head": rng.standard_normal((n, 2)),
        "drift": np.zeros(n // 5),
        "seconds": np.zeros((n // 25, 4, 4, 3), np.uint8),
    }
    return StreamRecord(**values | changes)


def test_measures_of_a_planted_stream():
    base = record()
    photo = np.full((4, 4, 3), 100, np.uint8)
    gap = base.gap * 2
    gap[-250:] *= -1  # the last 10 s say the opposite
    colour = base.colour + np.repeat(np.arange(60.0), 25)[:, None]  # a level a second
    drift = np.r_[np.full(50, 0.1), np.full(200, 0.2), np.full(50, 0.4)]
    change = np.ones(1499)
    change[7::8] = 2
    change[23::24] = 3
    found = StreamMeasures.of(record(colour=colour, drift=drift, change=change), Talk(photo, np.zeros(0), gap), 3)
    assert found.opening_r_first == pytest.approx(1) and found.opening_r_last == pytest.approx(-1)
    assert found.opening_r == pytest.approx((1250 - 250) / 1500, abs=0.03)
    assert found.lag == 0 and found.amplitude_over_gap == pytest.approx(0.5, abs=0.02)
    moments = (found.colour_change_10, found.colour_change_30, found.colour_change_60, found.colour_change_mean)
    assert moments == pytest.approx((10, 30, 59, 29.5))
    edges = (found.identity_drift_first, found.identity_drift, found.identity_drift_last)
    assert edges == pytest.approx((0.1, 13 / 60, 0.4))
    assert found.chunk_border_ratio == pytest.approx(1.5)
    assert found.border_ratio == pytest.approx(change[7::8].mean())


def test_what_a_stream_cannot_tell_is_nan():
    """30 s have no second 60; without a true mouth there is no lip sync."""
    found = StreamMeasures.of(record(750), Talk(np.zeros((4, 4, 3), np.uint8), np.zeros(0), np.full(750, np.nan)), 3)
    unknown = {name for name, value in dataclasses.asdict(found).items() if np.isnan(value)}
    assert unknown == {
        "opening_r",
        "opening_r_first",
        "opening_r_last",
        "lag",
        "amplitude_over_gap",
        "colour_change_60",
    }
