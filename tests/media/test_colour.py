"""Colour profiles, HEIC and AVIF, and photographs of a telephone's size."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError, features

from rest_fast import RestFastWarning
from rest_fast.media import BACKDROP, load_image, square_crop
from tests.kit.icc import DISPLAY_P3, PROPHOTO, SRGB, cmyk_profile, grey_profile, lab_as_srgb, meant, profile
from tests.kit.media_files import encoded, photo, png16, refuses

# LittleCMS computes 8-bit pictures in 15 bits and rounds once; in the dark, gamma 1.8 against the straight start of
# sRGB's curve makes one step of its tables up to 1.5 levels.
LEVELS = 2.0


def colours() -> np.ndarray:
    """[48, 64, 3]: all hues at several levels, greys among them."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    pixels[:8] = pixels[:8, :, :1]
    return pixels


@pytest.mark.parametrize("space, ignored", [(DISPLAY_P3, 4), (PROPHOTO, 12)], ids=["P3", "ProPhoto"])
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "PIL"])
def test_colours_are_what_the_profile_means(space, ignored, form):
    pixels = colours()
    options = {"icc_profile": profile(space)} | ({"lossless": True} if form == "WEBP" else {})
    data = encoded(Image.fromarray(pixels), "PNG" if form == "PIL" else form, **options)
    got, want = load_image(Image.open(io.BytesIO(data)) if form == "PIL" else data), meant(space, pixels)
    off = np.abs(got - want)
    assert off.max() <= LEVELS and off.mean() < 0.5
    assert np.abs(pixels - want).mean() > ignored  # levels by which it would be wrong


def test_a_jpeg_of_a_telephone():
    pixels, options = photo(480, 640), {"quality": 95, "icc_profile": profile(DISPLAY_P3)}
    exif = Image.Exif()
    exif[0x0112] = 6
    got = load_image(encoded(Image.fromarray(pixels), "JPEG", exif=exif, **options))
    plain = np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(pixels), "JPEG", **options))))
    want = np.rot90(meant(DISPLAY_P3, plain), -1)
    assert got.shape == (640, 480, 3) and np.abs(got - want).max() <= LEVELS


def test_the_profile_of_srgb_changes_nothing():
    pixels = colours()
    got = load_image(encoded(Image.fromarray(pixels), icc_profile=profile(SRGB)))
    assert np.abs(got - pixels.astype(int)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "L", "I;16", "1"])
def test_profiles_of_other_modes(mode):
    """Transparency stays as it is; palettes go by their colours, greys by a profile of greys."""
    pixels = colours()
    alpha = np.uint8(np.linspace(0, 255, 48 * 64).reshape(48, 64))
    if mode == "RGBA":
        data = encoded(Image.fromarray(np.dstack([pixels, alpha])), icc_profile=profile(DISPLAY_P3))
        share = alpha[..., None] / 255
        want = meant(DISPLAY_P3, pixels) * share + np.array(BACKDROP) * (1 - share)
    elif mode == "P":
        picture = Image.fromarray(np.uint8(np.arange(48 * 64).reshape(48, 64) % 7), "P")
        table = np.random.default_rng(1).integers(0, 256, (7, 3)).astype(np.uint8)
        picture.putpalette(table.tobytes())
        data = encoded(picture, icc_profile=profile(PROPHOTO))
        want = meant(PROPHOTO, table)[np.arange(48 * 64).reshape(48, 64) % 7]
    else:
        grey = pixels[..., 0] if mode != "1" else np.uint8(pixels[..., 0] > 127) * 255
        want = meant((SRGB[0], SRGB[1], 1.8), np.repeat(grey[..., None], 3, 2))
        if mode == "LA":
            picture = Image.fromarray(np.dstack([grey, alpha]), "LA")
            share = alpha[..., None] / 255
            want = want * share + np.array(BACKDROP) * (1 - share)
        elif mode == "I;16":
            picture = Image.fromarray(grey.astype(np.uint16) * 257)
        else:
            picture = Image.fromarray(grey).convert(mode)
        data = encoded(picture, icc_profile=grey_profile(1.8))
    np.testing.assert_allclose(load_image(data), want, atol=LEVELS)


def test_sixteen_bits_of_colour_with_a_profile():
    deep = np.uint16(colours()) * 257
    data = png16(deep, profile(DISPLAY_P3))
    np.testing.assert_allclose(load_image(data), meant(DISPLAY_P3, colours()), atol=LEVELS)


def broken_profiles() -> list[tuple[str, bytes]]:
    whole = profile(DISPLAY_P3)
    return [("noise", b"not a profile at all" * 20), ("cut", whole[:200]), ("empty tags", whole[:128] + bytes(4)),
            ("greys for colours", grey_profile(2.2))]  # fmt: skip


