"""Small line plots with Pillow, where a picture says more than a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rest_fast.config import TEMPORAL
from rest_fast.evaluation.figures import FINE, INK, LABELS, LINE
from rest_fast.evaluation.measures import LAGS

COLOURS = ((47, 93, 160), (201, 120, 40), (60, 140, 90), (160, 160, 160), (140, 80, 150))
WIDTH, HEIGHT = 460, 280  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 58, 40  # margins of a panel's plot
DRIFTS = {
    "colour": "colour change, levels of 255",
    "structure": "1 - SSIM of the upper face",
    "embedding": "1 - cosine of the embedder",
}


@dataclass(frozen=True)
class Panel:
    """Curves by name over shared places x; ``marks`` are places with a vertical line."""

    title: str
    x_label: str
    x: Sequence[float]
    curves: dict[str, Sequence[float]]
    marks: Sequence[float] = ()
    zero: bool = True  # whether the vertical axis starts at 0


def draw(curves: dict[str, Any], out: Path, chunk: int) -> list[Path]:
    """``drift.png``, ``lag.png`` and ``borders.png`` as far as there are curves for them; what was written."""
    written = []
    if "drift" in curves:
        panels = []
        for kind, streams in curves["drift"].items():
            seconds = np.arange(min(map(len, streams))) + 0.5
            lines = {f"stream {n + 1}": s[: len(seconds)] for n, s in enumerate(streams[:4])}
            lines = {"mean": np.mean([s[: len(seconds)] for s in streams], 0), **lines}
            panels.append(Panel(DRIFTS[kind], "seconds", list(seconds), lines))
        written.append(plot(panels, out / "drift.png"))
    if curves.get("lag"):
        panel = Panel("r of the mouth's opening", "lag in frames", LAGS, curves["lag"], marks=[0], zero=False)
        written.append(plot([panel], out / "lag.png"))
    places = list(range(1, TEMPORAL * chunk + 1))
    marks = places[TEMPORAL - 1 :: TEMPORAL]
    under = "from this frame of a chunk to the next; lines: latent borders"
    panels = [Panel("change of pixels, levels of 255", under, places, curves["change"], marks)]
    if "bend" in curves:
        panels.append(Panel("bend of the head's path, pixels", under, places, curves["bend"], marks))
    written.append(plot(panels, out / "borders.png"))
    return written


def plot(panels: list[Panel], path: Path) -> Path:
    """Panels side by side, as a PNG."""
    size = (WIDTH * len(panels), HEIGHT)
    fine = Image.new("RGB", (size[0] * FINE, size[1] * FINE), "white")
    pen = ImageDraw.Draw(fine)
    scales = [_lines(pen, panel, i * WIDTH) for i, panel in enumerate(panels)]
    sheet = fine.resize(size, Image.Resampling.LANCZOS)
    text = ImageDraw.Draw(sheet)
    for i, (panel, scale) in enumerate(zip(panels, scales)):
        _words(text, panel, i * WIDTH, scale)
    sheet.save(path, optimize=True)
    return path


def _range(panel: Panel) -> tuple[float, float]:
    """Of the vertical axis."""
    values = np.concatenate([np.asarray(c, float) for c in panel.curves.values()])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    low = min(low, 0.0) if panel.zero else low
    return low, high if high > low else low + 1


def _lines(pen: ImageDraw.ImageDraw, panel: Panel, left: int) -> tuple[float, float]:
    low, high = _range(panel)
    first, last = panel.x[0], panel.x[-1]
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        place = left + LEFT + across * (x - first) / max(last - first, 1e-9)
        return place * FINE, (TOP + down * (1 - (y - low) / (high - low))) * FINE

    for mark in panel.marks:
        pen.line([at(mark, low), at(mark, high)], LINE, FINE)
    pen.line([at(first, high), at(first, low), at(last, low)], INK, FINE)
    for curve, colour in reversed(list(zip(panel.curves.values(), COLOURS))):  # the first one on top
        known = [(x, y) for x, y in zip(panel.x, curve) if y is not None and np.isfinite(y)]
        pen.line([at(x, y) for x, y in known], colour, 2 * FINE, "curve")
    return low, high


def _words(pen: ImageDraw.ImageDraw, panel: Panel, left: int, scale: tuple[float, float]) -> None:
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    pen.text((left + LEFT, 8), panel.title, INK, font)
    place = float(left + LEFT)
    for name, colour in zip(panel.curves, COLOURS):
        label = LABELS.get(name, name)
        pen.text((place, 32), label, colour, small)
        place += pen.textlength(label, small) + 12
    for value, y in zip(scale, (HEIGHT - BOTTOM, TOP)):
        pen.text((left + LEFT - 6, y), f"{value:.3g}", INK, small, anchor="rm")
    for value, x in zip((panel.x[0], panel.x[-1]), (left + LEFT, left + WIDTH - RIGHT)):
        pen.text((x, HEIGHT - BOTTOM + 10), f"{value:g}", INK, small, anchor="mm")
    pen.text((left + (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12), panel.x_label, INK, small, anchor="mm")
