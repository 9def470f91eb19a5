"""Photos as models have them, voices, and videos on disk."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rest_fast import media
from rest_fast.evaluation.photos import drivers, measures
from rest_fast.evaluation.photos.drivers import Driver, Portrait, Sound
from rest_fast.evaluation.sources import EvaluationError
from rest_fast.training.synthetic.speech import Phoneme
from tests.kit import toys
from tests.kit.command import write_wav


@pytest.fixture
def portrait(tmp_path):
    Image.fromarray(toys.photo()).save(tmp_path / "noise.png")
    return Portrait.load(tmp_path / "noise.png", 64)


def counting(portrait):
    """Pieces of five frames, frame i of level i, without an end."""
    for first in range(0, 1000, 5):
        yield np.stack([np.full_like(portrait.picture, (first + i) % 256) for i in range(5)])


def test_portraits_are_what_the_model_prepares(model, portrait, tmp_path):
    """The same square and the same picture; what was said of the photo is kept, not shown."""
    avatar = model.prepare(tmp_path / "noise.png")
    np.testing.assert_array_equal(portrait.picture, avatar.picture)
    assert portrait.box == avatar.box == (10, 0, 90, 80)
    assert portrait.notes == ["no face was found in the photo: its centre is used (give a crop to choose the square)"]
    assert portrait.sharp().shape == (256, 256, 3)
    assert "the crop has 80 px a side" in Portrait.load(tmp_path / "noise.png", 128).notes[1]


def test_voices_are_read_at_16_khz(tmp_path):
    write_wav(tmp_path / "talk.wav", toys.sound(24_000, 2.02), 24_000)
    sound = Sound.load(tmp_path / "talk.wav")
    assert sound.name == "talk" and len(sound.samples) == 32_320 and sound.frames == 51 and sound.closures() == []
    write_wav(tmp_path / "short.wav", toys.sound(16_000, 1.9))
    with pytest.raises(EvaluationError, match=r"sound short\.wav: expected at least 2 s, got 1\.90 s"):
        Sound.load(tmp_path / "short.wav")


def test_closures_are_the_middle_frames_of_p_b_and_m():
    """At 25 frames a second: 0.1 s is frame 2, 0.44 s frame 11."""
    spoken = (("m", 0.08, 0.12), ("'a", 0.12, 0.4), ("p", 0.4, 0.48), ("t", 0.48, 0.5), ("_:", 0.5, 1.0))
    sound = Sound("said", np.zeros(16_000, np.float32), tuple(Phoneme(*p) for p in spoken))
    assert sound.closures() == [2, 11]


def test_the_sentence_closes_lips_often():
    pytest.importorskip("espeakng_loader")
    sound = Sound.sentence()
    assert len(sound.closures()) > 20 and max(sound.closures()) < sound.frames
    assert 0.5 < np.abs(sound.samples).max() < 1


def test_frames_behind_the_end_are_dropped(portrait):
    pieces = list(Driver("counting", 12, counting).pieces(portrait))
    assert [len(piece) for piece in pieces] == [5, 5, 2] and pieces[2][1, 0, 0, 0] == 11


def test_a_truth_of_another_length():
    with pytest.raises(AssertionError, match="odd: gap: expected 12 openings, got 11"):
        Driver("odd", 12, counting, gap=np.zeros(11))


@pytest.mark.parametrize(("film", "says"), [
    (lambda p: [np.zeros((3, *p.picture.shape), np.uint8)], "expected 12 frames, got 3"),
    (lambda p: [np.zeros((3, 32, 32, 3), np.uint8)], "expected uint8"),
    (lambda p: [np.zeros((3, *p.picture.shape))], "expected uint8"),
])  # fmt: skip
def test_drivers_that_make_something_else(portrait, film, says):
    with pytest.raises(AssertionError, match=says):
        list(Driver("odd", 12, film).pieces(portrait))


def test_videos_on_disk(portrait, tmp_path):
    """The photo first, then every frame; the mp4 has the frames and their sound."""
    sound = Sound("noise", toys.sound(16_000, 0.5))
    driver = Driver("counting", sound.frames, counting, sound)
    drivers.record(driver, portrait, tmp_path / "frames.npy", tmp_path / "video.mp4")
    frames = np.load(tmp_path / "frames.npy")
    np.testing.assert_array_equal(frames[0], portrait.picture)
    np.testing.assert_array_equal(frames[1:, 3, 4, 1], np.arange(13))
    video, rate = media.read_video(tmp_path / "video.mp4")
    assert video.shape == (13, 64, 64, 3) and rate == 25
    heard = media.load_audio(tmp_path / "video.mp4")
    assert np.corrcoef(heard.mono[:8000], sound.samples)[0, 1] > 0.9  # AAC
    drivers.record(Driver("silent", 3, counting), portrait, tmp_path / "frames.npy", tmp_path / "video.mp4")
    assert len(np.load(tmp_path / "frames.npy")) == 4 and len(media.read_video(tmp_path / "video.mp4")[0]) == 3


def test_a_model_is_driven_by_the_whole_sound(model, portrait):
    """As a session that gets it at once; the seed counts."""
    sound = Sound("noise", toys.sound(16_000, 2.5))
    (driver,) = drivers.voices(model, [sound], seed=3)
    made = np.concatenate(list(driver.pieces(portrait)))
    with model.session(model.prepare(portrait.whole, crop=portrait.box), seed=3) as session:
        session.push_audio(sound.samples)
        session.end_segment()
        wanted = np.concatenate([block.video for block in session.blocks()])[:63]
    np.testing.assert_array_equal(made, wanted)
    (other,) = drivers.voices(model, [sound], seed=4)
    assert not np.array_equal(next(iter(other.pieces(portrait))), made[:8])


def test_the_moved_photo_moves_as_it_says(portrait):
    """A quarter of a swing in, 9.375 frames, it is furthest out; at 0 and at every whole swing it is the photo."""
    driver = drivers.moved_photo()
    frames = np.concatenate(list(driver.pieces(portrait)))
    assert len(frames) == driver.frames == 75 and driver.control
    np.testing.assert_array_equal(frames[0], portrait.picture)
    swing = np.sin(2 * np.pi * 9 / 37.5)
    wanted = measures.moved(portrait.picture, measures.rolled(64, 6 / 256 * swing, 1.7 * swing))
    np.testing.assert_allclose(frames[9], wanted, atol=0.51)


def test_pictures_of_folders(tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    for name in ("b.JPG", "a.png", "notes.txt"):
        (faces / name).write_bytes(b"x")
    (tmp_path / "c.png").write_bytes(b"x")
    assert [p.name for p in drivers.pictures([faces, tmp_path / "c.png"])] == ["a.png", "b.JPG", "c.png"]
    assert drivers.pictures([faces / "notes.txt"]) == [faces / "notes.txt"]  # who names it, means it
    for given, says in (
        ([tmp_path / "none.png"], "expected a folder or a picture, got"),
        ([], "expected a folder or pictures, got nothing"),
        ([faces, faces / "a.png"], "expected names that differ"),
    ):
        with pytest.raises(EvaluationError, match=says):
            drivers.pictures(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="empty: expected a folder with pictures in it"):
        drivers.pictures([tmp_path / "empty"])
