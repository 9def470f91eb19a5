"""Heads are found where they were put; a face that moves is the same face, another one is not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from rest_fast.evaluation.heads import HeadTracker
from rest_fast.evaluation.streams import Talk


def picture(seed: int, size: int = 128) -> np.ndarray:
    """Soft spots of three colours, float [size, size, 3]."""
    noise = np.random.default_rng(seed).standard_normal((size, size, 3))
    soft = scipy.ndimage.gaussian_filter(noise, (size / 16, size / 16, 0))
    return 128 + 40 * soft / soft.std()


def as_frames(*pictures: np.ndarray) -> np.ndarray:
    return np.stack(pictures).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_moved_pictures_are_found(size):
    """Splines of scipy move the picture, by up to a twelfth of its side."""
    own = picture(0, size)
    wanted = np.array([[0, 0], [0.3, 0], [0, -0.4], [5.25, -3.5], [-8, 6.1]]) * size / 128
    frames = as_frames(*(scipy.ndimage.shift(own, (y, x, 0), mode="nearest") for x, y in wanted))
    tracker = HeadTracker(frames[0])
    place = tracker.track(frames)
    np.testing.assert_allclose(place, wanted, atol=0.05)
    assert tracker.drift(frames, place).max() < 0.02  # bilinear reading of a quantised picture


def test_light_is_no_motion_and_no_change_of_place():
    own = picture(1)
    frames = as_frames(own, 0.7 * own + 40, own + 12)
    np.testing.assert_allclose(HeadTracker(frames[0]).track(frames), 0, atol=0.02)


def test_another_face_is_further_away_than_the_same_one_darker():
    person, other = (Talk.random(i, 1).photo for i in (0, 1))
    tracker = HeadTracker(person)
    darker = (person * 0.9).astype(np.uint8)
    frames = np.stack([person, darker, other])
    same, dark, another = tracker.drift(frames, tracker.track(frames))
    assert same == pytest.approx(0, abs=1e-6)
    assert same < dark < 0.1 < another


def test_a_flat_photo_tells_nothing():
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert not HeadTracker(flat).track(np.stack([flat, flat + 20])).any()


@pytest.mark.parametrize("photo", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
def test_a_photo_must_be_one(photo):
    with pytest.raises(ValueError, match=r"photo: expected uint8 \[H, W, 3\]"):
        HeadTracker(photo)


def test_frames_must_have_the_photos_size():
    tracker = HeadTracker(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"frames: expected \[n, 64, 64, 3\], got \[2, 32, 64, 3\]"):
        tracker.track(np.zeros((2, 32, 64, 3), np.uint8))
