"""The study from photos to table, on a toy model, with a program that reads faces off colours."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from rest_fast import media
from rest_fast.evaluation.measures import correlation
from rest_fast.evaluation.photos import measures, readings, strips, study, tables
from rest_fast.evaluation.photos.drivers import Driver, Sound
from rest_fast.evaluation.photos.faces import VARIABLE, FaceReader
from rest_fast.evaluation.sources import EvaluationError
from rest_fast.training.synthetic.speech import Phoneme
from tests.kit import toys
from tests.kit.command import write_wav
from tests.kit.faces import interpreter, reader_script

COLOURS = {"black": (0, 0, 0), "blue": (20, 20, 200)}  # tests/kit/faces.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, two voices, and a program that reads faces."""
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(toys.photo()).save(folder / "noise.png")
    for name, colour in COLOURS.items():
        Image.new("RGB", (90, 80), colour).save(folder / f"{name}.png")
    (folder / "text.jpg").write_text("no picture")
    for seed, name in enumerate(("anna", "ben")):
        write_wav(folder / f"{name}.wav", toys.sound(16_000, 2.2, seed))
    return folder


@pytest.fixture(scope="module")
def python(folder):
    return interpreter(folder, reader_script(folder))


@pytest.fixture(scope="module")
def result(model, folder, python, tmp_path_factory):
    out, steps = tmp_path_factory.mktemp("out"), []
    found = study.evaluate_photos(
        model,
        [folder],
        [folder / "anna.wav", folder / "ben.wav"],
        out,
        sentence=False,
        interpreter=python,
        progress=lambda *now: steps.append(now),
    )
    assert steps == [(n, 6) for n in range(1, 7)]  # two photos, two voices and the moved photo
    return found, out


def test_what_is_written(result, model):
    found, out = result
    assert json.loads((out / "photos.json").read_text()) == found
    assert found["model"]["fingerprint"] == model.fingerprint and (found["size"], found["cell"]) == (64, 32)
    assert found["instruments"] == {"reader": "of colours"} and found["not_measured"] == {}
    names = {"photos.json", "photos.md", "videos", "noise.png", "blue.png"}
    assert set(os.listdir(out)) == names, "nothing temporary is left"
    assert set(os.listdir(out / "videos")) == {f"{p}_{s}.mp4" for p in found["photos"] for s in ("anna", "ben")}
    video, _ = media.read_video(out / "videos" / "noise_anna.mp4")
    assert video.shape == (55, 64, 64, 3)
    with Image.open(out / "noise.png") as strip:  # the photo and eight frames of 64 px; two voices
        assert strip.size == (2 * 12 + 9 * 68 - 4, 12 + 2 * (22 + 64 + 4 + 72 + 12))
        np.testing.assert_array_equal(np.asarray(strip)[34:98, 12:76], video_photo(found, "noise"))
    assert strips.first_row(out / "noise.png", 64).size == (2 * 12 + 9 * 68 - 4, 2 * 12 + 22 + 64 + 4 + 72)
    assert (out / "photos.md").read_text() == tables.markdown(found)


def video_photo(found, name):
    """The photo as the model has it."""
    box = found["photos"][name]["box"]
    return media.square_crop(toys.photo(), box, 64)[0]


def test_photos_that_are_left_out_are_named(result):
    found, out = result
    assert set(found["photos"]) == {"noise", "blue"} and set(found["failed"]) == {"black", "text"}
    assert "black: expected a face, got none in the square (5, 0, 85, 80)" in found["failed"]["black"]
    assert "text.jpg" in found["failed"]["text"] and "an unknown format" in found["failed"]["text"]
    text = (out / "photos.md").read_text()
    assert "| left out | why |" in text and "| black | black: expected a face" in text


def test_what_is_unusual_is_noted(result):
    found, _ = result
    notes = {name: photo["notes"][1:] for name, photo in found["photos"].items()}  # the first: no cascade finds them
    assert notes == {
        "noise": [],
        "blue": [
            "3 faces in the photo: the largest one is taken",
            "turned by 40 degrees: beyond 20 the readings of lips and eyes are rough",
            "mouth wide open: 0.52 of the distance of the eyes",  # 0.4, over the foreshortened one: 0.4 / cos 40
        ],
    }
    assert found["photos"]["blue"]["turned_degrees"] == pytest.approx(40, abs=0.01)


def test_every_number_is_known_or_has_a_reason(result):
    found, _ = result
    for photo in found["photos"].values():
        for name, video in photo["videos"].items():
            numbers = {key for names in readings.READERS for key in names}
            assert {key for key in numbers if video[key] is None} == set(video["unknown"])
            why = video["unknown"]
            assert why["truth_r"] == "no known motion" and why["closure"] == "no known times of p, b and m"
            assert ("gap_r" in why, "background" in why) == (video["control"],) * 2 == (name == "moved photo",) * 2
            assert video["face_found"] == 1 and video["blinks"] == 0
            assert set(video["seams"]) == {"x = 32", "y = 32"}


def test_gaps_are_compared_with_the_voice_and_with_the_other_one(result, folder):
    """What the program reads off the mp4 is nearly what it read off the frames: the mean of the mouth's pixels."""
    found, out = result
    voices = {name: measures.envelope(Sound.load(folder / f"{name}.wav").samples) for name in ("anna", "ben")}
    for own, other in (("anna", "ben"), ("ben", "anna")):
        video, _ = media.read_video(out / "videos" / f"noise_{own}.mp4")
        gap = video[:, 40:48, 24:40].mean((1, 2, 3))
        row = found["photos"]["noise"]["videos"][own]
        assert row["gap_r"] == pytest.approx(correlation(gap, voices[own]), abs=0.05)
        assert row["gap_r_wrong"] == pytest.approx(correlation(gap, voices[other]), abs=0.05)
        assert row["gap_std"] == pytest.approx(0.3 * gap.std() / 255, rel=0.2)


