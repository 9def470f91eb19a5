"""Eyes, brows, nose and mouth. Coordinates: pixels of a 128 px picture from the point between the eyes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rest_fast.training.synthetic.brush import (
    blob,
    fill,
    glow,
    linear,
    load_skia,
    mix,
    path,
    radial,
    record,
    stroke,
    tint,
)
from rest_fast.training.synthetic.identity import Identity

OPENING = 14.5  # gap between the lips of a mouth wide open, pixels


@dataclass(frozen=True)
class MouthShape:
    """Where the lips are, relative to the middle of the closed mouth (y grows downwards)."""

    gap: float  # between the inner lips at the middle
    half: float  # from the middle to a corner
    top: float  # y of the inner upper lip at the middle
    corner: float  # y of the corners
    upper: float  # thickness of the upper lip
    lower: float
    bulge: float  # 0 a lens with pointed corners .. 1 an ellipse

    @property
    def bottom(self) -> float:
        return self.top + self.gap


def mouth_shape(who: Identity, opening: float, width: float, rounded: float, press: float, tuck: float) -> MouthShape:
    """The lips of one frame. A rounded mouth is small but never shut unless `opening` is 0."""
    small = 0.19 * rounded * (1 - math.exp(-opening / 0.05))
    gap = (1 - press) * (
        OPENING * (opening * (1 - 0.25 * rounded) + small) + 1.6 * tuck * (1 - math.exp(-opening / 0.04))
    )
    half = who.mouth_width * (1 + 0.13 * width - 0.13 * opening) * (1 - 0.40 * rounded)
    thin = 1 - 0.42 * press + 0.18 * rounded - 0.12 * max(width, 0)
    return MouthShape(
        gap=gap,
        half=half,
        top=-0.22 * gap - 0.7 * tuck * (1 - press),
        corner=-who.mouth_curve * (1 + 0.5 * width) * (1 - 0.7 * rounded) + 0.27 * gap,
        upper=who.lip_upper * thin * (1 - 0.12 * opening),
        lower=who.lip_lower * thin * (1 - 0.5 * tuck) * (1 - 0.1 * opening),
        bulge=min(1.0, 0.5 * min(gap / 8, 1) + 0.9 * rounded * min(gap / 2, 1)),
    )


class Mouth:
    """Paints one person's mouth around (0, 0)."""

    def __init__(self, who: Identity) -> None:
        self.who = who
        lip, r = who.lips, who.mouth_width
        dark, light = tint(lip, (0.78, 0.70, 0.72)), mix(lip, (255, 226, 214), 0.22)
        self.upper = fill(shader=linear((0, -6), (0, 3), (0, tint(lip, 0.96), 1), (1, dark, 1)))
        self.lower = lip, light
        self.inside = fill(shader=radial(0, 6, 1.1 * r, (0, (70, 18, 24), 1), (1, (42, 10, 16), 1)))
        self.tongue = fill(
            shader=radial(0, -2, 12, (0, (206, 104, 104), 1), (0.6, (186, 82, 86), 1), (1, (128, 46, 54), 1))
        )
        white = mix((228, 216, 204), (250, 247, 243), who.teeth)
        edge = tint(white, (0.62, 0.54, 0.54))
        self.teeth = fill(
            shader=linear((-0.8 * r, 0), (0.8 * r, 0), (0, edge, 0), (0.26, white, 1), (0.74, white, 1), (1, edge, 0))
        )
        self.lower_teeth = fill(tint(white, 0.86), 0.9)
        self.rim = stroke((44, 10, 16), 1.3, 0.88)
        self.line = fill(tint(dark, (0.48, 0.40, 0.42)), 0.92)
        self.corner = glow(who.shade, 0.8)
        self.under = glow(who.shade, 0.55)
        self.gloss = glow((255, 240, 232), 0.34)
        self.philtrum = glow(who.shade, 0.35)

    def draw(self, canvas: Any, m: MouthShape, tuck: float, tongue: float) -> None:
        h, top, low, c = m.half, m.top, m.bottom, m.corner
        blob(canvas, 0, top - m.upper - 3.2, 2.4, 3.6, self.philtrum)
        blob(canvas, 0, low + m.lower + 1.6, 0.62 * h, 3.2, self.under)
        for side in (-1, 1):
            blob(canvas, side * (h + 0.3), c - 0.2, 2.6, 2.8, self.corner)
        # The inner contour: control points move from a lens to an ellipse.
        i, b = 0.94 * h, m.bulge
        x1, x2 = i * (0.62 + 0.38 * b), i * (0.34 + 0.22 * b)
        y1, y2 = c + (top - c) * (0.62 - 0.06 * b), c + (low - c) * (0.62 - 0.06 * b)
        dip = 0.45 * (1 - min(m.gap / 4, 1)) * (1 - b)  # the closed line follows the bow
        over = ((-x1, y1, -x2, top - dip, 0, top), (x2, top - dip, x1, y1, i, c))
        back = ((x1, y2, x2, low - dip, 0, low), (-x2, low - dip, -x1, y2, -i, c))
        # Outer lips: peaks of the bow above, a full curve below.
        peak, bow = top - m.upper, top - 0.70 * m.upper
        px = 0.25 * h
        lip_over = (
            (-0.72 * h, c - 0.35 * m.upper, -0.46 * h, peak + 0.1, -px, peak),
            (-0.13 * h, peak, -0.08 * h, bow, 0, bow),
            (0.08 * h, bow, 0.13 * h, peak, px, peak), (0.46 * h, peak + 0.1, 0.72 * h, c - 0.35 * m.upper, h, c),
        )  # fmt: skip
        floor = low + m.lower
        wide = 0.50 + 0.1 * b
        lip_back = (
            (0.86 * h, c + (floor - c) * 0.62, wide * h, floor, 0, floor),
            (-wide * h, floor, -0.86 * h, c + (floor - c) * 0.62, -h, c),
        )
        lip, light = self.lower
        shader = linear((0, low), (0, floor), (0, tint(lip, 0.86), 1), (0.45, light, 1), (1, tint(lip, 0.88), 1))
        canvas.drawPath(path((-h, c), (-i, c), *over, (h, c), *lip_back), fill(shader=shader))
        canvas.drawPath(
            path((-h, c), *lip_over, (i, c), (x1, y1, x2, top - dip, 0, top), (-x2, top - dip, -x1, y1, -i, c)),
            self.upper,
        )
        blob(canvas, -0.16 * h * self.who.light, low + 0.46 * m.lower, 0.42 * h, 0.5 * m.lower, self.gloss)
        if m.gap < 0.3:
            # A line that tapers to the corners.
            under = ((x1, y1 + 0.4, x2, top - dip + 1.0, 0, top + 0.95), (-x2, top - dip + 1.0, -x1, y1 + 0.4, -i, c))
            canvas.drawPath(path((-i, c), *over, *under), self.line)
            return
        inner = path((-i, c), *over, *back)
        canvas.save()
        canvas.clipPath(inner, doAntiAlias=True)
        canvas.drawPaint(self.inside)
        if tongue < 0.5:
            self._tongue(canvas, m, tongue)
        if m.gap > 7:
            t = 0.5 * h
            canvas.drawPath(
                path(
                    (-t, low),
                    (-t, low - 1.9, -0.4 * h, low - 1.5, 0, low - 1.3),
                    (0.4 * h, low - 1.5, t, low - 1.9, t, low),
                ),
                self.lower_teeth,
            )
        # The upper teeth stay with the skull: the lips uncover them.
        teeth = min(0.9 - 1.6 * m.bulge * (m.gap < 8), low - 0.7) if tuck < 0.5 else low + 0.4
        t = min(0.84 * h, 0.78 * self.who.mouth_width)
        canvas.drawPath(
            path(
                (-t, top - 3),
                (t, top - 3),
                (t, teeth - 1.6),
                (0.8 * t, teeth - 0.2, 0, teeth + 0.5),
                (-0.8 * t, teeth - 0.2, -t, teeth - 1.6),
            ),
            self.teeth,
        )
        if tongue >= 0.5:  # its tip shows below the teeth
            self._tongue(canvas, m, tongue)
        canvas.drawPath(inner, self.rim)
        canvas.restore()

    def _tongue(self, canvas: Any, m: MouthShape, tongue: float) -> None:
        """Behind the lower lip; for th and l its tip comes up to the teeth."""
        if m.gap < 1.5:
            return
        canvas.save()
        canvas.translate(0, m.bottom - 0.42 * m.gap + 1.6 - 0.34 * tongue * m.gap)
        w = (0.62 - 0.14 * tongue) * m.half
        canvas.drawPath(path((-w, 14), (-w, 1, -0.5 * w, 0, 0, 0.4), (0.5 * w, 0, w, 1, w, 14)), self.tongue)
        canvas.restore()


