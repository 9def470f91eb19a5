"""Pictures in: every good odd input, every bad one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from rest_fast.media import BACKDROP, load_audio, load_image, read_video, square_crop
from tests.kit.media_files import encoded, photo, png16, png_header, refuses


def test_every_source_gives_the_same_picture(tmp_path):
    want, path = photo(), tmp_path / "a photo ü.png"
    path.write_bytes(encoded(Image.fromarray(want)))
    with open(path, "rb") as file:
        pil = Image.open(path)
        for source in (path, str(path), path.read_bytes(), file, pil, want):
            got = load_image(source)
            assert got.dtype == np.uint8 and got is not want
            np.testing.assert_array_equal(got, want)
        assert not file.closed and pil.mode == "RGB"


@pytest.mark.parametrize("shape", [(16, 400), (400, 16), (16, 16)])
def test_wide_and_tall(shape):
    assert load_image(encoded(Image.fromarray(photo(*shape)))).shape == (*shape, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "YCbCr", "HSV"])
def test_plain_modes(mode):
    grey = np.arange(40 * 56).reshape(40, 56) % 256
    if mode in "L1":
        picture = Image.fromarray(np.uint8(grey)).convert(mode, dither=Image.Dither.NONE)
        want = np.repeat((grey if mode == "L" else (grey > 127) * 255)[..., None], 3, 2)
    elif mode == "P":
        picture = Image.fromarray(np.uint8(grey % 7), "P")
        colours = np.random.default_rng(0).integers(0, 256, (7, 3))
        picture.putpalette(list(map(int, colours.ravel())))
        want = colours[grey % 7]
    else:
        picture = Image.new(mode, (56, 40), (128, 128, 128))
        want = {"YCbCr": (128, 128, 128), "HSV": (64, 128, 127)}[mode]
    data = encoded(picture, "TIFF" if mode == "YCbCr" else "PNG") if mode in "L1P" else picture
    np.testing.assert_allclose(load_image(data), np.broadcast_to(want, (40, 56, 3)), atol=1)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 95}])
def test_webp(options):
    want = photo(64, 96)
    got = load_image(encoded(Image.fromarray(want), "WEBP", **options))
    assert got.shape == want.shape
    assert np.abs(got - want.astype(int)).mean() < (0.01 if "lossless" in options else 8)
    clear = np.dstack([want, np.full((64, 96), 0, np.uint8)])
    got = load_image(encoded(Image.fromarray(clear), "WEBP", **options))
    np.testing.assert_allclose(got, np.broadcast_to(BACKDROP, want.shape), atol=1)


def test_grey_jpeg():
    grey = photo()[..., 0]
    got = load_image(encoded(Image.fromarray(grey), "JPEG", quality=95))
    assert np.abs(got - grey[..., None].astype(int)).mean() < 3 and (got == got[..., :1]).all()


def test_sixteen_bit_colour():
    deep = np.random.default_rng(0).integers(0, 65536, (40, 56, 3)).astype(np.uint16)
    np.testing.assert_allclose(load_image(png16(deep)), deep / 257, atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparency_shows_the_backdrop(mode):
    alpha = np.uint8(np.linspace(0, 255, 40 * 56).reshape(40, 56))
    colour = photo() if mode == "RGBA" else np.repeat(photo()[..., :1], 3, 2)
    if mode == "palette":
        index = np.uint8(alpha > 127)
        picture = Image.fromarray(index, "P")
        picture.putpalette([10, 20, 30, 200, 100, 50])
        data = encoded(picture, transparency=0)
        want = np.where(index[..., None] == 0, BACKDROP, (200, 100, 50))
    else:
        layers = colour if mode == "RGBA" else colour[..., :1]
        data = encoded(Image.fromarray(np.dstack([layers, alpha]).squeeze(), mode))
        opacity = alpha[..., None] / 255
        want = colour * opacity + np.array(BACKDROP) * (1 - opacity)
    np.testing.assert_allclose(load_image(data), want, atol=1)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "I", "I;16B"])
def test_sixteen_bit_is_scaled_not_clipped(form):
    deep = np.linspace(0, 65535, 40 * 56).round().astype(np.uint16).reshape(40, 56)
    if form == "I":
        data = Image.fromarray(deep.astype(np.int32))
        assert data.mode == "I"
    elif form == "I;16B":
        data = Image.frombytes("I;16B", (56, 40), deep.astype(">u2").tobytes())
    else:
        data = encoded(Image.fromarray(deep), form)
    want = np.repeat((deep / 257).round()[..., None], 3, 2)
    np.testing.assert_array_equal(load_image(data), want)


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_cmyk(form):
    ink = np.zeros((40, 56, 4), np.uint8)
    ink[:20, :, 0], ink[20:, :, 2], ink[:, 28:, 3] = 200, 100, 80
    cyan, black = ink[..., :3] / 255, ink[..., 3:] / 255
    options = {"quality": 100} if form == "JPEG" else {}
    got = load_image(encoded(Image.fromarray(ink, "CMYK"), form, **options))
    off = np.abs(got - 255 * (1 - cyan) * (1 - black))
    assert np.median(off) <= 2 and np.mean(off < 12) > 0.9  # JPEG rings at the borders


# What the standard says of each value: the side of the display that holds the stored picture's
# first row, and the side that holds its first column.
ORIENTATIONS = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


@pytest.mark.parametrize("value", ORIENTATIONS)
def test_exif_orientation(value):
    stored, sides = photo(), ORIENTATIONS[value]
    exif = Image.Exif()
    exif[0x0112] = value
    want = stored if sides[0] in ("top", "bottom") else stored.transpose(1, 0, 2)
    want = want[::-1] if "bottom" in sides else want
    want = want[:, ::-1] if "right" in sides else want
    data = encoded(Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(load_image(data), want)
    np.testing.assert_array_equal(load_image(Image.open(io.BytesIO(data))), want)
    jpeg = load_image(encoded(Image.fromarray(stored), "JPEG", quality=95, exif=exif))
    assert jpeg.shape == want.shape and np.abs(jpeg - want.astype(int)).mean() < 4


def test_first_picture_of_an_animation():
    first, second = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(load_image(data), np.full((20, 20, 3), (255, 0, 0)))


@pytest.mark.parametrize(
    "source, words",
    [
        (b"", ["image", "Pillow can read"]),
        (b"not a picture at all", ["image", "Pillow can read"]),
        (encoded(Image.fromarray(photo()))[:-300], ["Pillow can read", "truncated"]),
        (encoded(Image.fromarray(photo()), "JPEG")[:400], ["Pillow can read"]),
        (encoded(Image.new("L", (15, 300))), ["16 px", "15 x 300"]),
        (np.zeros((300, 15, 3), np.uint8), ["16 px", "15 x 300"]),
        (png_header(12000, 9000), ["89 megapixels", "12000 x 9000"]),  # seen without a pixel
        (png_header(100000, 100000), ["89 megapixels", "10000000000 pixels"]),  # by Pillow's own limit
        (encoded(Image.new("RGB", (1, 1))), ["16 px", "1 x 1"]),
        (Image.new("F", (20, 20), 0.5), ["8 or 16 bits", "0.5"]),
        (Image.new("I", (20, 20), 70000), ["8 or 16 bits", "70000"]),
        (Image.new("I", (20, 20), -1), ["8 or 16 bits", "-1"]),
        (np.zeros((20, 20, 3), np.float32), ["uint8 [H, W, 3]", "float32 [20, 20, 3]"]),
        (np.zeros((20, 20), np.uint8), ["uint8 [H, W, 3]", "uint8 [20, 20]"]),
        (np.zeros((3, 20, 20), np.uint8), ["uint8 [H, W, 3]", "uint8 [3, 20, 20]"]),
        (io.StringIO("text"), ["image", "StringIO"]),
        (None, ["image", "NoneType"]),
    ],
)
def test_bad_pictures(source, words):
    with refuses(*words):
        load_image(source)


@pytest.mark.parametrize("load", [load_image, load_audio, read_video])
def test_files_that_are_not_there(load, tmp_path):
    with refuses("missing.png", "readable file", "No such file"):
        load(tmp_path / "missing.png")
    with refuses("readable file", "irectory", repr(str(tmp_path))):
        load(str(tmp_path))
    with refuses("readable file"):
        load("nul\0byte")
    with refuses(r"two\nlines"):
        load(tmp_path / "two\nlines")


@pytest.mark.parametrize("load", [load_image, load_audio, read_video])
def test_files_that_may_not_be_read(load, tmp_path, monkeypatch):
    (tmp_path / "mine.png").write_bytes(b"secret")

    def deny(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", deny)  # as root every file can be read
    with refuses("mine.png", "readable file", "Permission denied"):
        load(tmp_path / "mine.png")


@pytest.mark.parametrize("size", [(100000, 100000), (12000, 9000), (1, 1)])
def test_sizes_are_refused_by_the_header(size, monkeypatch):
    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with refuses("16 px", "89 megapixels"):
        load_image(png_header(*size))


def test_square_crop():
    wide = photo(40, 57)
    got, box = square_crop(wide, size=40)
    assert box == (8, 0, 48, 40) and all(type(edge) is int for edge in box)
    np.testing.assert_array_equal(got, wide[:, 8:48])
    got, box = square_crop(np.ascontiguousarray(wide.transpose(1, 0, 2)), size=40)
    assert box == (0, 8, 40, 48)
    got, box = square_crop(wide, (10, 5, 30, 25), 20)
    np.testing.assert_array_equal(got, wide[5:25, 10:30])
    assert square_crop(wide, size=96)[0].shape == (96, 96, 3)
    with refuses("crop size", "0"):
        square_crop(wide, size=0)
    with refuses("image", "float64"):
        square_crop(wide / 255.0, size=8)


def test_square_crop_does_not_alias():
    board = np.uint8(np.indices((64, 64)).sum(0) % 2 * 255)[..., None].repeat(3, 2)
    small, _ = square_crop(board, size=8)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() < 8  # a skipping filter gives 0 or 255


def test_square_crop_stays_within_a_pixel_of_the_box():
    image, rng = np.zeros((90, 70, 3), np.uint8), np.random.default_rng(1)
    for _ in range(300):
        side = rng.uniform(1, 69)
        left, top = rng.uniform(0, 70 - side), rng.uniform(0, 90 - side)
        asked = (left, top, left + side, min(90, top + side + rng.uniform(-0.99, 0.99)))
        _, used = square_crop(image, asked if asked[3] > top else None, size=4)
        assert used[2] - used[0] == used[3] - used[1] >= 1
        assert used[0] >= 0 and used[1] >= 0 and used[2] <= 70 and used[3] <= 90
        assert asked[3] <= top or np.abs(np.subtract(used, asked)).max() <= 1.5


@pytest.mark.parametrize(
    "box",
    [(0, 0, 20, 30), (-1, 0, 19, 20), (40, 0, 60, 20), (10, 10, 10, 10), (30, 30, 10, 10),
     (0, 0, float("nan"), 20), (1, 2, 3), "box", 5],
)  # fmt: skip
def test_bad_boxes(box):
    with refuses("crop box", repr(box)):
        square_crop(photo(40, 56), box, size=8)
