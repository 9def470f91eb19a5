"""Each measure on inputs whose answer is known beforehand: from a closed form, or from scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from rest_fast.evaluation import mouths
from rest_fast.evaluation.photos import measures
from tests.kit.faces import EYES, mesh


def moved_mesh(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """[478, 3] through [2, 3]."""
    return np.concatenate([points[:, :2] @ matrix[:, :2].T + matrix[:, 2], points[:, 2:]], 1)


def matrix(scale: float, degrees: float, x: float, y: float) -> np.ndarray:
    c, s = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[c, -s, x], [s, c, y]])


def texture(side: int, seed: int = 0, sigma: float = 2.0) -> np.ndarray:
    """Soft noise, float [side, side, 3] of levels."""
    noise = np.random.default_rng(seed).standard_normal((side, side, 3))
    soft = scipy.ndimage.gaussian_filter(noise, (sigma, sigma, 0))
    return 128 + 40 * soft / soft.std()


# -- the face in the frame


def test_similarities_are_found_whatever_the_mouth_does():
    wanted = np.stack([matrix(1.0, 0.0, 0.0, 0.0), matrix(1.1, 5.0, -3.0, 2.5), matrix(0.9, -12.0, 8.0, 1.0)])
    frames = np.stack([moved_mesh(mesh(gap, lids), m) for m, gap, lids in zip(wanted, (0.0, 0.3, 0.1), (0.1, 0, 0.1))])
    found = measures.similarity(frames, mesh())
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert measures.growth(found) == pytest.approx(1.0)  # of 1, 1.1 and 0.9
    frames[1] = np.nan
    lost = measures.similarity(frames, mesh())
    assert np.isnan(lost[1]).all() and np.isfinite(lost[[0, 2]]).all()


def test_running_means_leave_out_what_is_not_known():
    np.testing.assert_allclose(measures.smooth(np.array([1.0, 2, 3, 6]), 3), [1.5, 2, 11 / 3, 4.5])
    np.testing.assert_allclose(measures.smooth(np.array([1.0, np.nan, 3, 6]), 3), [1, 2, 4.5, 4.5])
    assert np.isnan(measures.smooth(np.array([np.nan, np.nan, np.nan, 2.0]), 3)[:2]).all()
    np.testing.assert_allclose(measures.smooth(np.full((9, 2, 3), 7.0)), 7)


def test_pictures_are_moved_as_scipy_moves_them():
    photo, m = texture(40), matrix(1.1, 9.0, 3.2, -2.7)
    # scipy takes (row, column), and the way from the result to the source
    inverse = np.linalg.inv(m[:, :2])
    back, offset = inverse[::-1, ::-1], -(inverse @ m[:, 2])[::-1]
    wanted = [scipy.ndimage.affine_transform(photo[..., c], back, offset, order=1, mode="nearest") for c in range(3)]
    np.testing.assert_allclose(measures.moved(photo, m), np.stack(wanted, -1), atol=1e-3)  # fp32 of levels


def test_the_roll_of_the_moved_photo():
    """The middle moves by the shift alone, and a vector from it turns by the angle."""
    m, middle = measures.rolled(101), np.array([50.0, 50.0])
    np.testing.assert_allclose(m[:, :2] @ middle + m[:, 2], middle + np.array([101 * 6 / 256, 0]), atol=1e-9)
    np.testing.assert_allclose(m[:, :2] @ (1, 0), (np.cos(np.radians(1.7)), np.sin(np.radians(1.7))))


@pytest.mark.parametrize("times", [2.0, 0.5])
def test_motion_of_a_picture_of_another_size(times):
    """By the corners of pixels: what is at x lies at times x there, and pixel k has its middle at k + 1/2."""
    m, points = matrix(1.1, 20.0, 3.0, -2.0), np.array([[0.0, 0.0], [10.0, 3.0], [-4.0, 7.5]])
    there = measures.resized(points, times)
    np.testing.assert_allclose(there + 0.5, times * (points + 0.5))
    wanted = measures.resized(points @ m[:, :2].T + m[:, 2], times)
    other = measures.resized_motion(m, times)
    np.testing.assert_allclose(there @ other[:, :2].T + other[:, 2], wanted)


def test_boxes_lie_in_the_frame():
    assert measures.face_box(np.array([[-3.0, 2.5], [12.2, 30.0]]), 20, 40) == (slice(2, 20), slice(0, 13))


@pytest.mark.parametrize("yaw", [-40.0, 0.0, 15.0])
def test_turned_heads(yaw):
    assert measures.turned(mesh(yaw=yaw)) == pytest.approx(yaw)


@pytest.mark.parametrize("roll", [-30.0, 0.0, 95.0])
def test_tilted_heads(roll):
    assert measures.tilted(moved_mesh(mesh(), matrix(1.3, roll, 4, 5))) == pytest.approx(roll)


# -- the person


def test_identity_is_the_distance_of_descriptors():
    photo = np.zeros(128)
    frames = np.zeros((4, 128))
    frames[0, 3], frames[1, 5], frames[2] = 0.3, -0.5, np.nan
    mean, most = measures.identity(frames, photo)
    assert (mean, most) == (pytest.approx(0.8 / 3), pytest.approx(0.5))
    assert np.isnan(measures.identity(np.full((2, 128), np.nan), photo)).all()


def test_detail_is_the_variance_of_scipys_laplacian():
    picture = texture(30)
    grey = picture @ [0.299, 0.587, 0.114]
    assert measures.detail(picture) == pytest.approx(scipy.ndimage.laplace(grey)[1:-1, 1:-1].var(), rel=1e-6)


def test_sharpness_of_the_moved_photo_is_one():
    """However it moved; a blurred one falls short of it, and by what scipy's blur takes from the variance."""
    photo, face = texture(100), np.array([[20.0, 20], [80, 80]])
    m = matrix(1.0, 1.7, 4.3, -2.2)
    there = measures.moved(photo, m)
    assert measures.sharpness(there, photo, m, face) == pytest.approx(1.0)
    soft = scipy.ndimage.gaussian_filter(there, (1.5, 1.5, 0))
    box = (slice(20, 81), slice(20, 81))
    wanted = measures.detail(soft[box]) / measures.detail(there[box])
    assert measures.sharpness(soft, photo, m, face) == pytest.approx(wanted) and wanted < 0.6


