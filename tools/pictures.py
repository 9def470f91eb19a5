"""Draws the pictures of docs/concepts.md from the configuration of the demo: python tools/pictures.py

Text stays text in them, so that they can be searched, and tests can read the numbers.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

import rest_fast
from rest_fast.config import TEMPORAL
from rest_fast.models.speech import RATE, speech_features

OUT = Path(__file__).resolve().parents[1] / "docs" / "pictures"
CONFIG = rest_fast.preset("demo")
CHUNK, LATENT = CONFIG.stream.chunk, CONFIG.latent_seconds
SINK, CONTEXT, CURRENT, SOUND, GONE, INK = "#f2b134", "#8fb8de", "#3d6fb6", "#7a9e7e", "#d8d8d8", "#222222"


def axes(width: float, height: float, right: float, top: float) -> Axes:
    """An empty picture, in inches, whose coordinates go from 0 to ``right`` and ``top``."""
    _, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, right), ylim=(0, top))
    ax.axis("off")
    return ax


def box(ax: Axes, x: float, y: float, width: float, height: float, colour: str, text: str = "", ink: str = INK) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.02", fc=colour, ec="white", lw=1.5
    )
    ax.add_patch(shape)
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=ink, fontsize=10)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.2})


def save(name: str) -> None:
    plt.savefig(OUT / f"{name}.svg", bbox_inches="tight", pad_inches=0.1, facecolor="white", metadata={"Date": None})
    plt.close()


def units() -> None:
    """Frames, blocks, chunks."""
    frames = CHUNK * TEMPORAL
    ax = axes(9, 2.6, frames + 4.2, 4)
    for i in range(frames):
        box(ax, i, 2.6, 1, 0.8, CONTEXT)
    for i in range(CHUNK):
        box(ax, i * TEMPORAL, 1.5, TEMPORAL, 0.9, CURRENT, f"block: {TEMPORAL} frames, {LATENT:.2f} s", "white")
    box(ax, 0, 0.4, frames, 0.9, SINK, f"chunk: {CHUNK} blocks, {frames} frames, {CHUNK * LATENT:.2f} s")
    for y, text in (
        (3, f"frames, {1000 / CONFIG.fps:.0f} ms each"),
        (1.95, "what you take"),
        (0.85, "what is computed"),
    ):
        ax.text(frames + 0.3, y, text, va="center", fontsize=10)
    save("units")


def window() -> None:
    """What a chunk sees: the sink, the chunk before, itself; places are used in turn."""
    ax = axes(9, 3.2, 11.6, 5)
    places = 1 + (CONFIG.stream.context_chunks + 1) * CHUNK
    left = 2.6
    rows = [("chunk 1", [1, None], 0), ("chunk 2", [1, 2], 1), ("chunk 3", [3, 2], 0), ("chunk 4", [3, 4], 1)]
    for k, (name, ring, current) in enumerate(rows):
        y = 3.7 - k
        ax.text(left - 0.3, y + 0.4, f"to make {name}", ha="right", va="center", fontsize=10)
        box(ax, left, y, 1, 0.8, SINK, "photo")
        for part, chunk in enumerate(ring):
            for i in range(CHUNK):
                colour = GONE if chunk is None else CURRENT if part == current else CONTEXT
                text = "" if chunk is None else str((chunk - 1) * CHUNK + i + 1)
                box(ax, left + 1 + part * CHUNK + i, y, 1, 0.8, colour, text, "white" if colour == CURRENT else INK)
    ax.text(left + 0.5, 4.7, "sink", ha="center", fontsize=10)
    ax.text(left + 1 + CHUNK, 4.7, "two chunks' places, used in turn", ha="center", fontsize=10)
    legend = ((SINK, "stays for the session"), (CONTEXT, "context"), (CURRENT, "being made"), (GONE, "empty"))
    for x, (colour, text) in zip((0, 2.7, 4.1, 5.9), legend):
        box(ax, left + x, 0, 0.3, 0.3, colour)
        ax.text(left + x + 0.36, 0.15, text, va="center", fontsize=8)
    assert places == 1 + 2 * CHUNK, "the picture shows a context of one chunk"
    save("window")


def latency() -> None:
    """Why the first frame cannot come earlier than it does."""
    chunk, ahead = CHUNK * LATENT, speech_features(CONFIG.speech).ahead / RATE
    floor, work = chunk + ahead, 0.3  # the width of the work is only drawn
    ax = axes(9, 3, 3.2, 5)
    ax.annotate("", (3.2, 0.55), (0, 0.55), arrowprops={"arrowstyle": "->", "color": INK})
    for second in (0, 1, 2, 3):
        ax.plot([second, second], [0.45, 0.65], color=INK, lw=1)
        ax.text(second, 0.1, f"{second} s", ha="center", fontsize=9)
    for k in range(3):
        box(ax, k * chunk, 3.7, chunk, 0.8, SOUND, f"sound of chunk {k + 1}", "white")
    for k in range(2):
        due = (k + 1) * chunk + ahead
        box(ax, (k + 1) * chunk, 2.85, ahead, 0.6, SINK)
        box(ax, due, 2.1, work, 0.6, GONE, "compute")
        box(ax, due + work, 1.1, min(chunk, 3.2 - due - work), 0.7, CURRENT, f"frames of chunk {k + 1}", "white")
        ax.plot([due, due], [0.55, 3.5], color=INK, lw=0.8, ls=":")
    ax.text(chunk - 0.03, 3.15, f"look-ahead {1000 * ahead:.1f} ms", ha="right", va="center", fontsize=9)
    ax.text(floor - 0.03, 0.8, f"the floor: {floor:.2f} s", ha="right", va="center", fontsize=10, weight="bold")
    save("latency")


def epochs() -> None:
    """A barge-in: what was seen stays, what was not is taken back, and a new epoch begins there."""
    ax = axes(9, 3.2, 13.2, 5)
    left, seen = 2.6, 2
    for i in range(6):
        colour, ink, text = (CURRENT, "white", "seen") if i < seen else (GONE, INK, "not seen")
        box(ax, left + 1.5 * i, 3.4, 1.45, 0.8, colour, f"{i * LATENT:.2f}", ink)
        ax.text(left + 1.5 * i + 0.72, 4.4, text, ha="center", fontsize=9)
    at = left + 1.5 * seen
    for i in range(4):
        box(ax, at + 1.5 * i, 1.4, 1.45, 0.8, SINK, f"{(seen + i) * LATENT:.2f}")
    ax.plot([at - 0.02, at - 0.02], [1.1, 4.7], color="#b03030", lw=1.6, ls="--")
    ax.text(at, 0.7, f"interrupt(shown_pts={seen * LATENT:.2f})", color="#b03030", ha="center", fontsize=10)
    ax.text(left - 0.3, 3.8, "epoch 0", ha="right", va="center", fontsize=10, weight="bold")
    ax.text(left - 0.3, 1.8, "epoch 1", ha="right", va="center", fontsize=10, weight="bold")
    ax.text(at + 1.5 * 4 + 0.2, 1.8, "goes on from\nthe same pose", va="center", fontsize=9)
    ax.text(left + 9.2, 3.8, "discarded", va="center", fontsize=9)
    ax.text(left - 0.3, 0.1, "each box is a block; its number is its pts, in seconds", fontsize=8)
    save("epochs")


def main() -> None:
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rest_fast", "font.family": "sans-serif"})
    for draw in (units, window, latency, epochs):
        draw()


if __name__ == "__main__":
    main()
