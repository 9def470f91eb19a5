"""Measures of what was planted, against closed forms."""

from __future__ import annotations

import builtins

import numpy as np
import pytest

from rest_fast.evaluation import measures
from rest_fast.evaluation.readers import COLUMNS, ROWS


def test_ssim_of_flat_pictures_is_its_luminance_term():
    """Without variance the formula of Wang et al. leaves (2 a b + c) / (a^2 + b^2 + c) with c = (0.01 span)^2."""
    a, b = 100.0, 120.0
    c = (0.01 * 255) ** 2
    pictures = (np.full((20, 20), a), np.full((20, 20), b))
    assert measures.ssim(*pictures, span=255) == pytest.approx((2 * a * b + c) / (a * a + b * b + c))


def test_ssim_of_a_negative_is_its_structure_term():
    """Same mean and variance, covariance of the opposite sign: (c - 2 v) / (c + 2 v) with c = (0.03 span)^2, where the
    variance under the window is v: of a checkerboard of +-s about a mean, s^2 nearly everywhere."""
    y, x = np.mgrid[:32, :32]
    board = np.where((x + y) % 2, 10.0, -10.0)
    c = (0.03 * 255) ** 2
    assert measures.ssim(128 + board, 128 - board, span=255) == pytest.approx((c - 200) / (c + 200), abs=1e-3)
    assert measures.ssim(128 + board, 128 + board, span=255) == pytest.approx(1)


def test_ssim_of_colours_is_the_mean_of_the_channels():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (16, 16, 3)).astype(np.uint8) for _ in range(2))
    each = [measures.ssim(a[..., i], b[..., i], span=255) for i in range(3)]
    assert measures.ssim(a, b, span=255) == pytest.approx(np.mean(each))


def test_ssim_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"rest_fast\[evaluate\]"):
        measures.ssim(np.zeros((16, 16)), np.zeros((16, 16)), span=1)


@pytest.mark.parametrize("size", [128, 512])
def test_mouth_box_holds_what_the_reader_reads_of_the_mouth(size):
    rows, columns = measures.mouth_box(size, size)
    assert (rows.stop - rows.start) * (columns.stop - columns.start) == 48 * 56 * (size // 128) ** 2
    low, high = (edge * 128 // size for edge in (rows.start, rows.stop))
    assert ROWS[0] <= low < high <= ROWS[1]
    low, high = (edge * 128 // size for edge in (columns.start, columns.stop))
    assert COLUMNS[0] <= low < high <= COLUMNS[1]


def test_changes_are_means_of_sizes():
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1] = 10
    frames[2, 0] = 4  # half of it 6 darker, half of it 10
    np.testing.assert_allclose(measures.changes(frames), [10, 8])


def test_latent_jumps_at_chunk_borders():
    """Steps of 1 in every component, of 2.5 at each third border."""
    steps = np.ones(20)
    steps[2::3] = 2.5
    path = np.concatenate([[0], steps.cumsum()])
    latents = np.broadcast_to(path[:, None, None], (21, 4, 5))
    assert measures.latent_chunk_ratio(latents, 3) == pytest.approx(2.5)
    assert measures.latent_chunk_ratio(latents[:, ::-1] * -3, 3) == pytest.approx(2.5)
    assert measures.latent_chunk_ratio(latents, 4) == pytest.approx(
        steps[3::4].mean() / np.delete(steps, [3, 7, 11, 15, 19]).mean()
    )


def path_of(velocity: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], velocity.cumsum()])


@pytest.mark.parametrize("jump", ["place", "velocity"])
def test_jumps_of_a_head_at_chunk_borders(jump):
    """A kink of size a at every latent border, 4 a at every third one. A jump d of the place has second differences
    d and -d; one of the velocity has one second difference, beside the border: the mean of both is d / 2."""
    n, a = 240, 0.1
    size = np.zeros(n - 1)  # [k]: between frames k and k + 1
    size[7::8] = a
    size[23::24] = 4 * a
    velocity = 0.2 + (size if jump == "place" else np.cumsum(size * (-1) ** np.arange(n - 1)))
    bends = measures.border_bends(path_of(velocity))
    assert len(bends) == n - 1 and np.isnan(bends[[0, -1]]).all()
    np.testing.assert_allclose(bends[7:-1:8], size[7:-1:8] * (1 if jump == "place" else 0.5))
    assert measures.motion_chunk_ratio(path_of(velocity), 3) == pytest.approx(4)


def test_a_head_on_a_parabola_bends_the_same_everywhere():
    place = 0.3 * np.arange(97.0) ** 2
    np.testing.assert_allclose(measures.border_bends(place)[1:-1], 0.6)
    assert measures.motion_chunk_ratio(place, 3) == pytest.approx(1)


def test_summaries_leave_out_what_is_not_known():
    assert measures.summary([1.0, float("nan"), 3.0]) == {"mean": 2, "std": 1}
    assert all(np.isnan(v) for v in measures.summary([float("nan")]).values())