# -- seams, background, flicker


def test_a_step_at_a_cell_border_against_the_slope_beside_it():
    """The change from the photo is a ramp of 0.5 levels a column; at 32 it steps by 2 more: (0.5 + 2) / 0.5 = 5."""
    photo = texture(96)
    ramp = 0.5 * np.arange(96) + 2.0 * (np.arange(96) >= 32)
    frames = [(photo + ramp[None, :, None]).astype(np.float32)] * 2
    box = (slice(10, 90), slice(20, 90))
    found = measures.seams(frames, photo.astype(np.float32), 32, box)
    assert set(found) == {32, 64, -32, -64}
    assert found[32] == pytest.approx(5, rel=1e-3) and found[64] == pytest.approx(1, rel=1e-3)
    # rows do not change along a column, but for the rounding of float32
    turned = measures.seams([f.transpose(1, 0, 2) for f in frames], photo.transpose(1, 0, 2), 32, box[::-1])
    assert turned[-32] == pytest.approx(5, rel=1e-3)


def test_lines_without_a_change_or_outside_of_the_face():
    photo = texture(64).astype(np.uint8)
    everywhere = (slice(0, 64), slice(0, 64))
    assert measures.seams([photo, photo], photo, 32, everywhere) == {32: 1.0, -32: 1.0}
    assert measures.seams([photo], photo, 32, (slice(0, 20), slice(0, 64))) == {32: 1.0}
    assert measures.seams([photo], photo, 60, everywhere) == {}  # no six pixels beyond it


def test_the_background_is_what_a_head_leaves():
    """An ellipse of 1.9 half widths (at least 0.75 half heights) and 1.8 half heights, a quarter of one higher, and
    everything below the chin: the rest in closed form on an upright face."""
    outside = measures.outside_head(mesh(), 100, 100)
    y, x = np.mgrid[:100, :100]
    ellipse = ((x - 50) / (19 * 1.9)) ** 2 + ((y - (50 - 0.25 * 25)) / (25 * 1.8)) ** 2
    np.testing.assert_array_equal(outside, (ellipse > 1) & (y < 75))
    assert 0.1 < outside.mean() < 0.5


def test_the_background_turns_with_the_head():
    quarter = np.array([[0.0, -1.0, 99.0], [1.0, 0.0, 0.0]])  # x' = 99 - y, y' = x
    upright = measures.outside_head(mesh(), 100, 100)
    lying = measures.outside_head(moved_mesh(mesh(), quarter), 100, 100)
    np.testing.assert_array_equal(lying, np.rot90(upright, -1))


def test_change_of_the_background():
    photo, outside = np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), bool)
    outside[:, :10] = True
    one, two = photo.copy(), photo.copy()
    one[:, :10] += 4
    two[:, 10:] += 50
    assert measures.background([one, two], photo, outside) == pytest.approx(2.0)


STILL = np.repeat(matrix(1.0, 0.0, 0.0, 0.0)[None], 10, 0)


