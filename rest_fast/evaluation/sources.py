"""Clips to evaluate on: drawn ones of ``rest-fast synth``, or prepared ones with video and samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rest_fast.errors import EvaluationError as EvaluationError
from rest_fast.evaluation.streams import Talk
from rest_fast.training import shards
from rest_fast.training.synthetic.clips import CLIPS, FRAMES, LEAD, Clips
from rest_fast.training.synthetic.portraits import GEOMETRY
from rest_fast.units import FRAME, RATE

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Example:
    """One clip: ``frames`` uint8 [97, H, W, 3], of which frame 0 is the photo; ``sound`` float32 [96 x 640] of the
    others at 16 kHz; ``gap`` [97] of the true mouth in pixels of a 128 px picture, None where it is not known."""

    frames: Array
    sound: Array
    gap: Array | None

    def talk(self, sound: Array | None = None) -> Talk:
        """What a viewer sends to animate the photo, with this sound or another one."""
        sound = self.sound if sound is None else sound
        gap = np.full(len(sound) // FRAME, np.nan) if self.gap is None else self.gap[1:]
        return Talk(self.frames[0], sound, gap)


def _held_out(folder: Path) -> str:
    """The split that no training has seen; where there is none, the one that is there must be asked for."""
    there = {str(entry.get("split")) for entry in shards.Manifest.load(folder).shards}
    for split in ("test", "validation"):
        if split in there:
            return split
    raise EvaluationError(
        f"{folder}: expected clips of the split test or validation, or --split, found {sorted(there)}"
    )


class Examples:
    """The clips of a folder. ``drawn``: the true mouth is known."""

    def __init__(self, folder: Path, split: str | None = None):
        self._clips: Clips | shards.Shards
        if (folder / CLIPS).is_file():
            self._clips, self.drawn = Clips(folder), True
            found = self._clips.about["split"]
            if split not in (None, found):
                raise EvaluationError(f"{folder}: expected clips of the split {split}, got those of {found}")
            self.split, self.size = found, self._clips.video.shape[2:4]
        elif (folder / shards.MANIFEST).is_file():
            split = split or _held_out(folder)
            self._clips = shards.Shards(folder, split)
            self._clips.require("video", "samples")
            self.drawn, self.split = "geometry" in self._clips.fields, split
            self.size = (self._clips.manifest.height, self._clips.manifest.width)
        else:
            raise EvaluationError(f"{folder}: expected clips with {CLIPS} or {shards.MANIFEST}, found neither")

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, clip: int) -> Example:
        if isinstance(self._clips, Clips):
            frames, samples = np.array(self._clips.video[clip]), np.asarray(self._clips.samples[clip])
            gap: Array | None = self._clips.gap(clip)
        else:
            frames, samples = (self._clips.read(field, [clip])[0].numpy() for field in ("video", "samples"))
            gap = self._clips.read("geometry", [clip])[0, :, GEOMETRY.index("gap")].numpy() if self.drawn else None
        return Example(frames, samples[LEAD + FRAME : LEAD + FRAMES * FRAME].copy(), gap)

    def talks(self, count: int, seconds: int) -> list[Talk]:
        """Long talks: drawn people of the split ``test`` who are in no clip (extra ``synth``); else the photos of the
        first clips, each with the sound of its own clip and of those behind it, one after the other."""
        if self.drawn:
            return [Talk.random(n, seconds, self.size[0]) for n in range(count)]
        length = seconds * RATE // FRAME * FRAME
        made = []
        for n in range(min(count, len(self))):
            needed = -(-length // ((FRAMES - 1) * FRAME))
            sound = np.concatenate([self[(n + i) % len(self)].sound for i in range(needed)])[:length]
            made.append(self[n].talk(sound))
        return made