class Eyes:
    """Paints one person's eyes and brows around the point between the eyes."""

    def __init__(self, who: Identity) -> None:
        self.who = who
        r = 0.50 * who.eye_size
        self.radius = r
        dark = tint(who.iris, 0.42)
        self.iris = fill(
            shader=radial(
                0,
                0.25 * r,
                r,
                (0, tint(who.iris, 1.35), 1),
                (0.62, who.iris, 1),
                (0.86, dark, 1),
                (1, tint(dark, 0.7), 1),
            )
        )
        tall = who.eye_tall * who.eye_size
        shadow = mix((196, 186, 186), who.shade, 0.35)
        self.white = fill(
            shader=linear((0, -tall), (0, tall), (0, shadow, 1), (0.45, (246, 242, 238), 1), (1, (236, 228, 224), 1))
        )
        self.pupil = fill((16, 11, 13))
        self.glint = fill((255, 255, 255), 0.95)
        self.soft_glint = fill((255, 255, 255), 0.35)
        self.lash = fill(mix((30, 20, 20), who.hair, 0.25 * (1 - who.lashes)), 0.92)
        self.hairs = stroke((30, 20, 20), 0.55, 0.85)
        self.crease = stroke(tint(who.shade, 0.82), 0.8, 0.55)
        self.lower_line = stroke(tint(who.shade, 0.8), 0.6, 0.5)
        self.lid = fill(mix(who.skin, who.shade, 0.32), 0.9)
        brow = mix(tint(who.hair, 0.72), (44, 32, 28), 0.35)
        self.brow = fill(brow, 0.9, blur=0.28)

    def draw(self, canvas: Any, blink: float, brow: float, yaw: float, pitch: float) -> None:
        who = self.who
        for side in (-1, 1):
            canvas.save()
            # The eye that turns away gets narrower; x grows outwards for both.
            canvas.translate(side * who.eye_gap, 0)
            canvas.scale(side * (1 + 0.06 * side * yaw), 1)
            self._brow(canvas, brow)
            self._eye(canvas, side, blink, -0.8 * yaw * side, -0.5 * pitch)
            canvas.restore()

    def _eye(self, canvas: Any, side: int, blink: float, look_x: float, look_y: float) -> None:
        who, w = self.who, self.who.eye_size
        tall = who.eye_tall * w
        rest, under = -1.12 * tall, 0.84 * tall
        shut = under - 0.25 * tall
        up, low = rest + (shut - rest) * blink, under - 0.25 * tall * blink
        inner, outer, tilt = (-w, 0.7), (w, -who.eye_tilt), who.eye_tilt
        sink = 0.5 * blink
        above = (-0.62 * w, up * 1.28 + 0.3, 0.42 * w, up * 1.36 - tilt, outer[0], outer[1] + sink)
        below = (0.6 * w, low * 1.34, -0.4 * w, low * 1.30, inner[0], inner[1] + sink)
        start = (inner[0], inner[1] + sink)
        if blink > 0.02:  # the lid that came down, a little darker than the brow bone
            high = (0.42 * w, rest * 1.5 - tilt, -0.62 * w, rest * 1.4, *start)
            canvas.drawPath(path(start, above, high), self.lid)
        if blink < 0.95:
            canvas.save()
            canvas.clipPath(path(start, above, below), doAntiAlias=True)
            canvas.drawPaint(self.white)
            canvas.translate(look_x, look_y - 0.1 * tall + 0.2 * blink)
            r = self.radius
            canvas.drawCircle(0, 0, r, self.iris)
            canvas.drawCircle(0, 0, 0.45 * r, self.pupil)
            canvas.drawCircle(0.36 * r * side * who.light, -0.40 * r, 0.25 * r, self.glint)
            canvas.drawCircle(-0.34 * r * side * who.light, 0.45 * r, 0.16 * r, self.soft_glint)
            canvas.restore()
            canvas.drawPath(
                path(start, (-0.4 * w, low * 1.30, 0.6 * w, low * 1.34, *outer), close=False), self.lower_line
            )
        # The lash line: a crescent along the lid, thick towards the outer corner.
        thick = 0.75 + 0.55 * who.lashes
        flick = (outer[0] + 0.5 + 1.5 * who.lashes, outer[1] - 0.9 * who.lashes * (1 - 1.6 * blink) + sink)
        crest = (0.42 * w, above[3] - 1.25 * thick, -0.62 * w, above[1] - 0.9 * thick, start[0] - 0.4, start[1])
        canvas.drawPath(path(start, above, flick, crest), self.lash)
        if who.lashes > 0.3:
            for k in (0.45, 0.72, 0.95):
                x, y = k * w, outer[1] + sink + (above[3] * 0.72 - outer[1]) * (1 - k * k) - 0.4
                canvas.drawLine(x, y, x + 1.5 * k, y - (1.9 * who.lashes) * (1 - 2 * blink), self.hairs)
        if blink < 0.9:
            y = rest * 1.38 - 1.5 + 1.4 * blink
            canvas.drawPath(
                path(
                    (-0.8 * w, 0.4 * rest - 0.9),
                    (-0.4 * w, y, 0.5 * w, y - tilt, 1.02 * w, 0.25 * rest - tilt),
                    close=False,
                ),
                self.crease,
            )

    def _brow(self, canvas: Any, raised: float) -> None:
        who, w, t = self.who, self.who.eye_size, self.who.brow_thick
        y = -who.brow_height - 2.6 * raised
        a, inner, tail = who.brow_arch + 0.5 * raised, y - 0.5 - 0.5 * raised, y + 1.7 + 0.3 * raised
        canvas.drawPath(
            path(
                (-1.02 * w, inner + 0.5 * t), (-1.0 * w, inner - 0.4 * t),
                (-0.3 * w, y - a - 0.30 * t, 0.35 * w, y - a - 0.55 * t),
                (0.9 * w, y - a - 0.2 * t, 1.36 * w, tail), (0.85 * w, y - a + 0.62 * t, 0.35 * w, y - a + 0.5 * t),
                (-0.3 * w, y - a + 0.8 * t, -1.02 * w, inner + 0.6 * t),
            ),
            self.brow,
        )  # fmt: skip


