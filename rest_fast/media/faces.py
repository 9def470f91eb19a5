"""Finds the face in a photo: the square that frames it as in the model's training pictures.

Needs OpenCV (``pip install "rest_fast[face]"``), whose wheel brings the cascade; without it the centre is taken.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from rest_fast.errors import warn
from rest_fast.media.sources import UInt8, as_uint8

CASCADE = "haarcascade_frontalface_alt2.xml"
LONGEST = 1024  # px: a larger photo is searched in a smaller copy
SMALLEST = 0.06  # side of a face in shorter sides of the photo; what is smaller is background
NEIGHBOURS = 5  # overlapping hits that count as a face
# The cascade's square spans a face from the middle of the forehead to below the mouth. 2.5 of its sides around the same
# centre hold crown to chin in 65 to 70 % of the height, a little above the middle, as the training pictures do.
WIDER = 2.5
FRAMED = 0.85  # a square of this many shorter sides or more: the photo is framed already, nothing is cut off


def find_face(image: UInt8, wider: float = WIDER) -> tuple[int, int, int, int] | None:
    """The square ``(left, top, right, bottom)`` in pixels around the largest frontal face of uint8 ``[H, W, 3]``.

    A square that sticks out is moved into the picture, and shrunk if it does not fit. A photo that is framed like a
    training picture gives its whole shorter side, so cropping a crop changes nothing. The same picture always gives the
    same square. Returns ``None``, with a :class:`rest_fast.RestFastWarning`, if there is no face or no OpenCV.

    Args:
        wider: sides of the cascade's square that the frame takes; fewer bring the face nearer.
    """
    pixels = as_uint8("image", image, "H", "W", 3)
    try:
        import cv2.data

        cascade = cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)
    except (ImportError, AttributeError):  # OpenCV 5 comes without cascades
        warn(
            "no face detector is installed: the centre of the photo is used (give a crop, or "
            'pip install "rest_fast[face]")'
        )
        return None
    height, width = pixels.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    grey = Image.fromarray(np.ascontiguousarray(pixels)).convert("L")
    small = grey.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    least = max(20, round(SMALLEST * min(small.size)))  # the cascade's own window is 20 px
    found = cascade.detectMultiScale(np.asarray(small), 1.1, NEIGHBOURS, minSize=(least, least))
    if not len(found):
        warn("no face was found in the photo: its centre is used (give a crop to choose the square)")
        return None
    faces = [[int(v) for v in face] for face in found]
    x, y, w, h = max(faces, key=lambda face: (face[2], -face[1], -face[0]))  # the topmost of equally large ones
    return _frame((x + w / 2) / scale, (y + h / 2) / scale, wider * w / scale, width, height)


def _frame(x: float, y: float, side: float, width: int, height: int) -> tuple[int, int, int, int]:
    """A square of this side around ``(x, y)``, in whole pixels inside the picture."""
    short = min(width, height)
    whole = short if side >= FRAMED * short else round(side)
    left = min(max(round(x - whole / 2), 0), width - whole)
    top = min(max(round(y - whole / 2), 0), height - whole)
    return left, top, left + whole, top + whole
