"""The rules by which files and clips are dropped, and the report of what was kept and what was dropped."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

REPORT = "report.json"
SHOWN = 20  # drops that the terminal lists one by one

# Name of a rule: why it drops. The first four drop a whole file; "unreadable" and "no_sound" also drop single clips.
RULES = {
    "unreadable": "FFmpeg cannot read it to its end",
    "no_video": "no video in it",
    "no_sound": "no sound in it, or none under the clip",
    "short": "shorter than 97 frames at 25 a second",
    "gap": "pictures are missing",
    "cut": "the scene changes inside the clip",
    "silent": "nothing can be heard",
    "no_box": "not among the given boxes",
    "no_face": "no face in too many pictures",
    "faces": "more than one face",
    "small": "the crop would have to be enlarged too much",
    "moves": "the head moves too far for a crop that stands still",
    "outside": "the face or the given box reaches out of the picture",
}

MAX_AWAY = 0.1  # s from a frame's time to the nearest picture: lips of another sound otherwise (5 pictures/s pass)
MIN_HEARD = 0.95  # share of the clip that the sound track covers: codecs end tracks up to 0.1 s apart
SILENT = 10 ** (-45 / 20)  # peak in -1..1: quiet speech peaks above -35 dBFS, a room without any below -50
CUT = 24.0  # levels of 255, mean over a picture of 32 x 32: a talking person with hands stays below 10
SAMPLE = 4  # faces are looked for in every 4th frame, the clip's first and last among them
MISSING = 0.2  # share of those without a face that passes: detectors blink
RIVAL = 0.5  # side of a second face in sides of the first from which it might be the one who speaks
CROWDED = 0.2  # share of pictures with such a rival that passes: cascades see faces in curtains
JUMP = 0.5  # sides of a face that its centre moves within 4 frames: a head takes longer, a cut does not
MOVES = 1.4  # side of the crop in sides of a still head's: beyond it the face would be small and wander
ENLARGED = 1.5  # the model's side in sides of the crop: more would teach blur


class Dropped(Exception):
    """A file or a clip that a rule drops; never an error of the program."""

    def __init__(self, rule: str, message: str):
        assert rule in RULES, rule
        super().__init__(message)
        self.rule, self.message = rule, message


@dataclasses.dataclass(frozen=True)
class Drop:
    """What was dropped: a file (``start`` None) or its clip that begins at ``start`` seconds."""

    source: str
    start: float | None
    rule: str
    message: str

    def __str__(self) -> str:
        where = "" if self.start is None else f" at {self.start:.2f} s"
        return f"{self.source}{where}: {self.rule}: {self.message}"


@dataclasses.dataclass
class Report:
    """What a preparation made of a folder."""

    sources: int
    clips: int
    seconds: float
    rest: float  # seconds at the ends of files that are too short for a clip of 3.88 s
    bytes: int
    splits: dict[str, int]  # clips of each split
    rules: dict[str, int]  # files and clips that each rule dropped
    skipped: dict[str, int]  # files that are no videos, by kind
    drops: list[Drop]

    @classmethod
    def of(cls, entries: list[dict[str, Any]], skipped: dict[str, int], clip_seconds: float) -> Report:
        """From the journal's entries, in the order of the sources."""
        shards = [shard for entry in entries for shard in entry["shards"]]
        drops = [Drop(entry["source"], *drop) for entry in entries for drop in entry["drops"]]
        splits, rules = Counter[str](), Counter(drop.rule for drop in drops)
        for shard in shards:
            splits[shard["split"]] += shard["clips"]
        clips = sum(splits.values())
        rest = round(sum(entry["rest"] for entry in entries), 2)
        size = sum(shard["bytes"] for shard in shards)
        counted = {rule: rules[rule] for rule in RULES if rules[rule]}
        seconds = round(clips * clip_seconds, 2)
        return cls(len(entries), clips, seconds, rest, size, dict(sorted(splits.items())), counted, skipped, drops)

    def save(self, folder: Path) -> None:
        partial = folder / f"{REPORT}.partial"
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        partial.replace(folder / REPORT)

    def text(self) -> str:
        """A short table for the terminal, and the first drops."""
        splits = ", ".join(f"{count} {split}" for split, count in self.splits.items()) or "none"
        lines = [
            f"{self.clips} clips ({splits}), {self.seconds:.1f} s, {self.bytes / 1e6:.1f} MB, of {self.sources} sources"
        ]
        if set(self.splits) == {"train"}:
            lines.append("  note     no file fell into the split validation; with few files give --validation 0.3")
        whole = Counter(drop.rule for drop in self.drops if drop.start is None)
        for rule, count in self.rules.items():
            both = (whole[rule], "file"), (count - whole[rule], "clip")
            parts = [f"{n} {kind}{'s' * (n > 1)}" for n, kind in both if n]
            lines.append(f"  dropped  {rule:10}  {' and '.join(parts):20}  {RULES[rule]}")
        lines += [f"  skipped  {count} {what}" for what, count in self.skipped.items()]
        if self.rest:
            lines.append(f"  rest     {self.rest:.1f} s at the ends of files, too short for a clip")
        lines += [str(drop) for drop in self.drops[:SHOWN]]
        if len(self.drops) > SHOWN:
            lines.append(f"... and {len(self.drops) - SHOWN} more in {REPORT}")
        return "\n".join(lines)
