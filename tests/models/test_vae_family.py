"""A third family, in this file alone: other cells, frames made from the photo. A session streams it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from rest_fast import Model, preset
from rest_fast.config import TEMPORAL, BasisVAEConfig
from rest_fast.models.vae import codec
from rest_fast.models.vae.family import Decoder
from rest_fast.models.vae.layers import to_uint8
from rest_fast.models.vae.state import REFERENCE
from tests.kit.streams import play
from tests.kit.toys import photo, sound

CELL = 20  # pixels: no power of two


@dataclass(frozen=True)
class MeanVAEConfig(BasisVAEConfig):
    """A cell is its mean colours; what moves are they, and the rest is the photo's."""

    mixed = False

    kind: Literal["mean"] = "mean"  # type: ignore[assignment]
    latent_channels: int = 3
    patch_size: int = CELL


def means(video: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool3d(video, (1, CELL, CELL))


class MeanEncoder(nn.Module):
    """The last frame of each latent; the first frame stands alone."""

    def forward(self, video, state):
        return means(video)[:, :, 0 if not state.started else TEMPORAL - 1 :: TEMPORAL]


class MeanDecoder(Decoder):
    takes_photo = True

    def forward(self, z, state):
        reference = state.histories[REFERENCE]
        moved = z - means(reference)
        frames = moved.repeat_interleave(TEMPORAL, 2)[:, :, 0 if state.started else TEMPORAL - 1 :]
        return reference + frames.repeat_interleave(CELL, 3).repeat_interleave(CELL, 4)

    def run(self, z, piece, *, pictures):
        video = self(z, piece.state)
        return to_uint8(video) if pictures else video


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setitem(codec.FAMILIES, "mean", lambda config, grid: (MeanEncoder(), MeanDecoder()))
    torch.manual_seed(0)
    config = preset("toy").replace(vae=MeanVAEConfig(), height=3 * CELL, width=3 * CELL)
    assert (config.grid, config.tokens) == ((3, 3), 9)
    model = Model(config).eval().requires_grad_(False)
    for parameter in model.dit.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_a_session_shows_the_photo_moved_by_its_latents(model):
    avatar = model.prepare(photo())
    assert avatar.reference.shape == (9, 3)
    picture = torch.from_numpy(avatar.picture).double() / 127.5 - 1
    with model.session(avatar) as session:
        blocks = play(session, sound(16000, 0.96))
        latents = [latent.z for latent in session.stream.history][-3:]
    still = avatar.reference.view(3, 3, 3)
    assert torch.allclose(still.double(), picture.view(3, CELL, 3, CELL, 3).mean((1, 3)), atol=1e-6)
    assert len(blocks) == 3
    for block, z in zip(blocks, latents, strict=True):
        moved = (z.view(3, 3, 3) - still).double().repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
        want = ((picture + moved + 1) * 127.5).clamp(0, 255).numpy()
        assert block.video.shape == (8, 3 * CELL, 3 * CELL, 3)
        assert np.abs(block.video - want).max() <= 0.51  # rounded to whole levels


def test_it_is_restored_from_a_snapshot(model):
    avatar = model.prepare(photo())
    with model.session(avatar) as stayed, model.session(avatar) as moved:
        play(stayed, sound(16000, 0.5))
        moved.restore(stayed.snapshot())
        pairs = zip(play(stayed, sound(16000, 0.9)), play(moved, sound(16000, 0.9)), strict=True)
        assert all(np.array_equal(a.video, b.video) for a, b in pairs)


def test_what_fits_one_family_only_is_refused_by_its_name(model):
    with pytest.raises(ValueError, match="convolve_in: expected a decoder of kind basis or motion, got mean"):
        model.vae.convolve_in(torch.bfloat16)
