"""The study as Markdown."""

from __future__ import annotations

from typing import Any

COLUMNS = {
    "identity": ("identity_mean", "identity_max"),
    "seam, worst": ("seam", "seam_worst"),
    "sharpness": ("sharpness",),
    "gap r, other voice": ("gap_r", "gap_r_wrong"),
    "best lag": ("gap_lag",),
    "gap std": ("gap_std",),
    "true gap r, amplitude": ("truth_r", "truth_amplitude"),
    "closed at p, b, m / ever": ("closure", "closure_any"),
    "blinks, std": ("blinks", "eye_std"),
    "head size": ("head_size",),
    "background": ("background",),
    "flicker": ("flicker",),
    "face found": ("face_found",),
}
DIGITS = {"gap_lag": 0, "blinks": 0, "gap_std": 3, "eye_std": 3}  # behind the point; of the others two


def markdown(result: dict[str, Any]) -> str:
    """Tables of what :func:`rest_fast.evaluation.photos.study.evaluate_photos` found."""
    lines = [f"# What {result.get('model', {}).get('name', 'a decoder')} makes of photographs", ""]
    rows = [(name, photo["videos"]) for name, photo in result["photos"].items()]
    shown = [title for title, keys in COLUMNS.items() if any(_known(row, keys) for _, v in rows for row in v.values())]
    if rows:
        lines += ["| photo | driven by | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
        for name, videos in rows:
            for driver, row in videos.items():
                cells = [cell(row, COLUMNS[title]) for title in shown]
                lines.append(f"| {_word(name)} | {_word(driver)} | " + " | ".join(cells) + " |")
    notes = [(name, note) for name, photo in result["photos"].items() for note in photo["notes"]]
    sections = {
        "| photo | note |": notes,
        "| left out | why |": list(result["failed"].items()),
        "| not measured | why, and how to get it |": list(result["not_measured"].items()),
    }
    for title, entries in sections.items():
        if entries:
            lines += ["", title, "|---|---|", *(f"| {_word(a)} | {_word(b)} |" for a, b in entries)]
    return "\n".join(lines) + "\n"


def cell(row: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Numbers beside each other, a dash for one that is not known, or was not when the row was stored."""
    return " / ".join("-" if row.get(key) is None else f"{row[key]:.{DIGITS.get(key, 2)}f}" for key in keys)


def _known(row: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return any(row.get(key) is not None for key in keys)


def _word(text: str) -> str:
    return text.replace("|", "/")
