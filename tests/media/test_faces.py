"""The square around a face: on a photograph, on a portrait that is framed already, and where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rest_fast import RestFastWarning, media
from rest_fast.config import BasisVAEConfig, ConvVAEConfig, MotionVAEConfig
from rest_fast.media.faces import WIDER, _frame, find_face
from rest_fast.model import ASSETS
from tests.kit.media_files import refuses
from tests.kit.toys import photo, toy

HEAD = (153, 15, 302, 184)  # of the astronaut, by eye: hair left, crown, hair right, chin


@pytest.fixture(scope="module")
def astronaut():
    pytest.importorskip("cv2")
    skimage = pytest.importorskip("skimage")
    return media.load_image(Path(skimage.__file__).parent / "data" / "astronaut.png")


@pytest.fixture(scope="module")
def model():
    return toy()


def scaled(image, side):
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))


def test_the_square_frames_the_head_as_in_training(astronaut):
    left, top, right, bottom = find_face(astronaut)
    side = right - left
    assert bottom - top == side and top >= 0
    assert 0.63 <= (HEAD[3] - HEAD[1]) / side <= 0.73
    assert left < HEAD[0] and right > HEAD[2] and top < HEAD[1]
    assert abs((HEAD[0] + HEAD[2]) / 2 - (left + right) / 2) < 0.06 * side
    assert 0.38 <= ((HEAD[1] + HEAD[3]) / 2 - top) / side <= 0.5
    assert find_face(astronaut) == (left, top, right, bottom)


def test_a_model_frames_a_photo_as_its_vae_was_trained(astronaut, model, monkeypatch):
    """A motion VAE nearer than the others: its training heads are 2 sides of the detector's square, not 2.5."""
    assert BasisVAEConfig.framing == ConvVAEConfig.framing == WIDER and MotionVAEConfig.framing == 2.0
    usual = model.prepare(astronaut).box
    monkeypatch.setattr(type(model.config.vae), "framing", 2.0)
    nearer = model.prepare(astronaut).box
    assert (nearer[2] - nearer[0]) / (usual[2] - usual[0]) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("scale", [1.5, 6])
def test_a_larger_photo_gives_the_same_square(astronaut, scale):
    want = np.multiply(find_face(astronaut), scale)
    assert np.abs(find_face(scaled(astronaut, round(512 * scale))) - want).max() < 0.05 * 242 * scale


@pytest.mark.parametrize("size", [64, 128, 512])
def test_a_crop_is_not_cropped_again(astronaut, size):
    crop, _ = media.square_crop(astronaut, find_face(astronaut), size)
    assert find_face(crop) == (0, 0, size, size)


@pytest.mark.parametrize("size", [64, 128, 300, 512, 1000, 2000])
def test_a_portrait_that_is_framed_already_stays_whole(size):
    pytest.importorskip("cv2")
    assert find_face(scaled(media.load_image(ASSETS / "demo" / "portrait.png"), size)) == (0, 0, size, size)


def test_the_largest_of_two_faces_wherever_it_is(astronaut):
    wide = np.full((600, 1400, 3), 128, np.uint8)
    wide[40:552, 850:1362] = astronaut
    wide[100:356, 100:356] = scaled(astronaut, 256)
    want = np.add(find_face(astronaut), (850, 40, 850, 40))
    assert np.abs(find_face(wide) - want).max() <= 40  # here there is room above her hair
    assert np.abs(find_face(wide.transpose(0, 1, 2)[:, ::-1])[0] + want[2] - 1400) <= 40


def test_squares_stay_inside():
    rng = np.random.default_rng(0)
    for _ in range(500):
        width, height = (int(n) for n in rng.integers(16, 300, 2))
        x, y, side = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(5, 600)
        left, top, right, bottom = _frame(x, y, side, width, height)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and right - left == bottom - top
        assert right - left == (min(width, height) if side >= 0.85 * min(width, height) else round(side))
        assert left in (0, width - (right - left)) or abs((left + right) / 2 - x) <= 1


def test_no_face_is_said_and_the_centre_taken(model):
    pytest.importorskip("cv2")
    with pytest.warns(RestFastWarning, match="no face was found") as said:
        found, avatar = find_face(photo()), model.prepare(photo())
    assert found is None and avatar.box == (10, 0, 90, 80)
    assert [w.filename for w in said] == [__file__] * 2  # the lines to change, and not the package's own


@pytest.mark.parametrize("broken", [None, type(sys)("cv2")])  # not installed; OpenCV 5, which has no cascades
def test_without_the_detector_the_centre_is_taken(model, monkeypatch, broken):
    monkeypatch.setitem(sys.modules, "cv2", broken)
    with pytest.warns(RestFastWarning, match=r"no face detector is installed.*rest_fast\[face\]") as said:
        assert model.prepare(photo()).box == (10, 0, 90, 80)
    assert [w.filename for w in said] == [__file__]


def test_a_warning_that_is_made_an_error_stops_the_preparation(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RestFastWarning, match="no face"):
            model.prepare(photo())
        assert model.prepare(photo(), crop="center").box == (10, 0, 90, 80)


def test_prepare_finds_the_face_in_every_kind_of_source(model, astronaut, tmp_path):
    path, want = tmp_path / "a.png", find_face(astronaut)
    Image.fromarray(astronaut).save(path)
    for source in (astronaut, path, str(path), path.read_bytes(), Image.open(path)):
        assert model.prepare(source).box == want


def test_a_crop_that_was_given_wins(model, astronaut, monkeypatch):
    wide = astronaut[:300]
    monkeypatch.setattr("rest_fast.model.find_face", lambda _: pytest.fail("looked for a face"))
    assert model.prepare(wide, crop=(10, 20, 110, 120)).box == (10, 20, 110, 120)
    assert model.prepare(wide, crop="center").box == (106, 0, 406, 300)
    with refuses("crop box", "left, top, right, bottom", "'middle'"):
        model.prepare(wide, crop="middle")


@pytest.mark.parametrize("shape", [(16, 16), (16, 2400), (3000, 20)])
def test_the_smallest_and_longest_pictures_have_no_face(shape):
    with pytest.warns(RestFastWarning):
        assert find_face(np.zeros((*shape, 3), np.uint8)) is None


def test_other_images_are_refused():
    with refuses("image", "uint8 [H, W, 3]", "float32"):
        find_face(np.zeros((20, 20, 3), np.float32))


def test_the_import_leaves_opencv_alone():
    code = "import sys, rest_fast, rest_fast.media.faces; sys.exit('cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


def test_an_application_that_set_up_nothing_is_told_once(tmp_path):
    """By Python's default filters, and at its own line; the package's logger alone says nothing."""
    lines = [
        "import logging, numpy as np",
        "from rest_fast.media.faces import find_face",
        "for _ in range(3): find_face(np.zeros((80, 80, 3), np.uint8))",
        "logging.getLogger('rest_fast.somewhere').warning('unheard')",
    ]
    (tmp_path / "app.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "app.py"], capture_output=True, text=True, cwd=tmp_path, check=True)
    told, source = done.stderr.splitlines()
    assert "app.py:3: RestFastWarning: no face " in told and source.strip() == lines[2] and not done.stdout
