"""Divides a source, of videos or of clips of ``rest-fast synth``, into units of work in a fixed order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_fast.errors import ArgumentError
from rest_fast.training.synthetic.clips import CLIPS, Clips

DRAWN = 25  # clips of rest-fast synth in one unit
SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
)


@dataclass(frozen=True)
class Unit:
    """One video (``count`` 0), or clips ``first .. first + count - 1`` of a folder of drawn ones."""

    index: int
    name: str  # unique in the source
    path: Path
    split: str
    bytes: int  # its size, which tells whether a file has changed
    first: int = 0
    count: int = 0


def find_units(source: Path, validation: float) -> tuple[list[Unit], dict[str, int]]:
    """The units of a source in order, and how many files were skipped and why. Raises: ValueError if there are none.

    A source is a video; a folder of videos with all its subfolders, sorted by their names; a folder that ``rest-fast
    synth`` wrote, or a folder of such folders.
    """
    if source.is_file():
        return [_video(0, source.name, source, validation)], {}
    if not source.is_dir():
        raise ArgumentError(f"{source}: expected a folder of videos or a video, found none")
    drawn = [source] if (source / CLIPS).is_file() else sorted(path.parent for path in source.glob(f"*/{CLIPS}"))
    if drawn:
        return _drawn(source, drawn), {}
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    kinds = {name: _kind(name) for name in names}
    videos = [name for name, kind in kinds.items() if kind == "video"]
    skipped = Counter(kind for kind in kinds.values() if kind != "video")
    if not videos:
        raise ArgumentError(f"{source}: expected videos ({' '.join(SUFFIXES)}), found none in {len(names)} files")
    units = [_video(i, name, source / name, validation) for i, name in enumerate(videos)]
    return units, dict(sorted(skipped.items()))


def _kind(name: str) -> str:
    if any(part.startswith(".") for part in name.split("/")):
        return "hidden"
    suffix = Path(name).suffix.lower()
    return "video" if suffix in SUFFIXES else f"not a video ({suffix or 'no suffix'})"


def _video(index: int, name: str, path: Path, validation: float) -> Unit:
    """A unit of one video. Its split depends on its name alone, so other files may be added and removed."""
    place = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64
    return Unit(index, name, path, "validation" if place < validation else "train", path.stat().st_size)


def _drawn(source: Path, folders: Sequence[Path]) -> list[Unit]:
    if folders != [source]:
        others = sorted(p.name for p in source.iterdir() if p not in folders and not p.name.startswith("."))
        if others:
            raise ArgumentError(
                f"{source}: expected folders of rest-fast synth and nothing else, found {others[:3]} too"
            )
    units: list[Unit] = []
    for folder in folders:
        clips = open_clips(folder)
        split, size = clips.about["split"], sum(p.stat().st_size for p in folder.glob("*.npy"))
        for first in range(0, len(clips), DRAWN):
            count = min(DRAWN, len(clips) - first)
            prefix = "" if folder == source else f"{folder.name}/"
            name = f"{prefix}{first:06d}-{first + count - 1:06d}"
            units.append(Unit(len(units), name, folder, split, size, first, count))
    return units


def open_clips(folder: Path) -> Clips:
    """Open a folder of ``rest-fast synth``; whatever is wrong with it gives the same kind of error."""
    try:
        clips = Clips(folder)
        counts = {len(array) for array in (clips.video, clips.samples, clips.motion, clips.geometry)}
        if counts != {len(clips.about["clips"])} or clips.about["frames"] != clips.video.shape[1]:
            raise ArgumentError(f"arrays of {sorted(counts)} clips")
        return clips
    except (OSError, KeyError, EOFError, json.JSONDecodeError, ValueError) as error:
        raise ArgumentError(f"{folder}: expected whole clips of rest-fast synth, got {error}") from None


def read_boxes(path: Path | None, units: Sequence[Unit]) -> dict[str, list[float]] | None:
    """``{"file name": [left, top, right, bottom]}``, checked: squares within 1 px, names of the source."""
    if path is None:
        return None
    try:
        boxes: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{path}: expected JSON of boxes, got {getattr(error, 'strerror', None) or error}"
        ) from None
    if not isinstance(boxes, dict):
        raise ArgumentError(f'{path}: expected {{"file name": [left, top, right, bottom]}}, got {type(boxes).__name__}')
    known = {unit.name for unit in units}
    for name, box in boxes.items():
        if name not in known:
            raise ArgumentError(
                f"{path}: {name}: expected the name of a video as in {sorted(known)[:3]}, got none of them"
            )
        numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        if not numbers or not box[0] < box[2] or abs(box[2] - box[0] - box[3] + box[1]) > 1:
            raise ArgumentError(f"{path}: {name}: expected a square [left, top, right, bottom] in pixels, got {box}")
    return boxes
