"""Tables of what ``benchmarks/photo_study.py`` stored, by the columns of the study itself."""

from __future__ import annotations

import statistics
from typing import Any

from stored import table

from rest_fast.evaluation.photos.tables import COLUMNS, cell

FLOOR = ("identity", "seam, worst", "sharpness", "gap std", "flicker")  # what a photo that only moves has a number of


def video_table(found: dict[str, Any]) -> str:
    """Every photo with every voice."""
    titles = [title for title in COLUMNS if title != "true gap r, amplitude"]
    lines = [["photo", "voice", *titles]]
    for name, photo in found["photos"].items():
        for driver, row in photo["videos"].items():
            if not row["control"]:
                lines.append([name, driver, *(cell(row, COLUMNS[title]) for title in titles)])
    return table(lines)


def floor_table(found: dict[str, Any]) -> str:
    """The photos, moved without a model."""
    lines = [["photo", *FLOOR]]
    for name, photo in found["photos"].items():
        for row in photo["videos"].values():
            if row["control"]:
                lines.append([name, *(cell(row, COLUMNS[title]) for title in FLOOR)])
    return table(lines)


DRIVEN = (
    *("identity", "seam, worst", "sharpness", "true gap r, amplitude", "gap std", "closed at p, b, m / ever"),
    *("blinks, std", "head size", "background", "flicker", "face found"),
)


def known_motion_table(found: dict[str, Any]) -> str:
    """A decoder driven by known motion: drawn people, of whom the truth is known, then photographs."""
    lines = [["photo", *DRIVEN]]
    for name, photo in (found["people"] | found["photos"]).items():
        for row in photo["videos"].values():
            if not row["control"]:
                lines.append([name, *(cell(row, COLUMNS[title]) for title in DRIVEN)])
    return table(lines)


def reading_table(found: dict[str, Any]) -> str:
    """Correlation of what the encoder reads with the true labels."""
    return table([list(found["read"]), [f"{r:.2f}" for r in found["read"].values()]])


def decoder_speed_table(found: dict[str, Any]) -> str:
    """Milliseconds for 24 frames of 256 px, and their parts."""
    lines = [["threads", "convolutions in", "24 frames", "maps", "`move_and_paint`", "photo branch, once a stream"]]
    for row in found["speed"]:
        parts = row["maps"], row["move_and_paint"]
        numbers = [f"{ms:.0f}" for ms in (sum(parts), *parts, row["photo"])]
        lines.append([str(row["threads"]), row["dtype"], *numbers])
    return table(lines)


def means(found: dict[str, Any]) -> str:
    """Identity and lip sync over all photos and voices, in words."""
    rows = [row for photo in found["photos"].values() for row in photo["videos"].values() if not row["control"]]

    def mean(key: str) -> float:
        known = [row[key] for row in rows if row.get(key) is not None]
        return float(sum(known) / len(known))

    lips = f"r with the voice {mean('gap_r'):.2f}, with another one {mean('gap_r_wrong'):.2f}"
    return f"identity {mean('identity_mean'):.2f}, {lips}"


CEILINGS = {
    "r with the true gap": "truth_r",
    "its best lag": "truth_lag",
    "r with the voice": "gap_r",
    "gap std": "gap_std",
    "closed at p, b, m": "closure",
    "ever": "closure_any",
    "blinks": "blinks",
    "identity": "identity_mean",
    "largest": "identity_max",
    "background": "background",
    "flicker": "flicker",
    "face found": "face_found",
}


def instrument_table(found: dict[str, Any]) -> str:
    """Of drawn people with known motion: the middle one, the lowest and the highest reading of each measure."""
    lines = [["measure", "median", "lowest", "highest"]]
    for title, key in CEILINGS.items():
        values = [row[key] for row in found["people"].values() if row[key] is not None]
        numbers = (statistics.median(values), min(values), max(values))
        lines.append([title, *(f"{value:.2f}" for value in numbers)])
    return table(lines)
