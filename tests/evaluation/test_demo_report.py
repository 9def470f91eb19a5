"""The report: measures against constructed videos, the ablation of the sink against hand-made attention, pictures."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from rest_fast.evaluation import demo_report, figures, measures, readers, streams
from rest_fast.evaluation.measures import Bar
from rest_fast.evaluation.readers import LatentReader, PixelReader
from rest_fast.models.vae import to_latents
from tests.kit import toys


def stepping(steps: list[float]) -> torch.Tensor:
    """[3, 2 + len(steps), 4, 4]: the frames behind the reference differ by these steps."""
    level = torch.cat([torch.tensor([9.0, 0.0]), torch.tensor(steps).cumsum(0)])
    return level[None, :, None, None].expand(3, -1, 4, 4)


def test_border_ratios_of_a_constructed_video():
    """48 frames: six latents, two chunks of three. Inner steps 1, latent borders 3, the chunk's border 6."""
    steps = [1.0] * 47
    for i in (7, 15, 31, 39):
        steps[i] = 3.0
    steps[23] = 6.0
    video = stepping(steps)
    assert measures.border_ratio(video) == pytest.approx((4 * 3 + 6) / 5)
    assert measures.chunk_border_ratio(video, 3) == pytest.approx(2)


@pytest.mark.parametrize("lag", [-5, -2, 0, 1, 4])
def test_lag_of_a_shifted_signal(lag):
    curve = np.random.default_rng(0).standard_normal(110)
    truth, reading = curve[6:-6], curve[6 - lag : len(curve) - 6 - lag]
    correlations = measures.lag_correlations(reading, truth)
    assert measures.best_lag(correlations) == lag
    assert correlations.max() == pytest.approx(1)


def test_correlation_of_a_constant_is_none():
    assert measures.correlation(np.ones(5), np.arange(5.0)) == 0
    assert measures.correlation(np.arange(5.0), 3 - 2 * np.arange(5.0)) == pytest.approx(-1)


def test_psnr():
    assert measures.psnr(4.0) == pytest.approx(0)  # as wrong as black for white
    assert measures.psnr((2 / 255) ** 2) == pytest.approx(48.13, abs=0.01)  # one level


def test_colour_change_is_of_means_in_levels():
    reference = np.full((4, 4, 3), 100, np.uint8)
    frames = np.full((5, 4, 4, 3), 100, np.uint8)
    assert measures.colour_change(frames, reference) == 0
    frames[..., 0] += 9
    assert measures.colour_change(frames, reference) == pytest.approx(3)
    frames[..., 1] -= 3  # another channel's change does not make up for it
    assert measures.colour_change(frames, reference) == pytest.approx(4)
    assert measures.colour_change(frames.mean((1, 2)), reference) == pytest.approx(4)  # mean colours do as well
    frames = np.stack([reference + 10, reference - 10])
    assert measures.colour_change(frames, reference) == 0  # movement about the reference is no drift


@pytest.mark.parametrize(
    ("value", "low", "high", "passed"),
    [
        (0.8, 0.8, None, True),
        (0.79, 0.8, None, False),
        (-2, -1, 1, False),
        (1, -1, 1, True),
        (3.1, None, 3, False),
        (float("nan"), None, None, False),
        (float("nan"), None, 8, False),
        (float("inf"), 10, None, True),
    ],
)
def test_bars(value, low, high, passed):
    bar = Bar("x", value, low, high)
    assert bar.passed is passed
    report = {"name": "x", "value": value, "low": low, "high": high, "note": "", "passed": passed}
    assert bar.report() == report or value != value


# -- without the sink


def test_without_the_sink_the_first_chunk_still_sees_the_reference(model, avatar):
    def play():
        with model.session(avatar, seed=1) as session:
            session.push_audio(toys.sound(16000, 2.9))
            session.end_segment()
            return np.concatenate([block.video for block in session.blocks()])

    plain = play()
    with streams.no_sink(model):
        lost = play()
    chunk = 8 * model.config.stream.chunk
    change = np.abs(plain.astype(int) - lost)
    assert change[:chunk].max() <= 1 < change[chunk:].max()  # the reference lies in other slots: sums round otherwise


# -- streams


def test_streaming_and_decoding_in_pieces_change_nothing(model):
    assert 0 <= streams.streaming_error(model) < 1e-4
    assert 0 <= streams.decoding_error(model, toys.photo()[:64, :64]) < 1e-4


