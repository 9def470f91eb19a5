"""Drawn talking heads: an `Identity` and 13 motion numbers per frame become a soft-shaded portrait.

All lengths are pixels of a 128 x 128 picture, whatever the size drawn: the canvas is scaled.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rest_fast.errors import ArgumentError
from rest_fast.training.synthetic import features, hair, scenery
from rest_fast.training.synthetic.brush import blob, fill, glow, load_skia, mix, path, radial, record, stroke, tint
from rest_fast.training.synthetic.identity import Identity

__all__ = ["GEOMETRY", "MOTION", "Identity", "draw", "mouth_geometry", "neutral"]

# open, round, press, tuck, tongue, blink 0..1 (1 shut); width, yaw, pitch, brow -1..1; dx, dy pixels; roll radians
MOTION = ("open", "width", "round", "press", "tuck", "tongue", "blink", "dx", "dy", "roll", "yaw", "pitch", "brow")
GEOMETRY = ("gap", "width", "x", "y")
EYES = (64.0, 56.0)  # the point between the eyes of a head at rest
PIVOT = 46.0  # heads roll about this far below it
DROP = 8.0  # of the chin for a mouth wide open
Array = np.ndarray


def neutral() -> Array:
    """float32 [1, 13]: at rest, mouth softly closed, eyes open."""
    return np.zeros((1, len(MOTION)), np.float32)


def _rows(motion: Array) -> list[dict[str, float]]:
    motion = np.asarray(motion)
    if motion.ndim != 2 or motion.shape[1] != len(MOTION):
        raise ArgumentError(f"motion must be [n, {len(MOTION)}] (see MOTION), not {list(motion.shape)}")
    if not np.isfinite(motion).all():
        raise ArgumentError("motion must be finite")
    return [dict(zip(MOTION, row)) for row in motion.astype(np.float32).tolist()]


def _mouth(who: Identity, m: dict[str, float]) -> features.MouthShape:
    return features.mouth_shape(who, m["open"], m["width"], m["round"], m["press"], m["tuck"])


def _mouth_place(who: Identity, m: dict[str, float]) -> tuple[float, float]:
    """The middle of the closed mouth in the head's own coordinates: features slide over the head as it turns."""
    return 2.4 * m["yaw"], who.mouth_y + 1.6 * m["pitch"]


def mouth_geometry(identity: Identity, motion: Array) -> Array:
    """float32 [n, 4] as GEOMETRY, pixels of a 128 px picture, exactly as drawn.

    gap: between the inner lips at the middle, along the head; width: between the corners;
    x, y: the middle of the gap, in the picture.
    """
    out = []
    for m in _rows(motion):
        shape = _mouth(identity, m)
        x, y = _mouth_place(identity, m)
        y += (shape.top + shape.bottom) / 2 - PIVOT
        cos, sin = math.cos(m["roll"]), math.sin(m["roll"])
        px, py = EYES[0] + m["dx"] + cos * x - sin * y, EYES[1] + PIVOT + m["dy"] + sin * x + cos * y
        out.append((shape.gap, 2 * shape.half, px, py))
    return np.array(out, np.float32).reshape(-1, len(GEOMETRY))