def sockets(who: Identity) -> Any:
    """A picture: the soft shade of the eye sockets and the light on the brow bone."""

    def paint(canvas: Any) -> None:
        shade, shine = glow(who.shade, 0.42), glow(who.shine, 0.30)
        for side in (-1, 1):
            x = side * who.eye_gap
            blob(canvas, x - side * 1.5, -1.0, 1.55 * who.eye_size, 8.5, shade)
            blob(canvas, x - side * 5.8, -1, 4.5, 7, shade)
            blob(canvas, x + side * 2, -6.6, 7, 2.6, shine)
            blob(canvas, x, 8.5, 7.5, 2.6, shine)

    return record(paint)


def nose(who: Identity) -> Any:
    """A picture: bridge in light, one side in shade, wings and nostrils."""
    n, y, side = who.nose_width, who.nose_length, -math.copysign(1, who.light)

    def paint(canvas: Any) -> None:
        soft, dark = glow(who.shade, 0.55), tint(who.shade, (0.66, 0.58, 0.58))
        bridge = path(
            (side * 2.2, -5),
            (side * 3.6, 2, side * 2.4, 8, side * (0.72 * n), y - 2.5),
            (side * 1.5, y - 3, side * 0.9, 2, side * 2.2, -5),
        )
        canvas.drawPath(bridge, fill(who.shade, 0.42, blur=1.1))
        blob(canvas, 0, y + 1.6, 1.25 * n, 3.6, soft)
        blob(canvas, side * 0.85 * n, y - 1.5, 3.2, 4.2, soft)
        blob(canvas, -side * 0.3, 4, 2.6, 11, glow(who.shine, 0.55))
        blob(canvas, -side * 0.6, y - 3.0, 3.4, 3.2, glow(who.shine, 0.8))
        for s in (-1, 1):
            wing = path(
                (s * 0.78 * n, y - 4.2),
                (s * 1.12 * n, y - 2.8, s * 1.06 * n, y + 0.6, s * 0.66 * n, y + 0.4),
                close=False,
            )
            canvas.drawPath(wing, stroke(who.shade, 0.9, 0.85, blur=0.25))
            hole = path(
                (s * 0.20 * n, y + 0.8),
                (s * 0.30 * n, y - 0.7, s * 0.62 * n, y - 0.6, s * 0.66 * n, y + 0.4),
                (s * 0.4 * n, y + 0.3, s * 0.20 * n, y + 0.8),
            )
            canvas.drawPath(hole, fill(dark, 0.85, blur=0.2))
        base = path((-0.34 * n, y + 0.9), (-0.1 * n, y + 1.9, 0.1 * n, y + 1.9, 0.34 * n, y + 0.9), close=False)
        canvas.drawPath(base, stroke(who.shade, 0.8, 0.7, blur=0.25))

    return record(paint)


