"""Pictures of what the demo model does, for the README and the model's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rest_fast import media
from rest_fast.model import Model
from rest_fast.units import FRAME, RATE

LIMIT = 600_000  # bytes of a picture
FINE = 4  # lines and waves are drawn so many times larger: Pillow does not anti-alias
WAVE, LINE, INK = (137, 188, 235), (196, 204, 214), (64, 72, 84)
Array = NDArray[Any]
LABELS = {
    "truth": "truth",
    "through_vae": "through VAE",
    "generated": "generated",
    "wrong_sound": "wrong sound",
    "with_sink": "with sink",
    "without_sink": "without",
}


def strip(model: Model, portrait: Path, speech: Path, path: Path, columns: int = 12, stride: int = 4) -> None:
    """Frames of the example, every fourth of its clearest two seconds, above the wave of its sound; lines mark when.

    Frames lie as far apart as their times, so that all lines are straight down.
    """
    sound = media.load_audio(speech)
    samples = media.resample(sound.mono, sound.rate, RATE)
    with model.session(model.prepare(portrait, crop="center")) as session:
        session.push_audio(samples)
        session.end_segment()
        video = np.concatenate([block.video for block in session.blocks()])
    span = columns * stride
    samples = np.pad(samples, (0, max(FRAME, span * FRAME - len(samples))))
    first = _clearest(samples, span)
    height, margin, space = 128, 16, 8
    width = height * 7 // 8  # without a little of both sides
    picks = [min(first + stride // 2 + stride * i, len(video) - 1) for i in range(columns)]
    tiles = [_resize(video[pick], height) for pick in picks]
    cut = (height - width) // 2
    tiles = [tile.crop((cut, 0, cut + width, height)) for tile in tiles]

    size = (2 * margin + columns * (width + space) - space, 2 * margin + height + 84)
    top, bottom = margin + height + 6, size[1] - margin
    fine = Image.new("RGB", (size[0] * FINE, size[1] * FINE), "white")
    draw = ImageDraw.Draw(fine)
    for i in range(columns):
        x = (margin + i * (width + space) + width // 2) * FINE
        draw.line([(x, top * FINE), (x, bottom * FINE)], LINE, FINE)
    begin = first * FRAME + FRAME // 2  # a frame shows the mouth at its middle
    piece = samples[begin : begin + span * FRAME]
    left, right = margin - space // 2, size[0] - margin + space // 2
    draw.polygon(_wave(piece, left * FINE, right * FINE, (top + bottom) // 2 * FINE, 36 * FINE), WAVE)
    sheet = fine.resize(size, Image.Resampling.LANCZOS)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (margin + i * (width + space), margin), _rounded(tile.size))
    save(sheet, path)


def comparison(clips: list[dict[str, Array]], gaps: list[Array], path: Path, columns: int = 10) -> None:
    """Rows of frames, one for each video of each clip, where its mouth moves most.

    Args:
        clips: of each clip its videos by name, uint8 [n, H, W, 3].
        gaps: of each clip the true opening, [n].
    """
    rows = []
    for videos, gap in zip(clips, gaps, strict=True):
        stride = max(1, min(3, len(gap) // columns))
        span = stride * (columns - 1) + 1
        spread = [gap[i : i + span].std() for i in range(len(gap) - span + 1)]
        first = int(np.argmax(spread))
        rows += [(name, list(video[first : first + span : stride])) for name, video in videos.items()]
    save(_grid(rows, 96, group=len(clips[0])), path)


def sink(frames: dict[str, list[Array]], seconds: list[int], path: Path) -> None:
    """A stream's frames uint8 [H, W, 3] at some seconds, a row for each name."""
    save(_grid(list(frames.items()), 128, heads=[f"{s} s" for s in seconds]), path)


def save(sheet: Image.Image, path: Path) -> None:
    """PNG of at most :data:`LIMIT` bytes, with fewer colours where it must be."""
    sheet.save(path, optimize=True)
    for colours in (256, 128, 64):
        if path.stat().st_size <= LIMIT:
            return
        sheet.quantize(colours, method=Image.Quantize.MEDIANCUT).save(path, optimize=True)


def _grid(
    rows: list[tuple[str, list[Array]]], side: int, *, group: int = 0, heads: list[str] | None = None
) -> Image.Image:
    """Tiles of ``side`` pixels with labels at the left, and above where there are heads; a gap after each group."""
    label, space, margin = 96, 4, 12
    head = 22 if heads else 0
    gaps = [12 * (i // group) if group else 0 for i in range(len(rows))]
    columns = max(len(frames) for _, frames in rows)
    width = 2 * margin + label + columns * (side + space) - space
    sheet = Image.new("RGB", (width, 2 * margin + head + len(rows) * (side + space) - space + gaps[-1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, text in enumerate(heads or []):
        draw.text((margin + label + i * (side + space) + side / 2, margin + 6), text, INK, font, anchor="mm")
    for (name, frames), y in zip(rows, (margin + head + i * (side + space) + gap for i, gap in enumerate(gaps))):
        draw.text((margin, y + side / 2), LABELS.get(name, name), INK, font, anchor="lm")
        for i, frame in enumerate(frames):
            tile = _resize(frame, side)
            sheet.paste(tile, (margin + label + i * (side + space), y), _rounded(tile.size))
    return sheet


def _resize(frame: Array, side: int) -> Image.Image:
    return Image.fromarray(frame).resize((side, side), Image.Resampling.LANCZOS)


def _rounded(size: tuple[int, int], radius: int = 6) -> Image.Image:
    """A mask with soft round corners."""
    mask = Image.new("L", (size[0] * FINE, size[1] * FINE), 0)
    box = (0, 0, size[0] * FINE - 1, size[1] * FINE - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius * FINE, fill=255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def _clearest(samples: Array, span: int) -> int:
    """First of the ``span`` frames with the least silence: the highest mean of the square root of loudness."""
    frames = len(samples) // FRAME
    level = np.abs(samples[: frames * FRAME]).reshape(frames, FRAME).mean(1) ** 0.5
    total = np.concatenate([[0.0], np.cumsum(level)])
    return int(np.argmax(total[span:] - total[:-span]))


def _wave(samples: Array, left: int, right: int, middle: int, reach: int) -> list[tuple[int, int]]:
    """Outline of the loudest samples of each step, the same above and below the middle."""
    edges = np.linspace(0, len(samples), (right - left) // FINE + 1).astype(int)
    peak = np.maximum.reduceat(np.abs(samples), edges[:-1])
    height = peak / max(float(peak.max()), 1e-6) * (reach - FINE) + FINE / 2
    x = np.linspace(left, right, len(height)).astype(int)
    above = [(int(a), int(middle - h)) for a, h in zip(x, height)]
    below = [(int(a), int(middle + h)) for a, h in zip(x, height)]
    return above + below[::-1]
