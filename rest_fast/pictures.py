"""Pictures in: any file becomes uint8 ``[H, W, 3]`` RGB, and a square is cut out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from rest_fast.sources import MediaError, Source, UInt8, as_uint8, media_error, number, open_source, source_name

MIN_SIDE, MAX_PIXELS = 16, 40_000_000  # of a picture
SIZES = f"at least {MIN_SIDE} px a side and at most {MAX_PIXELS // 10**6} megapixels"
BACKDROP = (192, 192, 192)  # light grey: shows through the transparent parts of a picture


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        raise media_error(name, SIZES, f"{width} x {height} px")


def _to_rgb(name: str, picture: Image.Image) -> UInt8:
    _check_size(name, *picture.size)  # from the header: nothing is decoded yet
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)  # 16-bit grey, which Pillow's own conversion would clip
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise media_error(name, "samples of 8 or 16 bits", f"{values.min():g}..{values.max():g}")
        picture = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, BACKDROP), picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def load_image(source: Source | NDArray[Any] | Image.Image) -> UInt8:
    """Read a picture (path, binary file, bytes, PIL image, uint8 array) as uint8 ``[H, W, 3]``.

    Grey, palette, CMYK and 16-bit pictures (scaled) become RGB; the EXIF rotation is applied, transparency is laid over
    :data:`BACKDROP`, an animation gives its first picture. MediaError: no such file, no picture, cut off, another kind
    of array, or (seen before decoding) under :data:`MIN_SIDE` or over :data:`MAX_PIXELS`.
    """
    name = source_name("image", source)
    if isinstance(source, np.ndarray):
        pixels = as_uint8(name, source, "H", "W", 3)
        _check_size(name, pixels.shape[1], pixels.shape[0])
        return pixels.copy()
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(name, source)
        with open_source("image", source) as file, Image.open(file) as picture:
            return _to_rgb(name, picture)
    except MediaError:
        raise
    except Image.DecompressionBombError as error:  # of Pillow, by the header too: many times our limit
        raise media_error(name, SIZES, str(error).split(" exceeds")[0]) from error
    except Exception as error:  # on a broken file Pillow's readers raise nearly anything
        got = "an unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise media_error(name, "a picture that Pillow can read", got) from error


def _square(box: Sequence[float] | str | None, width: int, height: int) -> tuple[int, int, int, int]:
    """``box`` in whole pixels and exactly square, within 1 px of what was asked."""
    if box is None:
        side = min(width, height)
        box = (width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2
    try:
        x0, y0, x1, y1 = (float(edge) for edge in box)
    except (TypeError, ValueError):
        raise media_error("crop box", "(left, top, right, bottom) in pixels", repr(box)) from None
    inside = 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    if not inside or abs((x1 - x0) - (y1 - y0)) > 1:
        raise media_error("crop box", f"a square (within 1 px) inside {width} x {height} px", repr(box))
    side = max(1, min(round((x1 - x0 + y1 - y0) / 2), width, height))
    left, top = min(round(x0), width - side), min(round(y0), height - side)
    return left, top, left + side, top + side


def square_crop(
    image: UInt8, box: Sequence[float] | str | None = None, size: int = 512
) -> tuple[UInt8, tuple[int, int, int, int]]:
    """Cut a square out of uint8 ``[H, W, 3]`` and scale it (Lanczos) to ``[size, size, 3]``.

    ``box`` is ``(left, top, right, bottom)`` in pixels, right and bottom exclusive; ``None`` takes the largest centred
    square. The box returned is the one used: whole pixels, exactly square. MediaError: another kind of image or box.
    """
    pixels = as_uint8("image", image, "H", "W", 3)
    side, used = number("crop size", size, 1, 16384), _square(box, pixels.shape[1], pixels.shape[0])
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(picture.resize((side, side), Image.Resampling.LANCZOS, box=used)), used
