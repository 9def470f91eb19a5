"""Faces of frames, read by MediaPipe and dlib in a Python of their own: their wheels ask for other versions than ours.

``make photo-instruments`` makes that Python. It is found by what the user names, else by the variable
``REST_FAST_PHOTO_INSTRUMENTS``, else in ``.photo-instruments`` of the working folder.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from rest_fast.evaluation.sources import EvaluationError

VARIABLE = "REST_FAST_PHOTO_INSTRUMENTS"
DEFAULT = Path(".photo-instruments", "bin", "python")
CURE = f"make photo-instruments, or --instruments PYTHON, or {VARIABLE}"
SCRIPT = Path(__file__).with_name("read_faces.py")
POINTS, NUMBERS = 478, 128  # of a mesh, of a descriptor
# Seconds that the models may take to load, and a frame to be read, before a run is taken for stuck: on an idle core
# they take 3 and 0.07, on one that many share a hundred times that.
STARTING, EACH_FRAME = 600, 10
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Faces:
    """What was read off n frames."""

    landmarks: Array  # float32 [n, 478, 3], (x, y) in pixels of the frame; NaN where no face was found
    descriptors: Array  # float32 [n, 128]; NaN where none was made
    count: int  # faces in frame 0

    @property
    def found(self) -> Array:
        """Whether there are landmarks, bool [n]."""
        return np.isfinite(self.landmarks[:, 0, 0])


class FaceReader:
    """Runs the script with the interpreter that has the instruments."""

    def __init__(self, interpreter: str | Path, script: Path = SCRIPT):
        """Tries it once. EvaluationError: it does not work."""
        self._words = [str(interpreter), str(script)]
        last = (self._run(1, [], STARTING).strip().splitlines() or [""])[-1]
        try:
            self.versions: dict[str, str] = dict(json.loads(last))
        except (ValueError, TypeError):
            raise EvaluationError(f"instruments: {interpreter}: expected a line of versions, got {last!r}") from None

    def read(self, videos: Sequence[tuple[Path, Path]], stride: int) -> list[Faces]:
        """Of each pair, the frames uint8 [n, H, W, 3] in the first file (.npy), through the second one (.npz).

        A descriptor of every ``stride``-th frame.
        """
        counts = [len(np.load(given, mmap_mode="r", allow_pickle=False)) for given, _ in videos]
        self._run(stride, [path for pair in videos for path in pair], STARTING + EACH_FRAME * sum(counts))
        return [_load(made, count) for (_, made), count in zip(videos, counts, strict=True)]

    def _run(self, stride: int, paths: list[Path], seconds: float) -> str:
        words = [*self._words, str(stride), *map(str, paths)]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise EvaluationError(f"instruments: {words[0]}: expected a run that ends, got {e} ({CURE})") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise EvaluationError(
                f"instruments: {words[0]}: expected a Python with mediapipe and dlib, got exit code {done.returncode} "
                f"({last}); {CURE}"
            )
        return done.stdout


def find_reader(interpreter: str | Path | None = None) -> FaceReader | None:
    """The reader of the interpreter that is named or found; None where there is none.

    Raises: EvaluationError for one that is named, by argument or variable, or found, and does not work.
    """
    named = interpreter or os.environ.get(VARIABLE)
    if named:
        return FaceReader(named)
    return FaceReader(DEFAULT.absolute()) if DEFAULT.exists() else None


def _load(path: Path, frames: int) -> Faces:
    try:
        with np.load(path, allow_pickle=False) as file:
            landmarks, descriptors, count = (np.asarray(file[k]) for k in ("landmarks", "descriptors", "faces"))
    except (KeyError, ValueError, OSError, EOFError, BadZipFile) as e:
        raise EvaluationError(f"instruments: {path.name}: expected landmarks and descriptors, got {e}") from None
    shapes, wanted = (landmarks.shape, descriptors.shape), ((frames, POINTS, 3), (frames, NUMBERS))
    if shapes != wanted:
        raise EvaluationError(f"instruments: {path.name}: expected arrays of {wanted}, got {shapes}")
    return Faces(landmarks, descriptors, int(count))
