"""Drawn portraits: the pictures agree with the numbers that made them."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from rest_fast.training.synthetic.portraits import GEOMETRY, MOTION, Identity, draw, mouth_geometry, neutral

SEEDS = (0, 2, 4, 5, 12)


def motion(**values) -> np.ndarray:
    """Rows from lists (or single numbers) by name, the rest neutral."""
    n = max((np.size(v) for v in values.values()), default=1)
    out = np.repeat(neutral(), n, 0)
    for name, value in values.items():
        out[:, MOTION.index(name)] = value
    return out


def person(seed: int) -> Identity:
    return Identity.random(np.random.default_rng(seed))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(np.float32) - b).max(-1)


def test_bad_motion_is_refused_by_shape():
    for bad in (np.zeros(13), np.zeros((4, 12))):
        with pytest.raises(ValueError, match=str(bad.shape[-1])):
            mouth_geometry(person(0), bad)
    with pytest.raises(ValueError, match="finite"):
        mouth_geometry(person(0), np.full((1, 13), np.nan))


def test_without_skia_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skia", None)
    with pytest.raises(ImportError, match=r"pip install 'rest_fast\[synth\]'"):
        draw(person(0), neutral())
    assert mouth_geometry(person(0), neutral()).shape == (1, len(GEOMETRY))


def test_gap_and_width_follow_the_motion():
    opening = np.linspace(0, 1, 11)
    for seed in SEEDS:
        for extra in ({}, {"round": 1.0}, {"tuck": 1.0}, {"width": -0.9, "round": 0.5}):
            gap = mouth_geometry(person(seed), motion(open=opening, **extra))[:, 0]
            assert gap[0] == 0 and (np.diff(gap) > 0).all()
        assert 14 <= mouth_geometry(person(seed), motion(open=1))[0, 0] <= 15
        assert (mouth_geometry(person(seed), motion(open=opening, press=1))[:, 0] == 0).all()
        narrow, rest, wide = mouth_geometry(person(seed), motion(width=[-1, 0, 1]))[:, 1]
        assert narrow < rest < wide and 29 < rest < 36
        assert mouth_geometry(person(seed), motion(round=1))[0, 1] < narrow


def test_same_numbers_same_bytes():
    pytest.importorskip("skia")
    m = motion(open=[0, 0.5, 1], blink=[0, 0.5, 1])
    first = draw(person(3), m)
    assert first.shape == (3, 128, 128, 3) and first.dtype == np.uint8
    assert np.array_equal(first, draw(person(3), m))
    assert np.array_equal(first[1:2], draw(person(3), m[1:2]))  # frames do not depend on each other
    assert draw(person(3), m[:0]).shape == (0, 128, 128, 3)
    assert person(3) == person(3) and difference(first[0], draw(person(4), neutral())[0]).mean() > 8


def test_every_size_is_the_same_picture():
    pytest.importorskip("skia")
    for seed in SEEDS:
        m = motion(open=0.6, yaw=0.4, roll=0.05)
        large = draw(person(seed), m, 512)[0].reshape(128, 4, 128, 4, 3).mean((1, 3))
        assert difference(draw(person(seed), m)[0], large).mean() < 2.5


def test_opening_the_mouth_changes_the_lower_face_only():
    pytest.importorskip("skia")
    for seed in SEEDS:
        shut, ajar = draw(person(seed), motion(open=[0, 1]))
        changed = difference(shut, ajar) > 3
        assert not changed[:62].any() and not changed[:, :27].any() and not changed[:, 101:].any()
        assert changed[80:110, 50:78].mean() > 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_gap_measured_in_pixels(seed):
    """In the middle column the mouth begins and ends with a dark rim, teeth or not. Drawn at 512, counted in
    pixels of a 128 px picture."""
    pytest.importorskip("skia")
    m = motion(open=[0.35, 0.6, 0.8, 1.0], dx=[0, 3, -4, 5], dy=[0, 2, -2, 1])
    who = replace(person(seed), beard="none")  # a moustache is as dark as the mouth
    for picture, (gap, _, x, y) in zip(draw(who, m, 512), mouth_geometry(who, m)):
        column = picture[:, int(4 * x) - 2 : int(4 * x) + 3].astype(np.float32).mean(1)
        near = slice(int(4 * (y - gap / 2 - 2)), int(4 * (y + gap / 2 + 2)))
        red = column[near, 0]
        inside = np.flatnonzero(red < 0.68 * who.lips[0])  # less red than the lips
        assert abs((inside[-1] + 1 - inside[0]) / 4 - gap) < 1.5
        assert abs((near.start + (inside[0] + inside[-1] + 1) / 2) / 4 - y) < 1.0


def test_the_head_moves_by_dx_and_dy():
    pytest.importorskip("skia")
    for seed in SEEDS:
        rest, moved = draw(person(seed), motion(dx=[0, 6], dy=[0, 3])).astype(np.float32)
        face = rest[40:92, 40:88]
        errors = {
            (x, y): np.abs(moved[40 + y : 92 + y, 40 + x : 88 + x] - face).mean()
            for x in range(-8, 9)
            for y in range(-5, 6)
        }
        assert min(errors, key=errors.__getitem__) == (6, 3) and errors[6, 3] < 1


def test_geometry_follows_roll_and_shift():
    still = mouth_geometry(person(1), neutral())[0]
    moved = mouth_geometry(person(1), motion(dx=4, dy=-2))[0]
    np.testing.assert_allclose(moved - still, (0, 0, 4, -2), atol=1e-4)
    rolled = mouth_geometry(person(1), motion(roll=0.1))[0]
    assert rolled[0] == still[0] and rolled[2] > still[2] + 1  # the mouth is above the pivot


def test_a_blink_hides_the_white_of_the_eyes():
    pytest.importorskip("skia")
    for seed in SEEDS:
        who = person(seed)
        eyes = draw(who, motion(blink=[0, 0.5, 1]), 256)[:, 100:126]
        for side in (-1, 1):
            middle = 2 * (64 + side * who.eye_gap)
            eye = eyes[:, :, int(middle - 12) : int(middle + 13)].astype(np.float32)
            pale = ((eye.min(-1) > 150) & (eye.max(-1) - eye.min(-1) < 26)).sum((1, 2))
            assert pale[0] > 60 and pale[0] > pale[1] > pale[2] and pale[2] < 0.1 * pale[0]
