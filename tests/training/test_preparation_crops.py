"""The square around a face through a clip, and the detectors."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rest_fast.media.faces import WIDER, find_face
from rest_fast.training.preparation import detectors
from rest_fast.training.preparation.crops import Framing, face_crop, given_crop, least_side
from rest_fast.training.preparation.rules import Dropped

FRAMING = Framing(2.5, 0.1)


def box(x: float, y: float, side: float = 100) -> tuple[float, float, float, float]:
    """A face around (x, y)."""
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def still(*faces, count: int = 25):
    return [list(faces)] * count


def crop(looks, width=1280, height=720, least=86):
    return face_crop(looks, FRAMING, width, height, least)


def test_a_still_head():
    """2.5 sides, the centre a tenth of a side higher."""
    assert crop(still(box(600, 400))) == (475, 265, 725, 515)


def test_a_moving_head_widens_the_square_by_its_way():
    looks = [[box(600 + 3 * k, 400)] for k in range(25)]
    left, top, right, bottom = crop(looks)
    assert right - left == bottom - top == 250 + 72
    assert (left + right) / 2 == 636 and (top + bottom) / 2 == pytest.approx(390, abs=0.5)


def test_moved_inside_and_shrunk_to_fit():
    assert crop(still(box(60, 400))) == (0, 265, 250, 515)
    assert crop(still(box(1200, 700 - 50))) == (1030, 470, 1280, 720)
    assert crop(still(box(640, 360, 300))) == (280, 0, 1000, 720)  # 750 do not fit: the whole height
    assert crop(still(box(640, 360, 250))) == (280, 0, 1000, 720)  # 625 are nearly that: nothing is cut off


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300), st.floats(80, 120)), min_size=25, max_size=25),
    st.integers(200, 500),
    st.integers(200, 500),
)
def test_a_crop_is_a_square_in_the_picture_around_all_faces(faces, width, height):
    looks = [[box(*face)] for face in faces]
    try:
        left, top, right, bottom = crop(looks, width, height)
    except Dropped:
        return
    assert right - left == bottom - top >= 86 and left >= 0 and right <= width and top >= 0 and bottom <= height
    for (a, b, c, d), *_ in looks:
        assert left <= a and top <= b and c <= right and d <= bottom


WANDER = [[box(400 + 30 * (k % 12), 400)] for k in range(25)]
CUT = [[box(400 if k < 12 else 470, 400)] for k in range(25)]


@pytest.mark.parametrize(
    "looks, rule, words",
    [
        (still(), "no_face", "one in 0 of 25"),
        (still(box(600, 400), count=19) + still(count=6), "no_face", "one in 19 of 25"),
        (still(box(600, 400), box(300, 300, 51)), "faces", "more in 25 of 25"),
        (still(box(600, 400, 30)), "small", "at least 86 px, got 75 px"),
        (CUT, "cut", "at most 50 px in 4 frames, got 70"),
        ([[box(500 + 10 * k, 400)] for k in range(25)], "moves", "at most 100 px, got 240"),
        (still(box(45, 400)), "outside", "reaches 5 px out"),
        (still(box(640, 700)), "outside", "reaches 30 px out"),
    ],
)
def test_dropped_by_a_rule(looks, rule, words):
    with pytest.raises(Dropped, match=words) as caught:
        crop(looks)
    assert caught.value.rule == rule


def test_what_a_detector_may_get_wrong():
    """Some pictures without a face, some with a second one, now and then one that is none and larger."""
    face, want = box(600, 400), crop(still(box(600, 400)))
    assert crop(still(face, count=21) + still(count=4)) == want
    assert crop(still(face, count=20) + still(face, box(200, 200), count=5)) == want
    assert crop(still(face, count=23) + still(face, box(200, 200, 180), count=2)) == want
    assert crop(still(face, box(200, 200, 40))) == want  # a small one in the background


def test_given_boxes():
    assert given_crop([10, 20, 110.4, 120], 200, 200, 86) == (10, 20, 110, 120)
    for bad, rule in (([150, 0, 250, 100], "outside"), ([-1, 0, 99, 100], "outside"), ([0, 0, 85, 85], "small")):
        with pytest.raises(Dropped) as caught:
            given_crop(bad, 200, 200, 86)
        assert caught.value.rule == rule
    assert (least_side(128), least_side(512)) == (86, 342)


# -- detectors


def face_picture() -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="a photograph to look at")
    return np.ascontiguousarray(data.astronaut()[:400, :400])


def test_the_cascade_frames_as_photos_are_framed():
    """One still picture gives the square that a photo gets."""
    pytest.importorskip("cv2")
    picture = face_picture()
    detector = detectors.open_detector("opencv")
    (found,) = detector.faces(picture)
    assert find_face(picture) == face_crop([[found]], detector.framing, 400, 400, 20)
    assert detector.framing.wider == WIDER
    assert detector.faces(np.full((300, 400, 3), 90, np.uint8)) == []


@pytest.fixture
def mediapipe(monkeypatch):
    if not os.environ.get(detectors.INTERPRETER):
        pytest.skip(f"{detectors.INTERPRETER} names no Python: {detectors.INSTALL}")
    detector = detectors.open_detector("mediapipe")
    yield detector
    detector.close()


def test_mediapipe_frames_as_the_cascade_does(mediapipe):
    pytest.importorskip("cv2")
    picture = face_picture()
    cascade = detectors.open_detector("opencv")
    want = np.array(face_crop([cascade.faces(picture)], cascade.framing, 400, 400, 20))
    faces = mediapipe.faces(picture)
    assert len(faces) == 1 and mediapipe.faces(picture) == faces  # no memory between pictures
    got = np.array(face_crop([faces], mediapipe.framing, 400, 400, 20))
    np.testing.assert_allclose(got, want, atol=0.12 * (want[2] - want[0]))  # heads differ in their proportions
    assert mediapipe.faces(np.full((300, 400, 3), 90, np.uint8)) == []
    two = np.concatenate([picture, picture[:, ::-1]], 1)
    assert len(mediapipe.faces(two)) == 2


FAKE = """#!{python}
import json, struct, sys
print(json.dumps({{"mediapipe": "fake"}}), flush=True)
for turn in range({turns}):
    h, w = struct.unpack("<II", sys.stdin.buffer.read(8))
    data = sys.stdin.buffer.read(h * w * 3)
    print(json.dumps([[data[0], data[1], data[2], data[-1]]]), flush=True)
