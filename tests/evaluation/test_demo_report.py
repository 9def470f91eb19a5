"""The report: measures against constructed videos, the ablation of the sink against hand-made attention, pictures."""

from __future__ import annotations

import argparse
import json
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from rest_fast.evaluation import demo_report, figures, instruments, measures, streams
from rest_fast.evaluation.measures import Bar
from rest_fast.evaluation.readers import LatentReader, PixelReader
from rest_fast.training.synthetic.clips import write_clips
from tests.kit import toys


def test_border_ratios_of_a_constructed_video():
    """48 frames: six latents, two chunks of three. Inner steps 1, latent borders 3, the chunk's border 6."""
    steps = np.ones(47)
    steps[[7, 15, 31, 39]] = 3
    steps[23] = 6
    levels = np.concatenate([[0], steps]).cumsum().astype(np.uint8)
    changes = measures.changes(np.broadcast_to(levels[:, None, None, None], (48, 4, 4, 3)))
    np.testing.assert_array_equal(changes, steps)
    assert measures.border_ratio(changes) == pytest.approx((4 * 3 + 6) / 5)
    assert measures.chunk_ratio(changes[7::8], 3) == pytest.approx(2)


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


def test_play_measures_the_session(model, avatar):
    record = streams.play(model, toys.photo()[:, :80], toys.sound(16000, 2.0), seed=1)
    assert record.metrics.chunks == 3  # 50 frames are seven latents
    assert record.chunk_ms > 0
    assert len(record.memory_mb) in (0, 2)


def test_memory_growth_is_from_the_tenth_second_on():
    record = streams.Playback([50.0] * 8 + [70.0, 60.0, 61.0, 64.0, 62.0], {})
    assert record.memory_growth_mb == 4


# -- the whole


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folders of clips of the toy's size: two of the split train, two of test."""
    folder = tmp_path_factory.mktemp("drawn")
    for split in ("train", "test"):
        write_clips(folder / split, 2, split=split, size=64, workers=1)
    return folder


def arguments(drawn, out, **changes):
    given = {
        "model": "demo", "train": drawn / "train", "test": drawn / "test", "clips": 2, "stream_seconds": 20,
        "stream_identities": 1, "sweep": True, "figures": out, "assets": out, "evaluation": None,
    }  # fmt: skip
    return argparse.Namespace(**given | changes)


@pytest.fixture
def untrained(monkeypatch, model):
    """The toy for the demo, and readers that nobody had to fit: that of pixels needs clips of 128 px."""
    size = model.config.tokens * model.config.vae.latent_channels
    latents = LatentReader(torch.randn(40, size), torch.randn(40, 8))
    monkeypatch.setattr(demo_report.rest_fast, "load", lambda *_, **__: model)
    monkeypatch.setattr(instruments, "training_crops", lambda clips: ())
    monkeypatch.setattr(instruments, "fit_pixel_reader", PixelReader)
    monkeypatch.setattr(LatentReader, "fit", classmethod(lambda *_: latents))


def test_report_of_a_toy(untrained, model, drawn, monkeypatch, tmp_path, capsys, caplog):
    """Every number is there, the file is json, the pictures are drawn, nothing is printed but by ``main``."""
    own = model.config.sampling.guidance
    monkeypatch.setattr(demo_report, "SWEEP", (1.0, own))
    Image.fromarray(toys.photo()).save(tmp_path / "portrait.png")
    toys_wav(tmp_path / "speech.wav")
    with pytest.raises(ValueError, match="--clips: expected at least 20, got 2 of 2"):
        demo_report.report(arguments(drawn, tmp_path))
    caplog.set_level("INFO")
    result = json.loads(json.dumps(demo_report.report(arguments(drawn, tmp_path), least=2)))
    assert " s in all" in caplog.text and capsys.readouterr().out == ""
    assert result["data"]["clips"] == 2 and result["guidance_sweep"].keys() == {"1", f"{own:g}"}
    assert result["clips"]["truth"]["amplitude"] == {"mean": 1, "std": 0}
    for video in ("truth", "generated", "wrong_sound"):
        assert -1 <= result["clips"][video]["opening_r_latents"]["mean"] <= 1
    assert "opening_r_latents" not in result["clips"]["through_vae"]
    assert result["guidance_sweep"][f"{own:g}"]["amplitude"] == result["clips"]["generated"]["amplitude"]
    assert result["guidance_sweep"]["1"]["amplitude"] != result["clips"]["generated"]["amplitude"]
    assert result["without_sink"].keys() < result["streams"].keys()
    assert result["without_sink"]["head_range"] != result["streams"]["head_range"]
    found = {bar["name"]: bar for bar in result["bars"]}
    assert len(found) == 11
    growth = found["memory growth between second 10 and the end, MB"]
    assert growth["high"] == 8 and growth["passed"] == (growth["value"] <= 8)
    colour = found["mean colour change at the end, levels"]  # a stream of 20 s has no second 60
    assert colour["value"] != colour["value"] and not colour["passed"]
    assert "| best lag, frames | " in demo_report.bar_table(result)
    for name in ("demo.png", "demo_comparison.png", "demo_sink.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 100
        assert (tmp_path / name).stat().st_size <= figures.LIMIT
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (12 * 112 + 11 * 8 + 32, 128 + 84 + 32)


def toys_wav(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(toys.sound(16000, 2.5, dtype=np.int16).tobytes())


def test_another_split_is_refused(untrained, drawn, tmp_path):
    args = arguments(drawn, tmp_path, train=drawn / "test")
    with pytest.raises(ValueError, match="--train: expected clips of that split, got 'test'"):
        demo_report.report(args)


def test_a_picture_too_large_gets_fewer_colours(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    monkeypatch.setattr(figures, "LIMIT", 60_000)
    figures.save(noise, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size <= 60_000
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "P" and picture.size == (200, 200)
