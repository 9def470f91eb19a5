"""Reads pictures: any file becomes uint8 ``[H, W, 3]`` RGB, and a square is cut out of it."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from rest_fast.errors import warn
from rest_fast.media.sources import MediaError, Source, UInt8, as_uint8, media_error, number, open_source, source_name

# Of a picture. The most is what Pillow opens without a warning: photographs of 48, 50 and 64 megapixels, and for a
# moment about 1.2 GB of memory: two copies of four bytes a pixel, one of three, and what they were read from.
MIN_SIDE, MAX_PIXELS = 16, 89_478_485
SIZES = f"at least {MIN_SIDE} px a side and at most {MAX_PIXELS // 10**6} megapixels"
BACKDROP = (192, 192, 192)  # light grey: shows through the transparent parts of a picture
SPACES = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}  # of a profile: the modes that it can describe
# Brands in the first box of a file: what telephones write, and what Pillow reads itself from 11.3 on.
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF = {b"avif", b"avis"}


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        raise media_error(name, SIZES, f"{width} x {height} px")


def _open(name: str, file: IO[bytes]) -> Image.Image:
    """The picture in a file, of which the header has been read."""
    if not (hasattr(file, "seekable") and file.seekable()):
        file = io.BytesIO(file.read())
    file.seek(0)  # as Pillow does
    head = file.read(12)
    brand = head[8:] if head[4:8] == b"ftyp" else b""
    if brand in HEIC:
        try:
            heif = importlib.import_module("pillow_heif")
        except ImportError:
            cure = "pillow-heif to read HEIC with (pip install pillow-heif)"
            raise media_error(name, cure, "a HEIC picture without it") from None
        file.seek(0)
        return heif.HeifImageFile(file)  # not its opener, which would be registered for all of the process
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        if brand in AVIF:
            cure = 'a Pillow that reads AVIF (pip install "pillow>=11.3")'
            raise media_error(name, cure, "an AVIF picture without it") from None
        raise


def _to_srgb(name: str, picture: Image.Image, profile: bytes | None) -> Image.Image:
    """``picture`` converted by its colour profile to RGB or RGBA in sRGB.

    If the profile is broken or belongs to another kind of picture, the picture stays as it is, with a warning.
    """
    if not profile:
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space
        if picture.mode not in SPACES.get(space, ()):
            raise ValueError(f"a profile of {space.strip()} with a picture of {picture.mode}")
        mode = "RGBA" if picture.mode == "RGBA" else "RGB"
        change = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), picture.mode, mode)
        return change.apply(picture)
    except (ImageCms.PyCMSError, OSError, ValueError, ImportError) as error:  # the last: a Pillow without LittleCMS
        warn(f"{name}: its colour profile is left out ({' '.join(str(error).split())}): colours may be a little off")
        return picture


def _to_rgb(name: str, picture: Image.Image) -> UInt8:
    _check_size(name, *picture.size)  # from the header: nothing is decoded yet
    profile = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture)  # 16-bit grey, which Pillow's own conversion would clip
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise media_error(name, "samples of 8 or 16 bits", f"{values.min():g}..{values.max():g}")
        picture = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    if picture.mode not in ("RGB", "RGBA", "L", "CMYK"):
        picture = picture.convert("L" if picture.mode in ("1", "LA") else "RGB")
    picture = _to_srgb(name, picture, profile)
    if picture.mode != "RGB":
        picture = picture.convert("RGB")
    if alpha is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, BACKDROP), alpha)
    return np.array(picture)


def load_image(source: Source | NDArray[Any] | Image.Image) -> UInt8:
    """Read a picture (path, binary file, bytes, PIL image, uint8 array) as uint8 ``[H, W, 3]``.

    Grey, palette, CMYK and 16-bit pictures (scaled) become RGB, and an embedded profile is converted to sRGB. The EXIF
    rotation is applied, transparent parts show :data:`BACKDROP`, and an animation gives its first picture. The size
    stays, so that boxes are in pixels of the photo. HEIC needs ``pillow-heif``. A broken colour profile is ignored,
    with a :class:`rest_fast.RestFastWarning`.

    Raises: MediaError if there is no such file, no picture, a part of one, another kind of array, or (before decoding)
        a size under :data:`MIN_SIDE` or over :data:`MAX_PIXELS`.
    """
    name = source_name("image", source)
    if isinstance(source, np.ndarray):
        pixels = as_uint8(name, source, "H", "W", 3)
        _check_size(name, pixels.shape[1], pixels.shape[0])
        return pixels.copy()
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(name, source)
        with open_source("image", source) as file, _open(name, file) as picture:
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
    square. The box returned is the one used: whole pixels, exactly square. Raises: MediaError for another kind of image
    or box.
    """
    pixels = as_uint8("image", image, "H", "W", 3)
    side, used = number("crop size", size, 1, 16384), _square(box, pixels.shape[1], pixels.shape[0])
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(picture.resize((side, side), Image.Resampling.LANCZOS, box=used)), used