def test_decoding_error_gives_both_sides_the_photo(model, monkeypatch):
    seen, stream = [], model.vae._stream  # what decode and stream have in common

    def recording(mode, reference, *rest):
        seen.append(reference)
        return stream(mode, reference, *rest)

    monkeypatch.setattr(model.vae, "_stream", recording)
    photo = toys.photo()[:64, :64]
    streams.decoding_error(model, photo)
    assert len(seen) == 2 and all(torch.equal(reference, model.pixels(photo)) for reference in seen)


def test_play_keeps_colours_and_the_asked_frames(model, avatar):
    photo, samples = toys.photo()[:, :80], toys.sound(16000, 2.0)
    record = streams.play(model, photo, samples, seed=1, keep=(0, 1, 60))
    with model.session(model.prepare(photo, crop="center"), seed=1) as session:
        session.push_audio(samples)
        session.end_segment()
        video = np.concatenate([block.video for block in session.blocks()])[:50]
    np.testing.assert_allclose(record.colour, video.mean((1, 2)))
    assert all(np.array_equal(a, video[i]) for a, i in zip(record.frames, (0, 25, 49), strict=True))
    assert record.chunk_ms > 0
    assert len(record.memory_mb) in (0, 2)


def test_memory_growth_is_from_the_tenth_second_on():
    record = streams.Playback(np.zeros(0), np.zeros((0, 3)), memory_mb=[50.0] * 8 + [70.0, 60.0, 61.0, 64.0, 62.0])
    assert record.memory_growth_mb == 4


# -- clips


def test_generated_latents_are_those_that_were_decoded(model):
    """Decoded again behind the reference they give the video, to rounding."""
    photo, samples = toys.photo()[:64, :64], toys.sound(16000, 48 / 25)
    video, made = streams.generate(model, photo, samples, seed=1)
    assert video.shape[1] == 49 and made.shape == (6, model.config.tokens * model.config.vae.latent_channels)
    reference = model.prepare(photo, crop="center").reference
    tokens = torch.cat([reference, made.reshape(-1, model.config.vae.latent_channels)])[None]
    again = model.vae.decode(to_latents(tokens, model.config.grid), reference=model.pixels(photo))[0, :, 1:]
    assert (again.clamp(-1, 1) - video[:, 1:]).abs().max() < 1.01 / 127.5


def test_latents_of_the_truth_are_the_encoders(model, tmp_path):
    clips = FakeClips(tmp_path)
    videos, latents, without = demo_report.four_videos(model, clips, 0, 1)
    assert tuple(videos) == demo_report.VIDEOS and latents.keys() == {"truth", "generated", "wrong_sound"}
    assert torch.equal(latents["truth"], readers.latents(model, clips.pixels(0)))
    assert not torch.equal(latents["generated"], latents["wrong_sound"])
    assert without.shape == videos["through_vae"].shape


def test_the_wrong_sound_is_never_the_clips_own(model, tmp_path, monkeypatch):
    clips, pairs, videos = FakeClips(tmp_path), [], demo_report.four_videos
    with pytest.raises(ValueError, match="expected that of another clip, got clip 1's own"):
        videos(model, clips, 1, 1)
    monkeypatch.setattr(demo_report, "four_videos", lambda m, c, n, o: pairs.append((n, o)) or videos(m, c, n, o))
    demo_report.read_clips(model, clips, 1, WideReader().eval().requires_grad_(False), fitted(None, model, clips))
    assert pairs == [(0, 1)]


def test_psnr_leaves_the_given_frame_out(model, tmp_path, monkeypatch):
    clips = FakeClips(tmp_path)
    truth = clips.pixels(0)
    through, without = truth + 0.2, truth + 0.4
    through[:, 0], without[:, 0] = truth[:, 0], 9
    videos = dict.fromkeys(demo_report.VIDEOS, truth) | {"through_vae": through}
    latents = {name: readers.latents(model, truth) for name in ("truth", "generated", "wrong_sound")}
    monkeypatch.setattr(demo_report, "four_videos", lambda *_: (videos, latents, without))
    reader = WideReader().eval().requires_grad_(False)
    result, _ = demo_report.read_clips(model, clips, 1, reader, fitted(None, model, clips))
    assert result["vae_psnr_db"]["pooled"] == pytest.approx(20, abs=1e-3)
    assert result["vae_mouth_psnr_db"]["pooled"] == pytest.approx(20, abs=1e-3)
    assert result["vae_psnr_without_photo_db"]["pooled"] == pytest.approx(measures.psnr(0.16), abs=1e-3)


# -- the whole