def test_without_instruments_seams_and_strips_remain(model, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    given = [folder / "noise.png"], [folder / "anna.wav"]
    found = study.evaluate_photos(model, *given, tmp_path / "out", sentence=False)
    assert found["not_measured"] == {"faces": readings.NO_INSTRUMENTS} and "make photo-instruments" in str(found)
    row = found["photos"]["noise"]["videos"]["anna"]
    assert row["seam"] > 0 and row["identity_mean"] is None and row["unknown"]["gap_r"] == readings.NO_INSTRUMENTS
    assert (tmp_path / "out" / "noise.png").exists()
    text = (tmp_path / "out" / "photos.md").read_text()
    assert "| photo | driven by | seam, worst |" in text, "no column without a number"


# -- known motion


def test_a_decoder_driven_by_known_motion(folder, tmp_path):
    """No model: frames whose mouth opens as it should, at half of the true amplitude. The program sees the mouth."""
    reader = FaceReader(interpreter(tmp_path, reader_script(tmp_path)))
    level = np.random.default_rng(0).uniform(0.1, 0.9, 60)

    def film(portrait):
        frames = np.repeat(portrait.picture[None] // 2 + 32, 60, 0)
        frames[:, 40:48, 24:40] = np.rint(255 * level)[:, None, None, None]
        return [frames]

    truth = 2 * 0.3 * level
    spoken = (Phoneme("b", 0.04 * i, 0.04 * i + 0.04) for i in range(60) if level[i] < 0.2)
    said = Sound("said", toys.sound(16_000, 2.4), tuple(spoken))
    given = {"size": 64, "cell": 32, "reader": reader, "about": {"decoder": "none"}}
    found = study.measure([Driver("track", 60, film, said, truth)], [folder / "noise.png"], tmp_path / "out", **given)
    row = found["photos"]["noise"]["videos"]["track"]
    assert row["truth_r"] == pytest.approx(1, abs=1e-4) and row["truth_lag"] == 0  # levels are rounded
    assert row["truth_amplitude"] == pytest.approx(0.5, abs=0.01)
    limit = 0.25 * np.percentile(level, 95)
    wanted = level[level < 0.2] < limit
    assert row["closures"] == len(wanted) and row["closure"] == pytest.approx(wanted.mean())
    assert row["closure_any"] == pytest.approx((level < limit).mean())
    assert row["gap_r_wrong"] is None and row["unknown"]["gap_r_wrong"] == "no other voice"
    assert found["decoder"] == "none" and "a decoder" in (tmp_path / "out" / "photos.md").read_text()


def test_heads_that_vanish(folder, tmp_path):
    """Half of the frames are black: lips and eyes are not read, the rest is."""
    reader = FaceReader(interpreter(tmp_path, reader_script(tmp_path)))

    def film(portrait):
        frames = np.repeat(portrait.picture[None], 60, 0)
        frames[::2] = 0
        return [frames]

    given = {"size": 64, "cell": 32, "reader": reader, "about": {}}
    found = study.measure([Driver("half", 60, film)], [folder / "noise.png"], tmp_path / "out", **given)
    row = found["photos"]["noise"]["videos"]["half"]
    assert row["face_found"] == 0.5 and row["identity_mean"] == 0 and row["head_size"] == pytest.approx(1)
    assert row["unknown"]["gap_std"] == "half: expected a face in 80% of the frames, got 50%"
    assert row["gap_std"] is None and row["eye_std"] == pytest.approx(0)


# -- refusals


def test_refused_before_any_work(model, folder, tmp_path, python, monkeypatch):
    monkeypatch.setattr(type(model), "prepare", lambda *_: pytest.fail("work began"))
    noise, anna = folder / "noise.png", folder / "anna.wav"
    (tmp_path / "bad.wav").write_text("no sound")
    for copy, source in (("a.png", noise), ("a_b.png", noise), ("b_c.wav", anna), ("c.wav", anna)):
        shutil.copy(source, tmp_path / copy)
    shutil.copy(anna, tmp_path / "moved photo.wav")
    photo, other, sound, control = (tmp_path / n for n in ("a.png", "a_b.png", "b_c.wav", "moved photo.wav"))
    for photos, sounds, more, error, says in (
        ([noise], [], {}, EvaluationError, "sounds: expected at least one"),
        ([noise], [anna, anna], {}, EvaluationError, r"names that differ, got \['anna', 'anna'\]"),
        ([noise], [tmp_path / "bad.wav"], {}, media.MediaError, r"bad\.wav"),
        ([noise], [anna], {"interpreter": tmp_path / "none"}, EvaluationError, "instruments: .*none"),
        ([tmp_path / "none.png"], [anna], {}, EvaluationError, "expected a folder or a picture"),
        ([photo, other], [sound, tmp_path / "c.wav"], {}, EvaluationError, r"videos of their own, got \['a_b_c'\]"),
        ([noise], [control], {}, EvaluationError, r"videos of their own, got \['moved photo'\]"),
    ):
        with pytest.raises(error, match=says):
            study.evaluate_photos(
                model, photos, sounds, tmp_path / "out", **{"sentence": False, "interpreter": python} | more
            )
    assert not (tmp_path / "out").exists()


def test_no_photo_that_can_be_measured(model, folder, tmp_path, python):
    """The result says why all the same."""
    given = [folder / "black.png"], [folder / "anna.wav"], tmp_path / "out"
    with pytest.raises(EvaluationError, match="got none: black: expected a face"):
        study.evaluate_photos(model, *given, sentence=False, interpreter=python)
    assert set(json.loads((tmp_path / "out" / "photos.json").read_text())["failed"]) == {"black"}
