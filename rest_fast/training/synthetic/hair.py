"""Hair and beards. Coordinates: pixels of a 128 px picture from the point between the eyes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rest_fast.training.synthetic.brush import blob, fill, glow, load_skia, mix, path, radial, record, stroke, tint
from rest_fast.training.synthetic.identity import Identity

Disc = tuple[float, float, float]  # x, y, radius
TOP = -41.0  # y of the top of the skull


def _paint(who: Identity, back: bool) -> Any:
    """Hair lit from the upper side of the light, dark towards the tips; what is behind is in shade."""
    h = tint(who.hair, (0.82 if who.style == "curls" else 0.68) if back else 1.0)
    light = mix(h, (255, 232, 206), 0.05 if back else 0.17)
    return fill(shader=radial(14 * who.light, -36, 78, (0, light, 1), (0.45, h, 1), (1, tint(h, 0.62), 1)))


def _cap(who: Identity, side_y: float, *inner: tuple[float, ...], volume: float | None = None) -> Any:
    """Over the skull from ear to ear, then back along the hairline `inner` (right to left)."""
    w, v = who.face_width, who.volume if volume is None else volume
    return path(
        (-w - 0.8, side_y), (-w - 0.4 * v - 1.5, -18, -w - 0.3 * v - 1, TOP - v, 0, TOP - v),
        (w + 0.3 * v + 1, TOP - v, w + 0.4 * v + 1.5, -18, w + 0.8, side_y), *inner,
    )  # fmt: skip


def _cloud(points: Sequence[Disc], *solids: Any) -> Any:
    """The union of discs (x, y, radius) and solid paths: curls."""
    skia = load_skia()
    builder = skia.OpBuilder()
    for solid in solids:
        builder.add(solid, skia.PathOp.kUnion_PathOp)
    for x, y, r in points:
        builder.add(skia.Path.Circle(x, y, r), skia.PathOp.kUnion_PathOp)
    return builder.resolve()


def _ring(rng: np.random.Generator, rx: float, ry: float, y: float, reach: float, size: float) -> list[Disc]:
    """Discs along an arch over the head: angles within +-`reach` of straight up."""
    count = int(reach * 2 * max(rx, ry) / (1.05 * size))
    angles = np.linspace(-reach, reach, count)
    return [
        (float(rx * math.sin(a)), float(y - ry * math.cos(a)), float(size * rng.uniform(0.85, 1.2))) for a in angles
    ]  # fmt: skip


def shapes(who: Identity) -> tuple[list[Any], list[Any]]:
    """Paths behind the head and in front of it."""
    skia = load_skia()
    rng = np.random.default_rng(who.scene_seed)
    w, v, line = who.face_width, who.volume, -who.hairline
    side = math.copysign(1, who.part)
    p = who.part * 0.55 * w
    sweep = _cap(who, -2,  # parted: the line rises to the part and falls to both temples
        (w - 2.0, -1), (w - 2.6, -12, w - 5, line + 6, p + 0.35 * (w - p), line + 0.5),
        (p + 4, line - 3, p + 1, line - 5, p, line - 6),
        (p - 1, line - 5, p - 4, line - 3, p - 0.35 * (w + p), line + 0.5),
        (-w + 5, line + 6, -w + 2.6, -12, -w + 2.0, -1))  # fmt: skip

    def behind(width: float, bottom: float, taper: float) -> Any:
        return path((-w - 0.3 * v, -20), (-w - 0.4 * v, TOP - v, w + 0.4 * v, TOP - v, w + 0.3 * v, -20),
                    (w + width, 10, w + width, bottom - 18, w + width - taper, bottom),
                    (0, bottom + 5, -w - width + taper, bottom),
                    (-w - width, bottom - 18, -w - width, 10, -w - 0.3 * v, -20))  # fmt: skip

    def lock(s: float, bottom: float, out: float, tuck: float = 0.0) -> Any:
        """Hair that falls in front of one shoulder."""
        return path((s * (w - 5), -30),
        (s * (w + 0.5 * v + 1), -28, s * (w + 0.6 * v + out), 4, s * (w + out + 1), 30),
                    (s * (w + out + 1), 46, s * (w + out - 4), bottom - 12, s * (w + out - 8), bottom),
                    (s * (w - 6), bottom - 10, s * (w - 4 + tuck), 44, s * (w - 2.5 + tuck), 30),
                    (s * (w - 0.5), 14, s * (w - 1.0), -4, s * (w - 5), -30))  # fmt: skip

    style = who.style
    if style == "bald":
        return [], []
    if style == "buzz":
        return [], [_cap(who, -4, (w - 1.5, -3), (w - 2, -14, w - 7, line + 1, w - 13, line - 2),
                (6, line - 4, -6, line - 4, -w + 13, line - 2),
                         (-w + 7, line + 1, -w + 2, -14, -w + 1.5, -3), volume=0.4)]  # fmt: skip
    if style == "short":
        return [], [_cap(who, 1, (w - 1.8, 3), (w - 2.2, -8, w - 4, -15, w - 7, line + 3),
                (w - 12, line - 3, side * 8, line - 2, p, line - 3),
                         (-side * 6, line + 3, -w + 12, line - 1, -w + 7, line + 3),
                         (-w + 4, -15, -w + 2.2, -8, -w + 1.8, 3))]  # fmt: skip
    if style == "quiff":
        top = TOP - v
        return [], [path((-w - 0.6, 1), (-w - 2.5, -18, -w - 1, top + 6, -0.45 * w, top - 1),
                         (-0.2 * w, top - 7, 0.55 * w, top - 7, 0.72 * w, top + 3),
                         (w + 2, top + 12, w + 2, -16, w + 0.6, 1), (w - 1.8, 3),
                         (w - 2.2, -8, w - 4, -16, w - 7, line),
                         (w - 11, line - 5, 6, line - 6, 0, line - 4),
                         (-8, line - 1, -w + 12, line - 3, -w + 7, line + 1),
                         (-w + 4, -15, -w + 2.2, -8, -w + 1.8, 3))]  # fmt: skip
    if style == "fringe":
        bangs = _cap(who, 12, (w - 2.5, 12), (w - 3, -2, w - 3.5, -9, w - 4.5, -14),
                (w - 9, -16.5, 6, -17.5, 0, -16.5),
                     (-6, -17.5, -w + 9, -16.5, -w + 4.5, -14), (-w + 3.5, -9, -w + 3, -2, -w + 2.5, 12))  # fmt: skip
        return [behind(v + 2, 52, 6)], [lock(-1, 50, 3.5), lock(1, 50, 3.5), bangs]
    if style == "long":
        return [behind(v + 3, 78, 6)], [lock(-1, 84, 6, -2), lock(1, 84, 6, -2), sweep]
    if style == "bob":
        return [behind(v + 1.5, 43, 7)], [lock(-1, 43, 4.5), lock(1, 43, 4.5), sweep]
    if style == "bun":
        knot = skia.Path.Circle(0, TOP - v - 1, 9.5)
        pulled = _cap(who, -3, (w - 1.6, -2), (w - 2.2, -14, w - 6, line - 1, w - 14, line - 4),
                (8, line - 8, -8, line - 8, -w + 14, line - 4),
                      (-w + 6, line - 1, -w + 2.2, -14, -w + 1.6, -2))  # fmt: skip
        return [knot], [pulled]
    if style == "waves":
        curls = [(s * (w + 0.5 + 1.8 * math.sin(k * 2.4 + s)), 6 + 11 * k, 10.5) for s in (-1, 1) for k in range(6)]
        return [_cloud(curls, behind(v + 2, 62, 4))], [lock(-1, 60, 4.5), lock(1, 60, 4.5), sweep]
    if style == "curls":
        ring = _ring(rng, w + 1.5, 40 + 0.3 * v, -2, 1.75, 7.4)
        front = _ring(rng, w - 7, 26, -6, 1.05, 6.0)
        crown = [
            (float(x), float(y), 8.5) for x, y in ((-16, -34), (-5, -38), (6, -38), (17, -34), (-22, -28), (22, -28))
        ]
        return [_cloud(_ring(rng, w + 2, 40, 0, 2.15, 8.0), behind(v - 1, 22, 6))], [
            _cloud(ring + front + crown, sweep)
        ]
    # afro: a round cloud, its hairline low and even
    ring = _ring(rng, w + 9, 45, -6, 1.9, 6.5)
    ball = skia.Path.Oval(skia.Rect.MakeLTRB(-w - 10, -52, w + 10, 24))
    front = _cap(who, -2, (w - 1.4, 0), (w - 2.2, -14, w - 6, line + 1, w - 13, line - 1),
            (6, line - 3, -6, line - 3, -w + 13, line - 1),
                 (-w + 6, line + 1, -w + 2.2, -14, -w + 1.4, 0))  # fmt: skip
    return [_cloud(ring, ball)], [front]


def _strands(canvas: Any, who: Identity, rng: np.random.Generator, lower: bool) -> None:
    """Fine lines that follow the fall of the hair, lighter and darker than it."""
    w, p = who.face_width, who.part * 0.55 * who.face_width
    light, dark = mix(who.hair, (255, 226, 190), 0.30), tint(who.hair, 0.6)
    for k in range(26):
        s = -1 if k % 2 else 1
        u = rng.uniform(0.1, 1.0)
        start = (p + s * 2 * u, TOP - who.volume + 3 + 9 * (1 - u) + rng.uniform(0, 3))
        end_y = rng.uniform(-14, 0) if not lower or u < 0.4 else rng.uniform(20, 70)
        end_x = s * (w - 4 + 9 * u) if lower else s * (w - 8 + 9 * u)
        curve = path(
            start,
            (p + s * (0.4 * w * u + 4), start[1] - 1.5, end_x + s * 2, -36 + 8 * (1 - u), end_x, end_y),
            close=False,
        )
        canvas.drawPath(curve, stroke(light if k % 3 else dark, rng.uniform(0.4, 0.9), 0.22))


def _curl_marks(canvas: Any, who: Identity, rng: np.random.Generator, rx: float, ry: float, y: float) -> None:
    """Small arcs of light and shade scattered over curls."""
    skia = load_skia()
    light, dark = mix(who.hair, (255, 226, 190), 0.22), tint(who.hair, 0.55)
    for k in range(90):
        a, r = rng.uniform(-2.2, 2.2), math.sqrt(rng.uniform(0.2, 1))
        x0, y0, size = rx * r * math.sin(a), y - ry * r * math.cos(a), rng.uniform(2, 4.2)
        box = skia.Rect.MakeXYWH(x0 - size / 2, y0 - size / 2, size, size)
        paint = stroke(light if k % 2 else dark, rng.uniform(0.6, 1.0), 0.30)
        canvas.drawArc(box, float(rng.uniform(150, 260)), 130, False, paint)


def hair(who: Identity) -> tuple[Any, Any]:
    """Pictures of the hair behind the head and in front of it."""
    back_paths, front_paths = shapes(who)
    w = who.face_width
    long = who.style in ("long", "bob", "fringe", "waves")

    def back(canvas: Any) -> None:
        rng = np.random.default_rng(who.scene_seed + 1)
        for shape in back_paths:
            canvas.drawPath(shape, _paint(who, who.style not in ("afro", "bun")))
            if who.style in ("afro", "curls"):
                canvas.save()
                canvas.clipPath(shape, doAntiAlias=True)
                _curl_marks(canvas, who, rng, w + 14, 50, -4)
                canvas.restore()
            if who.style == "bun":
                knot = stroke(mix(who.hair, (255, 226, 190), 0.3), 0.8, 0.35)
                for r in (3.5, 6, 8.3):
                    canvas.drawArc(
                        load_skia().Rect.MakeXYWH(-r, TOP - who.volume - 1 - r, 2 * r, 2 * r),
                        190 + 10 * r,
                        150,
                        False,
                        knot,
                    )

    def front(canvas: Any) -> None:
        rng = np.random.default_rng(who.scene_seed + 2)
        for shape in front_paths:
            paint = _paint(who, False)
            if who.style == "buzz":  # cropped close: the skin shines through
                paint = fill(tint(who.hair, 0.85), 0.8, blur=0.5)
            canvas.drawPath(shape, paint)
            canvas.save()
            canvas.clipPath(shape, doAntiAlias=True)
            if who.style == "curls":
                _curl_marks(canvas, who, rng, w + 6, 44, -2)
            elif who.style not in ("buzz", "afro"):
                _strands(canvas, who, rng, long)
            if who.style != "buzz":
                sheen = path(
                    (-0.8 * w, -24),
                    (-0.5 * w, TOP + 3 - 0.3 * who.volume, 0.5 * w, TOP + 3 - 0.3 * who.volume, 0.8 * w, -24),
                    close=False,
                )
                canvas.drawPath(sheen, stroke(mix(who.hair, (255, 236, 214), 0.55), 4.0, 0.20, blur=2.2))
            blob(canvas, -30 * who.light, -14, 22, 40, glow(tint(who.hair, 0.4), 0.35))
            canvas.restore()

    return record(back), record(front)


def beard(who: Identity, drop: float) -> list[tuple[Any, Any]]:
    """Paths with their paints, below a jaw lowered by `drop` pixels: beard, moustache."""
    if who.beard == "none":
        return []
    w, m, chin, j = who.face_width, who.mouth_y, who.chin + drop, who.jaw * who.face_width
    colour = mix(tint(who.hair, 0.8), who.shade, 0.18)
    out = []
    if who.beard in ("full", "stubble"):
        full = who.beard == "full"
        paint = fill(colour, 0.86 if full else 0.26, blur=1.0)
        low, k = (chin + 3, 1.5) if full else (chin, 0)
        out.append((path(
            (-w + 0.2 - k * 0.3, 0),
            (-w - k * 0.6, 14, -j - k - 1, 24 + 0.4 * drop, -j * 0.86 - k, 33 + 0.6 * drop),
            (-j * 0.6, low, -6, low, 0, low),
            (6, low, j * 0.6, low, j * 0.86 + k, 33 + 0.6 * drop),
            (j + k + 1, 24 + 0.4 * drop, w + k * 0.6, 14, w - 0.2 + k * 0.3, 0),
            (w - 4, 10, w - 6, 15, 0.62 * w, m - 6), (0.4 * w, m - 9, 5, m - 8.5, 0, m - 8),
            (-5, m - 8.5, -0.4 * w, m - 9, -0.62 * w, m - 6), (-w + 6, 15, -w + 4, 10, -w + 0.2, 0),
        ), paint))  # fmt: skip
    if who.beard == "goatee":
        out.append(
            (
                path(
                    (0, m + 7.5 + 0.9 * drop),
                    (-5, m + 7.5 + 0.9 * drop, -9, m + 10 + drop, -9.5, chin - 3),
                    (-9, chin + 1, -5, chin + 3, 0, chin + 3),
                    (5, chin + 3, 9, chin + 1, 9.5, chin - 3),
                    (9, m + 10 + drop, 5, m + 7.5 + 0.9 * drop, 0, m + 7.5 + 0.9 * drop),
                ),
                fill(colour, 0.85, blur=0.9),
            )
        )
    if who.beard in ("full", "goatee", "moustache"):
        r = 0.95 * who.mouth_width
        y = m - 4.6
        out.append(
            (
                path(
                    (0, y - 1.6),
                    (0.3 * r, y - 2.6, 0.8 * r, y - 0.6, 1.02 * r, y + 4.6),
                    (0.7 * r, y + 3.0, 0.3 * r, y + 2.2, 0, y + 1.6),
                    (-0.3 * r, y + 2.2, -0.7 * r, y + 3.0, -1.02 * r, y + 4.6),
                    (-0.8 * r, y - 0.6, -0.3 * r, y - 2.6, 0, y - 1.6),
                ),
                fill(colour, 0.9, blur=0.6),
            )
        )
    return out


def shadow(who: Identity) -> Any:
    """A picture: what the front hair throws on the forehead."""
    paint = fill(who.shade, 0.5, blur=1.6)

    def throw(canvas: Any) -> None:
        for shape in shapes(who)[1]:
            canvas.drawPath(shape, paint)

    return record(throw)
