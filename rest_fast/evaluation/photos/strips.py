"""Strips to look at: a photo, frames of its video at full size, and under them how lips and voice move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rest_fast.evaluation.charts import COLOURS
from rest_fast.evaluation.figures import FINE, INK, LINE, WAVE
from rest_fast.evaluation.photos.readings import Video

COLUMNS = 8  # frames beside the photo
SPACE, MARGIN, WORDS, PLOT = 4, 12, 22, 72  # px
NAMES = {"voice": "loudness of the voice", "truth": "true gap", "gap": "gap between the lips"}
INKS = {"voice": WAVE, "truth": COLOURS[2], "gap": COLOURS[1]}
Array = NDArray[Any]


def draw(videos: Sequence[Video], path: Path) -> None:
    """A PNG with a row for each video of one photo: the photo, frames evenly apart, and curves under the frames.

    Lines mark the frames that are shown. Curves are scaled to their own largest value, the gaps to a common one.
    """
    if not videos:
        return
    side = videos[0].frames.shape[1]
    width = 2 * MARGIN + (1 + COLUMNS) * (side + SPACE) - SPACE
    high = WORDS + side + SPACE + PLOT
    sheet = Image.new("RGB", (width, 2 * MARGIN + len(videos) * (high + MARGIN) - MARGIN), "white")
    for n, video in enumerate(videos):
        sheet.paste(_row(video, side, width - 2 * MARGIN), (MARGIN, MARGIN + n * (high + MARGIN)))
    sheet.save(path, optimize=True)


def first_row(path: Path, side: int) -> Image.Image:
    """Of a strip that :func:`draw` wrote, of pictures of ``side`` pixels, what it shows of the first video."""
    with Image.open(path) as sheet:
        return sheet.crop((0, 0, sheet.width, 2 * MARGIN + WORDS + side + SPACE + PLOT)).convert("RGB")


def _row(video: Video, side: int, width: int) -> Image.Image:
    count = len(video.frames) - 1
    picks = [int((i + 0.5) * count / COLUMNS) for i in range(COLUMNS)]
    row = Image.new("RGB", (width, WORDS + side + SPACE + PLOT), "white")
    for i, pick in enumerate([0, *(1 + pick for pick in picks)]):
        row.paste(Image.fromarray(np.asarray(video.frames[pick])), (i * (side + SPACE), WORDS))
    curves = video.curves()
    left = side + SPACE
    row.paste(_plot(curves, picks, count, width - left), (left, WORDS + side + SPACE))
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(13)
    place = 0.0
    for text, ink in [(f"{video.portrait.name}, {video.driver.name}", INK), *((NAMES[k], INKS[k]) for k in curves)]:
        pen.text((place, WORDS / 2), text, ink, font, anchor="lm")
        place += pen.textlength(text, font) + 16
    return row


def _plot(curves: dict[str, Array], picks: Sequence[int], count: int, width: int) -> Image.Image:
    """Curves of ``count`` frames over the whole width, a vertical line at each of the picks."""
    fine = Image.new("RGB", (width * FINE, PLOT * FINE), "white")
    pen = ImageDraw.Draw(fine)

    def at(frame: float, share: float) -> tuple[float, float]:
        return (frame + 0.5) / count * width * FINE, (PLOT - 2 - (PLOT - 4) * share) * FINE

    for pick in picks:
        pen.line([at(pick, 0), at(pick, 1)], LINE, FINE)
    gaps = [float(np.nanmax(curves[name])) for name in ("gap", "truth") if name in curves]
    for name in ("voice", "truth", "gap"):
        if name in curves:
            top = max(gaps) if name != "voice" else float(np.nanmax(curves[name]))
            points = [at(i, float(value) / max(top, 1e-9)) for i, value in enumerate(curves[name][:count])]
            if name == "voice":
                pen.polygon([at(0, 0), *points, at(count - 1, 0)], WAVE)
            else:
                pen.line(points, INKS[name], 2 * FINE, "curve")
    return fine.resize((width, PLOT), Image.Resampling.LANCZOS)
