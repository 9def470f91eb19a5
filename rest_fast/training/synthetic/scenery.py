"""What is behind and below the head: backgrounds, shoulders and clothes. Pixels of a 128 px picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from rest_fast.training.synthetic.brush import blob, fill, glow, linear, load_skia, mix, path, record, stroke, tint
from rest_fast.training.synthetic.identity import WALLS, Identity


def background(who: Identity) -> Any:
    """A picture of the room, out of focus."""
    skia = load_skia()
    above, below, warm, cool = WALLS[who.wall]
    rng = np.random.default_rng(who.scene_seed)

    def box(canvas: Any, x: float, y: float, w: float, h: float, paint: Any) -> None:
        canvas.drawRect(skia.Rect.MakeXYWH(x, y, w, h), paint)

    def shelf(canvas: Any) -> None:
        board = fill(mix(below, (92, 66, 48), 0.45), 0.75, blur=1.2)
        for y in (24.0, 64.0, 104.0):
            x = float(rng.uniform(-8, 0))
            while x < 132:
                w, h = float(rng.uniform(4, 9)), float(rng.uniform(20, 32))
                colour = mix(mix(warm, cool, float(rng.random())), (120, 70, 60), float(rng.uniform(0, 0.35)))
                if rng.random() < 0.78:
                    box(canvas, x, y - h, w, h, fill(tint(colour, float(rng.uniform(0.75, 1.02))), 0.7, blur=1.6))
                x += w + 0.6
            box(canvas, -5, y, 140, 3.2, board)

    def window(canvas: Any) -> None:
        x = 78.0 if who.light > 0 else -14.0
        sky = linear(
            (0, 5), (0, 85), (0, mix(cool, (236, 244, 250), 0.75), 0.95), (1, mix(warm, (255, 246, 230), 0.6), 0.95)
        )
        box(canvas, x, 6, 64, 78, fill(blur=2.5, shader=sky))
        for _ in range(5):
            blob(
                canvas, x + 64 * float(rng.random()), 74 + 8 * float(rng.random()), 14, 11, glow((112, 140, 104), 0.55)
            )
        bar = fill(mix(above, (250, 248, 244), 0.6), 0.9, blur=1.3)
        box(canvas, x + 30, 6, 3.4, 78, bar)
        box(canvas, x, 40, 64, 3, bar)
        box(canvas, x - 3, 82, 70, 5, bar)

    def plant(canvas: Any) -> None:
        x = 112.0 if who.light < 0 else 16.0
        for _ in range(15):
            a, length = float(rng.uniform(-1.25, 1.25)), float(rng.uniform(34, 60))
            green = tint(mix((74, 116, 82), (128, 152, 92), float(rng.random())), float(rng.uniform(0.75, 1.05)))
            canvas.save()
            canvas.translate(x, 116)
            canvas.rotate(57.3 * a)
            canvas.drawPath(
                path((0, 0), (7.5, -0.5 * length, 0, -length), (-7.5, -0.5 * length, 0, 0)),
                fill(mix(green, below, 0.2), 0.85, blur=1.5),
            )
            canvas.restore()
        canvas.drawPath(
            path((x - 13, 110), (x + 13, 110), (x + 10, 132), (x - 10, 132)),
            fill(mix((188, 112, 84), warm, 0.3), 0.9, blur=1.4),
        )

    def bokeh(canvas: Any) -> None:
        for _ in range(16):
            x, y, r = (float(rng.uniform(*span)) for span in ((-5, 133), (-5, 110), (4, 13)))
            colour = mix(warm, (255, 240, 214), float(rng.uniform(0.1, 0.6)))
            canvas.drawCircle(x, y, r, fill(colour, float(rng.uniform(0.10, 0.28)), blur=0.8))

    def paint(canvas: Any) -> None:
        box(canvas, -5, -5, 140, 140, fill(shader=linear((0, 0), (20, 128), (0, above, 1), (1, below, 1))))
        for _ in range(4):
            x, y, r = (float(rng.uniform(*span)) for span in ((0, 128), (0, 128), (26, 52)))
            blob(canvas, x, y, r, r, glow(warm if rng.random() < 0.5 else cool, 0.4))
        scenes = {"shelf": shelf, "window": window, "plant": plant, "bokeh": bokeh}
        if who.scene in scenes:
            scenes[who.scene](canvas)
        blob(canvas, 64 + 40 * who.light, 26, 70, 66, glow(mix(warm, (255, 250, 240), 0.6), 0.34))
        for x in (-8, 136):
            blob(canvas, x, 128, 60, 90, glow(tint(below, 0.45), 0.36))

    return record(paint)


def neck(who: Identity, sway: float, lift: float) -> Any:
    """The neck from under a head moved by `sway`, `lift` pixels down into the collar, as a path."""
    n = 0.50 * who.face_width + 0.3 * (who.chin_width - 7)
    t = 64 + sway
    return path(
        (t - n, 78 + lift), (t - n, 96, 64 - n + 0.5, 104, 64 - n - 3, 109),
        (64 - n - 8, 114, 64 - 36, 116, 64 - 46, 120), (18, 140), (110, 140), (110, 120),
        (64 + 36, 116, 64 + n + 8, 114, 64 + n + 3, 109), (64 + n - 0.5, 104, t + n, 96, t + n, 78 + lift),
    )  # fmt: skip


def clothes(who: Identity) -> Any:
    """A picture of shoulders and collar around x = 64."""
    n = 0.50 * who.face_width + 0.3 * (who.chin_width - 7)
    c, dark = who.clothes, tint(who.clothes, 0.58)
    light = mix(c, (255, 250, 240), 0.16)
    side = who.light
    body = fill(
        shader=linear((64 - 56 * side, 128), (64 + 50 * side, 104), (0, tint(c, 0.62), 1), (0.55, c, 1), (1, light, 1))
    )
    seam = stroke(dark, 0.8, 0.6, blur=0.3)
    soft = stroke(dark, 2.4, 0.35, blur=1.4)

    def around(x: float, y: float, *neckline: tuple[float, ...]) -> Any:
        """Shoulders with the neckline from (64 - x, y) to (64 + x, y)."""
        return path((64 - x, y), *neckline, (64 + x + 8, y + 5, 64 + 38, y + 7, 64 + 49, 119),
        (64 + 58, 123, 64 + 62, 130, 64 + 64, 142),
                    (0, 142), (2, 130, 6, 123, 15, 119), (64 - 38, y + 7, 64 - x - 8, y + 5, 64 - x, y))  # fmt: skip

    def folds(canvas: Any) -> None:
        for s in (-1, 1):
            canvas.drawPath(path((64 + s * 44, 119), (64 + s * 40, 126, 64 + s * 42, 134), close=False), soft)
            canvas.drawPath(path((64 + s * 22, 121), (64 + s * 26, 127, 64 + s * 24, 134), close=False), soft)

    def crew(canvas: Any) -> None:
        x, y = n + 3.5, 109.0
        dip = (64 - x + 3, y + 11, 64 + x - 3, y + 11, 64 + x, y)
        canvas.drawPath(around(x, y, dip), body)
        folds(canvas)
        canvas.drawPath(path((64 - x, y), dip, close=False), stroke(tint(c, 0.82), 2.4))
        canvas.drawPath(
            path((64 - x - 1, y + 1.2), (64 - x + 2, y + 13.3, 64 + x - 2, y + 13.3, 64 + x + 1, y + 1.2), close=False),
            seam,
        )

    def vee(canvas: Any) -> None:
        x, y = n + 4, 109.5
        canvas.drawPath(around(x, y, (64 - x + 6, y + 9, 64, 130), (64 + x - 6, y + 9, 64 + x, y)), body)
        folds(canvas)
        for s in (-1, 1):
            canvas.drawPath(
                path((64 + s * x, y), (64 + s * (x - 6), y + 9, 64, 130), close=False), stroke(tint(c, 0.8), 2.0)
            )

    def shirt(canvas: Any) -> None:
        x, y = n + 3, 108.5
        canvas.drawPath(around(x, y, (64 - 3, 122), (64 + 3, 122), (64 + x, y)), body)
        folds(canvas)
        canvas.drawLine(64, 121, 64, 140, seam)
        for s in (-1, 1):
            flap = path(
                (64 + s * (n + 0.5), 103.5),
                (64 + s * (n + 5), 105.5, 64 + s * (n + 6), 110),
                (64 + s * 10.5, 126),
                (64 + s * 1.2, 120.5),
                (64 + s * (n - 5), 114, 64 + s * (n + 0.5), 103.5),
            )
            canvas.drawPath(flap, fill(tint(dark, 0.8), 0.35, blur=1.2))
            canvas.drawPath(flap, fill(mix(c, light, 0.7 if s * side > 0 else 0.2)))
            canvas.drawPath(flap, stroke(dark, 0.5, 0.35))

    def turtle(canvas: Any) -> None:
        x, y = n + 4, 108.0
        canvas.drawPath(around(x, y, (64 + x, y)), body)
        folds(canvas)
        roll = path(
            (64 - n - 1.5, 97.5),
            (64 - n + 3, 101.5, 64 + n - 3, 101.5, 64 + n + 1.5, 97.5),
            (64 + n + 4, 103, 64 + n + 3.5, 112),
            (64 + n - 2, 117.5, 64 - n + 2, 117.5, 64 - n - 3.5, 112),
            (64 - n - 4, 103, 64 - n - 1.5, 97.5),
        )
        canvas.drawPath(roll, fill(dark, 0.5, blur=1.4))
        canvas.drawPath(
            roll,
            fill(
                shader=linear(
                    (64 - 20 * side, 0), (64 + 20 * side, 0), (0, tint(c, 0.68), 1), (0.6, c, 1), (1, light, 1)
                )
            ),
        )
        canvas.drawPath(
            path((64 - n - 2, 106.5), (64 - n + 4, 110.5, 64 + n - 4, 110.5, 64 + n + 2, 106.5), close=False),
            stroke(dark, 1.2, 0.3, blur=0.6),
        )

    def blazer(canvas: Any) -> None:
        x, y = n + 4, 109.0
        inner = mix((242, 240, 236), c, 0.12)
        canvas.drawPath(
            around(x, y, (64 - x + 4, y + 10, 64 + x - 4, y + 10, 64 + x, y)),
            fill(
                shader=linear((40, 0), (88, 0), (0, tint(inner, 0.86), 1), (0.5, inner, 1), (1, tint(inner, 0.86), 1))
            ),
        )
        for s in (-1, 1):
            coat = path(
                (64 + s * (x - 1), y - 2),
                (64 + s * (x + 8), y + 5, 64 + s * 38, y + 7, 64 + s * 49, 119),
                (64 + s * 58, 123, 64 + s * 62, 130, 64 + s * 64, 142),
                (64 + s * 4, 142),
                (64 + s * (x - 8), 124, 64 + s * (x - 1), y - 2),
            )
            canvas.drawPath(coat, body)
            lapel = path(
                (64 + s * (x - 1), y - 2.5),
                (64 + s * (x + 5), y + 2, 64 + s * (x + 8), y + 8),
                (64 + s * (x + 2.5), y + 11),
                (64 + s * (x + 7), y + 13.5),
                (64 + s * 16, 134, 64 + s * 5, 140),
                (64 + s * (x - 9), 124, 64 + s * (x - 1), y - 2.5),
            )
            canvas.drawPath(lapel, fill(dark, 0.45, blur=1.0))
            canvas.drawPath(lapel, fill(mix(c, light, 0.8 if s * side > 0 else 0.3)))
        folds(canvas)

    return record({"crew": crew, "vee": vee, "shirt": shirt, "turtle": turtle, "blazer": blazer}[who.collar])