@pytest.mark.parametrize("data", [d for _, d in broken_profiles()], ids=[n for n, _ in broken_profiles()])
def test_a_broken_profile_is_left_out_with_a_warning(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(photo()), icc_profile=data))
    with pytest.warns(RestFastWarning, match=r"a\.png.*colour profile is left out") as caught:
        got = load_image(path)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    np.testing.assert_array_equal(got, photo())


def test_cmyk_with_a_profile_that_is_none():
    ink = np.zeros((40, 56, 4), np.uint8)
    ink[:, 28:, 1] = 200
    plain = load_image(encoded(Image.fromarray(ink, "CMYK"), "TIFF"))
    with pytest.warns(RestFastWarning, match="left out"):
        got = load_image(encoded(Image.fromarray(ink, "CMYK"), "TIFF", icc_profile=profile(DISPLAY_P3)))
    np.testing.assert_array_equal(got, plain)


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_inks_are_what_the_profile_means(form):
    """At the corners of its table, where nothing is interpolated; black is black, so that no black point moves."""
    lab = np.random.default_rng(0).uniform([20, -30, -30], [95, 30, 30], (2, 2, 2, 2, 3))
    lab[0, 0, 0, 0], lab[..., 1, :] = (100, 0, 0), (0, 0, 0)
    corner = np.arange(64) // 4 % 16
    ink = np.stack([corner >> bit & 1 for bit in (3, 2, 1, 0)], -1)[None].repeat(48, 0)
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    data = encoded(Image.fromarray(np.uint8(255 * ink), "CMYK"), form, icc_profile=cmyk_profile(lab), **options)
    got, want = load_image(data), lab_as_srgb(lab[tuple(np.moveaxis(ink, -1, 0))])
    middle = slice(None) if form == "TIFF" else slice(1, None, 4)  # JPEG rings at the borders
    assert np.abs(got - want)[:, middle].mean() < (1.0 if form == "TIFF" else 6)
    plain = load_image(encoded(Image.fromarray(np.uint8(255 * ink), "CMYK"), form, **options))
    assert np.abs(plain - want).mean() > 20


# -- HEIC and AVIF


def box(brand: bytes) -> bytes:
    """The first box of a file in the ISO container, and what no reader could make a picture of."""
    return (24).to_bytes(4, "big") + b"ftyp" + brand + bytes(4) + brand + b"mif1" + bytes(100)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_heic_without_its_reader_says_the_cure(tmp_path, monkeypatch, brand):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_1.HEIC").write_bytes(box(brand))
    with refuses("IMG_1.HEIC", "pip install pillow-heif", "HEIC picture without it"):
        load_image(tmp_path / "IMG_1.HEIC")


def test_avif_without_its_reader_says_the_cure(monkeypatch):
    def unknown(*_):
        raise UnidentifiedImageError("cannot identify image file")

    monkeypatch.setattr(Image, "open", unknown)
    with refuses("pillow>=11.3", "AVIF picture without it"):
        load_image(box(b"avif"))


def close(got: np.ndarray, want: np.ndarray) -> bool:
    return got.shape == want.shape and np.abs(got - want.astype(float)).mean() < 4


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    before = dict(Image.registered_extensions())
    path, pixels = tmp_path / "a.heic", photo(96, 128)
    picture = Image.fromarray(pixels)
    heif.from_pillow(picture).save(path, quality=95)
    assert close(load_image(path), pixels)
    for source in (path.read_bytes(), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(load_image(source), load_image(path))
    picture.info["icc_profile"] = profile(PROPHOTO)
    heif.from_pillow(picture).save(path, quality=95)
    assert close(load_image(path), meant(PROPHOTO, pixels))
    with refuses("Pillow can read"):
        load_image(box(b"heic"))
    assert Image.registered_extensions() == before, "nothing is registered for the whole process"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif():
    pixels = photo(96, 128)
    assert close(load_image(encoded(Image.fromarray(pixels), "AVIF", quality=95)), pixels)


# -- size


def test_48_megapixels_of_a_telephone_are_taken():
    """8064 x 6048, turned; the box is in pixels of the upright photo."""
    marks = Image.linear_gradient("L").resize((8064, 6048)).convert("RGB")
    marks.paste((255, 0, 0), (1000, 4000, 1400, 4400))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored (x, y) is shown at (6047 - y, x)
    data = encoded(marks, "JPEG", exif=exif)
    del marks
    whole = load_image(data)
    assert whole.shape == (8064, 6048, 3)
    crop, used = square_crop(whole, (6048 - 4400, 1000, 6048 - 4000, 1400), 64)
    assert used == (1648, 1000, 2048, 1400)
    assert np.abs(crop[4:-4, 4:-4] - np.array([255.0, 0, 0])).max() < 8