class _Portrait:
    """One person's paints and fixed pictures, made once; `frame` draws the rest."""

    def __init__(self, who: Identity) -> None:
        self.who = who
        self.mouth, self.eyes = features.Mouth(who), features.Eyes(who)
        self.background, self.clothes = scenery.background(who), scenery.clothes(who)
        self.back_hair, self.front_hair = hair.hair(who)
        self.hair_shadow = hair.shadow(who)
        self.sockets, self.nose, self.cheeks = features.sockets(who), features.nose(who), features.cheeks(who)
        self.glasses, self.ears = features.glasses(who), record(self._ears)
        skin, shade, lit = who.skin, who.shade, 10 * who.light
        edge = mix(skin, shade, 0.62)
        self.face = fill(
            shader=radial(
                lit,
                -4,
                56,
                (0, mix(skin, who.shine, 0.38), 1),
                (0.45, skin, 1),
                (0.78, mix(skin, shade, 0.25), 1),
                (1, edge, 1),
            )
        )
        self.neck = fill(
            shader=radial(
                64 + lit, 122, 44, (0, skin, 1), (0.5, mix(skin, shade, 0.22), 1), (1, mix(skin, shade, 0.8), 1)
            )
        )
        self.under_chin, self.side = glow(tint(shade, 0.72), 0.95), glow(shade, 0.55)
        self.chin, self.jaw_edge = glow(who.shine, 0.4), stroke(shade, 3.0, 0.35, blur=1.6)

    def _ears(self, canvas: Any) -> None:
        who = self.who
        for s in (-1, 1):
            canvas.save()
            canvas.scale(s, 1)
            w = who.face_width
            ear = path(
                (w - 3, -5), (w + 2, -9, w + 6.6, -7, w + 5.4, 0), (w + 5, 5, w + 3.8, 12, w + 0.6, 11.5), (w - 2, 10)
            )
            canvas.drawPath(ear, fill(mix(who.skin, who.shade, 0.35 if s * who.light > 0 else 0.6)))
            canvas.drawPath(
                path((w, -3.5), (w + 4, -6, w + 4, -1), (w + 3.4, 3, w + 1, 6), close=False),
                stroke(who.shade, 1.1, 0.9, blur=0.4),
            )
            if who.earrings:
                canvas.drawCircle(w + 2.0, 13.0, 1.5, fill((222, 182, 104)))
                canvas.drawCircle(w + 1.6, 12.6, 0.5, fill((255, 240, 206)))
            canvas.restore()

    def _outline(self, drop: float, slide: float) -> Any:
        """The face: skull, cheeks, jaw and a chin lowered by `drop` and moved aside by `slide`."""
        who, w = self.who, self.who.face_width
        j, jy, chin, c = who.jaw * w, 25 + 0.35 * drop, who.chin + drop, who.chin_width
        s, e = 0.6 * slide, slide
        return path(
            (0, hair.TOP), (0.62 * w, hair.TOP, w, -30, w, -5), (w, 8, j + 4.0 + s, jy - 9, j + s, jy),
            (j - 4.5 + s, jy + 9, c + 5 + e, chin, e, chin),
            (-c - 5 + e, chin, -j + 4.5 + s, jy + 9, -j + s, jy), (-j - 4.0 + s, jy - 9, -w, 8, -w, -5),
            (-w, -30, -0.62 * w, hair.TOP, 0, hair.TOP),
        )  # fmt: skip

    def frame(self, canvas: Any, m: dict[str, float]) -> None:
        who, shape = self.who, _mouth(self.who, m)
        yaw, pitch, dx, dy = m["yaw"], m["pitch"], m["dx"], m["dy"]
        drop = DROP * shape.gap / features.OPENING
        degrees = math.degrees(m["roll"])

        def head() -> None:
            canvas.save()
            canvas.translate(EYES[0] + dx, EYES[1] + PIVOT + dy)
            canvas.rotate(degrees)
            canvas.translate(0, -PIVOT)

        head()
        canvas.translate(-1.2 * yaw, -0.6 * pitch)
        canvas.drawPicture(self.back_hair)
        canvas.restore()

        canvas.save()
        canvas.translate(0.25 * dx, 0.2 * dy)
        throat = scenery.neck(who, 0.7 * dx, dy)
        canvas.drawPath(throat, self.neck)
        canvas.save()
        canvas.clipPath(throat, doAntiAlias=True)
        blob(
            canvas, 64 + 0.75 * dx - 3 * who.light, EYES[1] + who.chin + 0.75 * dy + 0.8 * drop, 30, 15, self.under_chin
        )
        canvas.restore()
        canvas.drawPicture(self.clothes)
        canvas.restore()

        head()
        canvas.save()
        canvas.translate(-0.8 * yaw, -0.4 * pitch)
        canvas.drawPicture(self.ears)
        canvas.restore()
        outline = self._outline(drop, 1.4 * yaw)
        canvas.drawPath(outline, self.face)
        canvas.save()
        canvas.clipPath(outline, doAntiAlias=True)
        canvas.drawPath(outline, self.jaw_edge)
        blob(canvas, -(who.face_width + 4) * who.light, 8, 22, 50, self.side)
        canvas.translate(yaw, 0.5 * pitch)
        canvas.translate(0, 2.2)
        canvas.drawPicture(self.hair_shadow)
        canvas.translate(0.8 * yaw, 0.7 * pitch - 2.2)
        canvas.drawPicture(self.cheeks)
        canvas.drawPicture(self.sockets)
        blob(canvas, 0.6 * yaw, who.chin - 5 + drop, 8, 4.5, self.chin)
        canvas.restore()

        x, y = _mouth_place(who, m)
        canvas.save()
        canvas.translate(x, y - who.mouth_y)
        for beard, paint in hair.beard(who, drop):
            canvas.drawPath(beard, paint)
        canvas.translate(0, who.mouth_y)
        self.mouth.draw(canvas, shape, m["tuck"], m["tongue"])
        canvas.restore()

        canvas.save()
        canvas.translate(2.0 * yaw, 1.4 * pitch)
        self.eyes.draw(canvas, m["blink"], m["brow"], yaw, pitch)
        canvas.restore()
        canvas.save()
        canvas.translate(3.2 * yaw, 2.2 * pitch)
        canvas.drawPicture(self.nose)
        canvas.restore()
        canvas.save()
        canvas.translate(2.2 * yaw, 1.5 * pitch)
        canvas.drawPicture(self.glasses)
        canvas.restore()
        canvas.translate(0.8 * yaw, 0.4 * pitch)
        canvas.drawPicture(self.front_hair)
        canvas.restore()


def draw(identity: Identity, motion: Array, size: int = 128) -> Array:
    """uint8 RGB [n, size, size, 3] of motion [n, 13] in the order of MOTION."""
    skia = load_skia()
    rows = _rows(motion)
    if size < 16:
        raise ArgumentError(f"size must be at least 16 pixels, not {size}")
    person = _Portrait(identity)
    pixels = np.zeros((size, size, 4), np.uint8)
    surface = skia.Surface(pixels, colorType=skia.kRGBA_8888_ColorType)
    canvas = surface.getCanvas()
    canvas.scale(size / 128, size / 128)
    canvas.drawPicture(person.background)
    wall = pixels.copy()  # the background, drawn once
    out = np.empty((len(rows), size, size, 3), np.uint8)
    for picture, row in zip(out, rows):
        pixels[:] = wall
        person.frame(canvas, row)
        picture[:] = pixels[..., :3]
    return out
