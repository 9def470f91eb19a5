"""The instruments: they find what was planted, and are the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rest_fast.evaluation import readers
from rest_fast.evaluation.readers import LatentReader, PixelReader, fit_pixel_reader


def faces(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [count, 62, 70, 3] with a dark ellipse of random place, and its height and width, [count, 2]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:62, :70]
    sizes = np.stack([rng.uniform(1, 14, count), rng.uniform(12, 30, count)], 1).astype(np.float32)
    crops = np.empty((count, 62, 70, 3), np.uint8)
    for crop, (height, width) in zip(crops, sizes):
        cy, cx = rng.uniform(27, 35), rng.uniform(31, 39)
        inside = ((y - cy) / (height / 2)) ** 2 + ((x - cx) / (width / 2)) ** 2 < 1
        crop[:] = np.where(inside[..., None], (60, 20, 20), rng.integers(140, 220, 3))
    return torch.from_numpy(crops), torch.from_numpy(sizes)


@pytest.fixture(scope="module")
def reader() -> PixelReader:
    return fit_pixel_reader(*faces(400), steps=60, batch=32)


def test_pixel_reader_learns_a_dark_ellipse(reader):
    crops, sizes = faces(60, seed=1)
    video = torch.zeros(3, 60, 128, 128)
    rows, columns = (slice(low - readers.SHIFT, high + readers.SHIFT) for low, high in (readers.ROWS, readers.COLUMNS))
    video[..., rows, columns] = crops.permute(3, 0, 1, 2) / 127.5 - 1
    read = reader.read(video)
    assert read.shape == (60, 2)
    assert np.corrcoef(read[:, 0], sizes[:, 0])[0, 1] > 0.9
    assert abs(read[:, 0] - sizes[:, 0].numpy()).mean() < 2  # pixels


def test_pixel_reader_is_the_same_for_a_seed_and_leaves_other_randomness_alone(tmp_path):
    crops, sizes = faces(40)
    state = torch.get_rng_state()
    one, same, other = (fit_pixel_reader(crops, sizes, steps=2, batch=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    one.save(tmp_path / "reader.safetensors")
    loaded = PixelReader.load(tmp_path / "reader.safetensors")
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]) and torch.equal(tensor, loaded.state_dict()[name])
    assert not torch.equal(one.net[0].weight, other.net[0].weight)


def test_pixel_reader_refuses_another_size(reader):
    with pytest.raises(ValueError, match="128 x 128"):
        reader.read(torch.zeros(3, 1, 64, 64))


def test_blur_keeps_the_mean_and_a_sharp_kernel_keeps_the_picture():
    picture = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(readers.blur(picture, 0.05), picture)
    point = torch.zeros(1, 3, 15, 15)
    point[..., 7, 7] = 1
    soft = readers.blur(point, 1.0)
    torch.testing.assert_close(soft.sum((2, 3)), torch.ones(1, 3))
    torch.testing.assert_close(soft, soft.mT)
    assert soft[0, 0, 7, 7] == soft.max() < 0.2


def test_latent_reader_finds_a_linear_relation():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 20, generator=g)
    weight, bias = torch.randn(20, 8, generator=g), torch.randn(8, generator=g)
    reader = LatentReader(x, x @ weight + bias, ridge=1e-3)
    new = torch.randn(6, 20, generator=g)
    np.testing.assert_allclose(reader(new), (new @ weight + bias).flatten().numpy(), atol=1e-3)


def test_latents_leave_the_reference_out(model):
    video = torch.rand(3, 17, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = readers.latents(model, video)
    assert x.shape == (2, model.config.tokens * model.config.vae.latent_channels)
    changed = video.clone()
    changed[:, -1] = 0
    again = readers.latents(model, changed)
    assert torch.equal(x[0], again[0]) and not torch.equal(x[1], again[1])