class FakeClips:
    """Three clips of noise."""

    def __init__(self, folder):
        self.about = {"split": folder.name}
        rng = np.random.default_rng(0)
        self.video = rng.integers(0, 255, (3, 49, 64, 64, 3), dtype=np.uint8)
        self.geometry = rng.random((3, 49, 4)).astype(np.float32)
        self.samples = toys.sound(16000, 3 * 48 / 25).reshape(3, -1)

    def __len__(self):
        return 3

    def pixels(self, clip, frames=slice(None)):
        return torch.from_numpy(self.video[clip, frames].copy()).permute(3, 0, 1, 2) / 127.5 - 1

    def gap(self, clip):
        return self.geometry[clip, :, 0]

    def sound(self, clip):
        return self.samples[clip]


class WideReader(PixelReader):
    """Reads videos of the toy's size."""

    def read(self, video):
        return super().read(video.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_report_of_a_toy(model, monkeypatch, tmp_path, capsys, caplog):
    """Every number is there, the file is json, the pictures are drawn, the table is printed by nobody else."""
    monkeypatch.setattr(demo_report, "Clips", FakeClips)
    monkeypatch.setattr(demo_report.rest_fast, "load", lambda *_, **__: model)
    monkeypatch.setattr(demo_report, "pixel_reader", lambda *_: WideReader().eval().requires_grad_(False))
    monkeypatch.setattr(demo_report.LatentReader, "fit", classmethod(fitted))
    monkeypatch.setattr(demo_report, "EDGE", 1)
    talk = streams.Talk(toys.photo()[:64, :64], toys.sound(16000, 2.0), np.random.default_rng(1).random(50))
    monkeypatch.setattr(streams.Talk, "random", lambda index, seconds: talk)
    Image.fromarray(toys.photo()).save(tmp_path / "portrait.png")
    toys_wav(tmp_path / "speech.wav")
    args = argparse.Namespace(
        model="demo", train=tmp_path / "train", test=tmp_path / "test", reader=None, clips=2, stream_seconds=2,
        stream_identities=1, sweep=True, figures=tmp_path, assets=tmp_path,
    )  # fmt: skip
    with pytest.raises(ValueError, match="--clips: expected at least 20, got 2 of 3"):
        demo_report.report(args)
    caplog.set_level("INFO")
    result = json.loads(json.dumps(demo_report.report(args, least=2)))
    assert "clip 2 of 2" in caplog.text and " s in all" in caplog.text
    assert capsys.readouterr().out == ""
    assert result["test_clips"] == 2 and result["guidance_sweep"].keys() == {"1", "1.5", "2"}
    assert result["clips"]["opening_r.pixel.truth"].keys() == {"mean", "std"}
    assert result["clips"]["vae_psnr_db"].keys() == {"pooled", "mean", "std"}
    assert result["clips"]["amplitude_over_truth_reading.pixel.truth"] == {"mean": 1, "std": 0}
    assert all(
        -1 <= result["clips"][f"opening_r.latent.{video}"]["mean"] <= 1
        for video in ("truth", "generated", "wrong_sound")
    )
    assert "opening_r.latent.through_vae" not in result["clips"]
    assert len(result["bars"]) == 19
    growth = next(bar for bar in result["bars"] if bar["name"].startswith("memory growth"))
    assert growth["high"] == 8 and growth["value"] != growth["value"] and not growth["passed"]  # too short: NaN
    assert result["streams"].keys() == {"with_sink", "without_sink"}
    for line in ("| generated |", "| without_sink |", "| best lag, frames |", "| VAE PSNR, dB (without the photo "):
        assert line in demo_report.table(result)
    for name in ("demo.png", "demo_comparison.png", "demo_sink.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 100
        assert (tmp_path / name).stat().st_size <= figures.LIMIT
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (12 * 112 + 11 * 8 + 32, 128 + 84 + 32)


def fitted(cls, model, clips):
    size = model.config.tokens * model.config.vae.latent_channels
    return LatentReader(torch.randn(40, size), torch.randn(40, 8))


def toys_wav(path):
    import wave

    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(toys.sound(16000, 2.5, dtype=np.int16).tobytes())


def test_another_split_is_refused(monkeypatch, model, tmp_path):
    monkeypatch.setattr(demo_report, "Clips", FakeClips)
    monkeypatch.setattr(demo_report.rest_fast, "load", lambda *_, **__: model)
    args = argparse.Namespace(model="demo", train=tmp_path / "test", test=tmp_path / "test")
    with pytest.raises(ValueError, match="--train: expected clips of that split, got 'test'"):
        demo_report.report(args)


def test_a_picture_too_large_gets_fewer_colours(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    monkeypatch.setattr(figures, "LIMIT", 60_000)
    figures.save(noise, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size <= 60_000
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "P" and picture.size == (200, 200)