sys.exit("no more of this")
"""


def fake_interpreter(folder: Path, turns: int) -> Path:
    """A program that speaks as the script does, ``turns`` times: a picture's first three bytes and its last."""
    path = folder / "python"
    path.write_text(FAKE.format(python=sys.executable, turns=turns))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_pictures_go_out_and_faces_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv(detectors.INTERPRETER, str(fake_interpreter(tmp_path, 2)))
    detector = detectors.open_detector("mediapipe")
    for start in (1, 100):
        picture = (start + np.arange(5 * 7 * 3)).astype(np.uint8).reshape(5, 7, 3)
        assert detector.faces(picture) == [(start, start + 1, start + 2, start + 104)]
    with pytest.raises(detectors.DetectorError, match="ended and said no more of this"):
        detector.faces(picture)


@pytest.mark.parametrize(
    "name, interpreter, words",
    [
        ("dlib", None, "auto, opencv, mediapipe, got 'dlib'"),
        ("mediapipe", None, "REST_FAST_MEDIAPIPE_PYTHON to name a Python.*got none"),
        ("mediapipe", "/nonexistent/python", "got /nonexistent/python: No such file"),
        ("mediapipe", sys.executable, "said ModuleNotFoundError: No module named 'mediapipe'"),
        ("auto", "/nonexistent/python", "detector mediapipe: .*got /nonexistent/python"),
    ],
)
def test_a_detector_that_does_not_work_is_refused(monkeypatch, name, interpreter, words):
    monkeypatch.delenv(detectors.INTERPRETER, raising=False)
    if interpreter:
        monkeypatch.setenv(detectors.INTERPRETER, interpreter)
    with pytest.raises(ValueError, match=words):
        detectors.choose(name)


def test_auto_without_any(monkeypatch):
    monkeypatch.delenv(detectors.INTERPRETER, raising=False)
    monkeypatch.setitem(sys.modules, "cv2.data", None)
    with pytest.raises(
        ValueError, match=r'expected OpenCV 4, found none \(pip install "rest_fast\[face\]".*or boxes\)'
    ):
        detectors.choose("auto")
    monkeypatch.undo()
    monkeypatch.delenv(detectors.INTERPRETER, raising=False)
    pytest.importorskip("cv2")
    assert detectors.choose("auto") == "opencv"


def test_scaled_pictures_give_boxes_of_the_whole_one():
    """A picture beyond 1024 px is searched in a smaller copy."""
    pytest.importorskip("cv2")
    picture = face_picture()
    large = np.asarray(Image.fromarray(picture).resize((2000, 2000)))
    detector = detectors.open_detector("opencv")
    (small,), (whole,) = detector.faces(picture), detector.faces(large)
    np.testing.assert_allclose(np.array(whole) / 5, small, atol=12)