def test_flicker_of_a_level_that_alternates():
    photo, points = texture(100), measures.skin_points(mesh())
    frames = [photo + 3.0 * (-1) ** i for i in range(10)]
    assert measures.flicker(frames, STILL, points) == pytest.approx(12, rel=1e-3)
    fading = [photo + 3.0 * i for i in range(10)]
    assert measures.flicker(fading, STILL, points) == pytest.approx(0, abs=1e-3)


def test_a_head_that_moves_does_not_flicker():
    """Seen where it is; seen at the photo's place it would by far more. A spline of scipy moves it."""
    photo, points = texture(100), measures.skin_points(mesh())
    path = np.stack([matrix(1.0, 0.0, 5 * np.sin(i), 5 * np.cos(i)) for i in range(10)])
    frames = [scipy.ndimage.shift(photo, (m[1, 2], m[0, 2], 0), mode="nearest") for m in path]
    seen, unseen = (measures.flicker(frames, m, points) for m in (path, STILL))
    assert seen < 2 and unseen > 20 * seen


def test_flicker_needs_three_frames_in_a_row():
    photo, points = texture(100), measures.skin_points(mesh())
    path, frames = STILL.copy(), [photo + 3.0 * (-1) ** i for i in range(10)]
    path[[2, 5, 8]] = np.nan
    assert np.isnan(measures.flicker(frames, path, points))
    path[5] = STILL[5]
    assert measures.flicker(frames, path, points) == pytest.approx(12, rel=1e-3)


# -- lips and eyes


def test_gaps_and_eyes_in_units_of_the_eyes_distance():
    """Of heads near and far, upright and rolled."""
    given = [(0.0, 0.1), (0.25, 0.02), (0.5, 0.3)]
    places = (matrix(1, 0, 0, 0), matrix(2, 30, 5, 9), matrix(0.3, -80, 40, 9))
    frames = np.stack([moved_mesh(mesh(*openings), m) for openings, m in zip(given, places)])
    gap = mouths.opening(measures.mouth_points(frames), "a face")
    np.testing.assert_allclose(gap, [0, 0.25, 0.5], atol=1e-9)
    np.testing.assert_allclose(measures.eye_opening(frames), [0.1, 0.02, 0.3], atol=1e-9)
    assert np.linalg.norm(frames[0, 33, :2] - frames[0, 263, :2]) == pytest.approx(EYES)


def test_blinks_are_counted_once_each():
    eyes = np.full(100, 0.3)
    assert measures.blinks(eyes) == 0
    eyes[10:14] = 0.05
    eyes[40:48] = [0.1, 0.05, 0.18, 0.05, 0.2, 0.1, 0.22, 0.3]  # flutters: never above three quarters in between
    eyes[60] = 0.16  # more than half open
    eyes[97:] = 0.0
    assert measures.blinks(eyes) == 3
    eyes[70:72] = np.nan
    assert measures.blinks(eyes) == 3
    assert measures.blinks(np.full(5, np.nan)) == 0


def test_the_envelope_of_a_tone():
    """Its root mean square is its amplitude over the root of two; a last frame that is not full is filled with 0."""
    time = np.arange(50 * 640) / 16_000
    tone = np.sin(2 * np.pi * 1000 * time) * np.where(time < 1, 0.2, 0.6)
    found = measures.envelope(tone)
    np.testing.assert_allclose(found[:24], 0.2 / np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(found[26:], 0.6 / np.sqrt(2), rtol=1e-6)
    assert found[24] == pytest.approx((2 * 0.2 + 0.6) / 3 / np.sqrt(2)) and len(found) == 50
    assert len(measures.envelope(tone[:-639])) == 50 and len(measures.envelope(tone[:-640])) == 49


def test_lips_that_come_late():
    wanted = np.random.default_rng(0).uniform(size=200)
    late = np.concatenate([np.zeros(3), 0.1 + 2 * wanted])
    r, lag, lag_r = measures.follows(late, wanted)
    assert abs(r) < 0.3 and lag == 3 and lag_r == pytest.approx(1.0)
    assert measures.follows(wanted, wanted) == (pytest.approx(1.0), 0, pytest.approx(1.0))


def test_closed_lips():
    """A quarter of the 95th percentile of 0, 1, ..., 100 is 23.75."""
    np.testing.assert_array_equal(measures.closed(np.arange(101.0)), np.arange(101) < 23.75)


def test_strided_frames():
    frames = np.arange(7)[:, None, None, None] * np.ones((1, 2, 2, 3))
    assert [(i, float(frame[0, 0, 0])) for i, frame in measures.each(frames, 3)] == [(0, 0), (3, 3), (6, 6)]
