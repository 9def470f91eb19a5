"""Colours in L*a*b*, by published values, by scikit-image and by what a match means."""

from __future__ import annotations

import pytest
import torch

from rest_fast.models.flashhead.colour import match_colours, to_lab, to_rgb

KNOWN = [  # sRGB -> L*a*b* under D65, to the digits in which they are published
    ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
    ((0.0, 1.0, 0.0), (87.73, -86.18, 83.18)),
    ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
]


@pytest.mark.parametrize(("rgb", "lab"), KNOWN)
def test_known_colours(rgb, lab):
    assert torch.allclose(to_lab(torch.tensor(rgb)), torch.tensor(lab), atol=0.02)


def test_scikit_image_agrees():
    colour = pytest.importorskip("skimage.color")
    rgb = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # their white point has another last digit, and their thresholds are exact
    assert torch.allclose(to_lab(rgb), torch.from_numpy(colour.rgb2lab(rgb.numpy())), atol=5e-3)


def test_there_and_back():
    rgb = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(to_rgb(to_lab(rgb)), rgb, atol=1e-5)  # the matrices are inverse to seven digits


def video(seed: int, frames: int) -> torch.Tensor:
    """Soft colours, so that nothing is clipped: [1, 3, T, 24, 24]."""
    g = torch.Generator().manual_seed(seed)
    level = torch.rand(1, 3, frames, 1, 1, generator=g, dtype=torch.float64) * 0.6 - 0.3
    return level + 0.1 * torch.rand(1, 3, frames, 24, 24, generator=g, dtype=torch.float64)


def test_each_frame_gets_mean_and_deviation_of_the_photo():
    photo = video(1, 1)
    got = match_colours(video(2, 3), photo)
    lab, want = (to_lab((x.movedim(1, -1) + 1) / 2) for x in (got, photo))
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3), unbiased=False)):
        assert torch.allclose(statistic(lab), statistic(want).expand(1, 3, 3), atol=1e-3)


def test_a_flat_frame_is_finite_and_a_share_mixes():
    photo, flat = video(1, 1), torch.full((1, 3, 2, 24, 24), 0.25, dtype=torch.float64)
    assert match_colours(flat, photo).isfinite().all()
    given = video(2, 2)
    whole = match_colours(given, photo)
    assert torch.allclose(match_colours(given, photo, 0.5), (given + whole) / 2, atol=1e-12)
    assert match_colours(given, photo, 0.0) is given


def test_values_beyond_the_range_come_back_inside():
    wild = 3 * torch.randn(1, 3, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    got = match_colours(wild, video(1, 1).float())
    assert got.isfinite().all() and got.abs().max() <= 1
