"""Puts generated frames back into their photo: scaled to the crop box and blended in with a soft border."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rest_fast.media.sources import UInt8, as_uint8

LONGEST = 1920  # px: longer side of the photo as an avatar keeps it, and so of the video
FEATHER = 0.08  # width of the soft border in sides of the box

Box = tuple[int, int, int, int]


def shrink(photo: UInt8, box: Box) -> tuple[UInt8, Box]:
    """``photo`` uint8 ``[H, W, 3]`` with a longer side of at most :data:`LONGEST` px, and the square ``box`` in it.

    A smaller photo stays as it is. In a shrunk one the box moves by at most half a pixel to whole pixels.
    """
    height, width = photo.shape[:2]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return photo, box
    wide, high = max(2, round(width * scale)), max(2, round(height * scale))
    small = Image.fromarray(np.ascontiguousarray(photo)).resize((wide, high), Image.Resampling.LANCZOS)
    side = max(1, min(round((box[2] - box[0]) * scale), wide, high))
    left, top = min(round(box[0] * scale), wide - side), min(round(box[1] * scale), high - side)
    return np.array(small), (left, top, left + side, top + side)


class PasteBack:
    """Blends frames into one photo; what is the same for all frames is computed once.

    Inside the box a frame is ``a * generated + (1 - a) * photo``, rounded, with ``a`` = :attr:`alpha`; outside it is
    the photo. ``alpha`` falls to 0 over :data:`FEATHER` of the box's side, but not along the edges of the photo itself.
    """

    def __init__(self, photo: UInt8, box: Box) -> None:
        """``photo`` uint8 ``[H, W, 3]``, of which an odd last row or column is left out (H.264 wants even sizes).

        ``box``: ``(left, top, right, bottom)`` in its pixels.
        """
        height, width = photo.shape[0] // 2 * 2, photo.shape[1] // 2 * 2
        self.photo = np.ascontiguousarray(photo[:height, :width])
        left, top, right, bottom = box
        self.place = slice(top, bottom), slice(left, right)
        across = _ramp(right - left, left > 0, right < width)
        down = _ramp(bottom - top, top > 0, bottom < height)
        self._size = right - left, bottom - top
        self._mask = Image.fromarray(np.rint(255 * down[:, None] * across).astype(np.uint8))
        self._old = Image.fromarray(photo[self.place])

    @property
    def alpha(self) -> np.ndarray:
        """Share of the generated frame in each pixel of the box, float ``[h, w]`` in 0..1, in steps of 1/255."""
        return np.asarray(self._mask) / 255

    def __call__(self, frames: UInt8) -> UInt8:
        """``frames`` uint8 ``[n, h, w, 3]``, scaled (bicubic) to the box, as uint8 ``[n, H, W, 3]``."""
        frames = as_uint8("frames", frames, "n", "h", "w", 3)
        full = np.empty((len(frames), *self.photo.shape), np.uint8)
        full[:] = self.photo
        for frame, out in zip(frames, full, strict=True):
            new = Image.fromarray(np.ascontiguousarray(frame)).resize(self._size, Image.Resampling.BICUBIC)
            inside = out[self.place]  # smaller than the box where the odd row or column was left out
            inside[:] = np.asarray(Image.composite(new, self._old, self._mask))[: inside.shape[0], : inside.shape[1]]
        return full


def _ramp(side: int, first: bool, last: bool) -> np.ndarray:
    """Weights ``[side]`` of pixel centres: 1, with a smooth step (3 t^2 - 2 t^3) down to 0 at the ends asked for."""
    centre = np.arange(side) + 0.5
    ends = [centre] * first + [side - centre] * last
    t = np.clip(np.min([*ends, np.full(side, np.inf)], 0) / (FEATHER * side), 0, 1)
    return t * t * (3 - 2 * t)
