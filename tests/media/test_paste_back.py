"""Frames back in their photo: the blend in closed form, the sizes, avatars with and without a photo, whole files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

import rest_fast
from rest_fast import media
from rest_fast.avatar import Avatar, AvatarError
from rest_fast.media.paste_back import FEATHER, PasteBack, shrink
from tests.kit.media_files import film, photo, psnr
from tests.kit.toys import sound, toy


@pytest.fixture(scope="module")
def model():
    return toy()


def smooth(t):
    return np.clip(t, 0, 1) ** 2 * (3 - 2 * np.clip(t, 0, 1))


@pytest.mark.parametrize("size", [32, 100, 150])  # scaled up, kept, scaled down
def test_the_blend_in_closed_form(size):
    still, frames = photo(200, 300), film(3, size, size)
    paste = PasteBack(still, (60, 40, 160, 140))
    got = paste(frames)
    assert got.shape == (3, 200, 300, 3) and got.dtype == np.uint8
    inside = np.zeros((200, 300), bool)
    inside[40:140, 60:160] = True
    assert (got[:, ~inside] == still[~inside]).all()
    centre = np.arange(100) + 0.5
    ramp = smooth(np.minimum(centre, 100 - centre) / (FEATHER * 100))
    alpha = (ramp[:, None] * ramp)[..., None]
    new = np.stack([Image.fromarray(f).resize((100, 100), Image.Resampling.BICUBIC) for f in frames])
    want = alpha * new + (1 - alpha) * still[40:140, 60:160]
    assert np.abs(got[:, 40:140, 60:160] - want).max() <= 1.01  # alpha in steps of 1/255, then rounding
    np.testing.assert_allclose(paste.alpha, alpha[..., 0], atol=0.5 / 255 + 1e-9)
    np.testing.assert_array_equal(got[:, 48:132, 68:152], new[:, 8:92, 8:92])  # nothing of the photo
    border = np.abs(np.diff(got[:, 88, 55:165].astype(int) - still[88, 55:165], axis=1)).max()
    assert border < 110  # no step at the seam: over 8 px at most


def test_edges_of_the_photo_have_no_border():
    still, frames = np.zeros((100, 100, 3), np.uint8), np.full((1, 32, 32, 3), 200, np.uint8)
    assert (PasteBack(still, (0, 0, 100, 100))(frames) == 200).all()
    corner = PasteBack(still, (0, 50, 50, 100))(frames)[0, ..., 0]
    assert (corner[60:, :40] == 200).all() and corner[50, 20] < 10 and corner[75, 49] < 10 and (corner[:50] == 0).all()


@pytest.mark.parametrize("height, width", [(101, 133), (100, 133), (101, 132)])
def test_odd_sizes_lose_one_row_or_column(height, width):
    still, frames = photo(height, width), film(2, 32, 32)
    box = (width - 61, height - 61, width, height)
    got = PasteBack(still, box)(frames)
    assert got.shape == (2, height // 2 * 2, width // 2 * 2, 3)
    want = still.copy()
    want[box[1] :, box[0] :] = Image.fromarray(frames[1]).resize((61, 61), Image.Resampling.BICUBIC)
    corner = slice(height - 40, got.shape[1]), slice(width - 40, got.shape[2])
    np.testing.assert_array_equal(got[1][corner], want[corner])


def test_frames_do_not_share_what_they_show():
    paste = PasteBack(photo(80, 80), (10, 10, 60, 60))
    first = paste(film(1, 32, 32))
    kept = first.copy()
    paste(film(2, 32, 32))[:] = 0
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(paste(film(1, 32, 32)), kept)
    assert paste(film(1, 32, 32)[:0]).shape == (0, 80, 80, 3)


@pytest.mark.parametrize("height, width", [(1080, 1920), (1000, 3000), (4000, 1500), (5000, 5000), (160, 20000)])
def test_large_photos_are_shrunk(height, width):
    still = np.zeros((height, width, 3), np.uint8)
    side = min(height, width) * 3 // 4
    box = (width - side, height - side, width, height)
    small, place = shrink(still, box)
    assert max(small.shape[:2]) == 1920 and min(small.shape[:2]) >= 2
    assert abs(small.shape[0] / small.shape[1] * width / height - 1) < 0.06
    scale = 1920 / max(height, width)
    assert place[2] - place[0] == place[3] - place[1] >= 1
    assert np.abs(np.subtract(place, np.multiply(box, scale))).max() <= 1
    assert place[2] <= small.shape[1] and place[3] <= small.shape[0]
    if scale == 1:
        assert small is still and place == box


def test_an_avatar_keeps_its_photo_through_a_file(model, tmp_path):
    still = photo(90, 120)
    avatar = model.prepare(still, crop=(10, 5, 74, 69))
    np.testing.assert_array_equal(avatar.photo, still)
    avatar.save(tmp_path / "a.safetensors")
    back = Avatar.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(back.photo, still)
    assert back.photo_box == avatar.photo_box == back.box == (10, 5, 74, 69)
    frames = film(2, 64, 64)
    np.testing.assert_array_equal(back.paste_back()(frames), avatar.paste_back()(frames))
    large = model.prepare(np.zeros((1000, 3840, 3), np.uint8), crop=(1000, 0, 2000, 1000))
    assert large.box == (1000, 0, 2000, 1000) and large.photo_box == (500, 0, 1000, 500)
    assert large.photo.shape == (500, 1920, 3)


def test_an_avatar_without_its_photo_says_so(model, tmp_path):
    avatar = dataclasses.replace(model.prepare(photo(), crop="center"), photo=None, photo_box=None)
    avatar.save(tmp_path / "avatar.safetensors")
    back = Avatar.load(tmp_path / "avatar.safetensors")
    assert back.photo is None and back.photo_box is None and back.box == avatar.box
    out = tmp_path / "out.mp4"
    with pytest.raises(AvatarError, match="paste_back: expected an avatar with its photo"):
        rest_fast.render(model, back, media.Audio(sound(16000, 1)[:, None], 16000), out, paste_back=True)
    assert not out.exists()


def test_render_into_the_photo(model, tmp_path):
    still, out, calls = photo(161, 240), tmp_path / "out.mp4", []
    avatar = model.prepare(still, crop=(20, 10, 140, 130))
    audio = media.Audio(sound(16000, 1.0)[:, None], 16000)
    rest_fast.render(model, avatar, audio, out, paste_back=True, progress=lambda *at: calls.append(at))
    got, _ = media.read_video(out)
    assert got.shape == (25, 160, 240, 3) and media.load_audio(out).duration >= 1
    assert psnr(got[:, :, 144:], np.stack([still[:160, 144:]] * 25)) > 30
    assert calls == [(8, 25), (16, 25), (24, 25), (25, 25)]
    rest_fast.render(model, avatar, audio, tmp_path / "plain.mp4")
    plain, _ = media.read_video(tmp_path / "plain.mp4")
    assert plain.shape == (25, 64, 64, 3)
    face = np.stack([Image.fromarray(f).resize((120, 120), Image.Resampling.BICUBIC) for f in plain])
    inside = got[:, 20:120, 30:130]  # noise of random weights, which H.264 coarsens
    assert psnr(inside, face[:, 10:110, 10:110]) > psnr(inside, np.stack([still[20:120, 30:130]] * 25)) + 6


def test_the_bar_is_shown_only_when_asked_for(model, tmp_path, capfd):
    avatar, audio = model.prepare(photo(), crop="center"), media.Audio(sound(16000, 0.5)[:, None], 16000)
    for progress in (False, lambda *_: None):
        rest_fast.render(model, avatar, audio, tmp_path / "a.mp4", progress=progress)
        assert capfd.readouterr() == ("", "")
    rest_fast.render(model, avatar, audio, tmp_path / "a.mp4", progress=True)
    assert "13/13" in capfd.readouterr().err