def cheeks(who: Identity) -> Any:
    """A picture: blush, light on the cheekbones, the fold beside the mouth, freckles."""
    rng = np.random.default_rng(who.scene_seed)

    def paint(canvas: Any) -> None:
        red, w = tint(who.skin, (1.0, 0.70, 0.66)), who.face_width
        for side in (-1, 1):
            blob(canvas, side * 0.60 * w, 14, 11, 8.5, glow(red, 0.22 + 0.25 * who.blush))
            lit = 0.42 if side * who.light > 0 else 0.2
            blob(canvas, side * 0.58 * w, 9, 9, 5, glow(who.shine, lit))
            fold = path((side * 1.35 * who.nose_width, 16.5), (side * 0.50 * w, 20, side * 0.53 * w, 24), close=False)
            canvas.drawPath(fold, stroke(who.shade, 1.3, 0.28, blur=0.9))
        for _ in range(int(34 * who.freckles)):
            x, y = rng.normal(0, 11), rng.normal(10.5, 3.0)
            canvas.drawCircle(x, y + 0.004 * x * x, rng.uniform(0.25, 0.55), fill((150, 92, 62), 0.35))

    return record(paint)


def glasses(who: Identity) -> Any:
    """A picture of the frame; empty for those who wear none."""
    skia = load_skia()

    def paint(canvas: Any) -> None:
        if who.glasses == "none":
            return
        frame = stroke((46, 38, 38) if who.light > 0 else (112, 76, 48), 1.25, 0.95)
        wide, tall = (9.6, 8.8) if who.glasses == "round" else (10.4, 7.2)
        corner = wide if who.glasses == "round" else 3.2
        for side in (-1, 1):
            box = skia.RRect.MakeRectXY(
                skia.Rect.MakeXYWH(side * who.eye_gap - wide, 1.0 - tall, 2 * wide, 2 * tall), corner, min(corner, tall)
            )
            canvas.drawRRect(
                box,
                fill(
                    shader=linear(
                        (side * who.eye_gap - 8, -8),
                        (side * who.eye_gap + 8, 9),
                        (0, (255, 255, 255), 0.16),
                        (0.5, (255, 255, 255), 0.02),
                        (1, (255, 255, 255), 0.07),
                    )
                ),
            )
            canvas.drawRRect(box, frame)
            canvas.drawLine(side * (who.eye_gap + wide), -1.5, side * (who.face_width - 0.5), -2.5, frame)
        inside = who.eye_gap - wide
        canvas.drawPath(path((-inside, -1), (0, -3.6, inside, -1), close=False), frame)

    return record(paint)
