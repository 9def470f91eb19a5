"""How far a mouth is open in each frame, of drawn faces and of filmed ones.

Landmark files (``NAME.npz`` or ``NAME.json``) hold ``points`` [n, 4, 2]: of each of the n frames the inner edge of the
upper lip, that of the lower lip, the outer corner of one eye and that of the other, (x, y) in any unit; NaN (``null``)
where no face was found. The opening is the distance of the lips over that of the eyes, so that neither the size of the
picture nor the way to the camera counts.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast.errors import NoFace as NoFace
from rest_fast.evaluation.readers import PixelReader, at_128
from rest_fast.evaluation.sources import EvaluationError
from rest_fast.units import from_levels

MISSING = 0.2  # share of a video's frames that may be without a face
Array = NDArray[Any]


class MouthReader(Protocol):
    """Anything that reads mouths."""

    def opening(self, frames: Array, name: str) -> Array:
        """Opening in each frame of a video uint8 [n, H, W, 3] called ``name``: [n], in a unit of its own.

        Raises: :class:`NoFace`; another :class:`EvaluationError` for an instrument that does not work.
        """
        ...


class DrawnMouths:
    """The fitted reader of drawn faces: pixels of a 128 px picture."""

    def __init__(self, reader: PixelReader):
        self.reader = reader

    def opening(self, frames: Array, name: str) -> Array:
        video = from_levels(torch.from_numpy(frames).permute(3, 0, 1, 2))
        return self.reader.read(at_128(video))[:, 0]


class LandmarkFiles:
    """Landmarks that someone made of the written videos: ``FOLDER/NAME.npz`` or ``.json``."""

    def __init__(self, folder: Path, names: list[str]):
        """Refuses a folder that has not all of these ``names``."""
        if not folder.is_dir():
            raise EvaluationError(f"landmarks: expected a folder of NAME.npz or NAME.json, got {folder}")
        found = {name: [p for p in (folder / f"{name}.npz", folder / f"{name}.json") if p.is_file()] for name in names}
        absent = [name for name, paths in found.items() if not paths]
        if absent:
            raise EvaluationError(
                f"landmarks: {folder}: expected a file for each of {len(names)} videos, found none for {len(absent)} "
                f"({absent[0]}.npz or .json, ...)"
            )
        self._files = {name: paths[0] for name, paths in found.items()}

    def opening(self, frames: Array, name: str) -> Array:
        path = self._files[name]
        return opening(read_points(path, len(frames)), str(path))


class LandmarkCommand:
    """A detector in a process of its own, so that its packages need not agree with ours.

    It is called as ``COMMAND FRAMES.npy POINTS.npz`` for each video: frames uint8 [n, H, W, 3] in, a landmark file out.
    """

    def __init__(self, command: str, seconds: float = 600):
        self.words, self.seconds = shlex.split(command), seconds
        if not self.words:
            raise EvaluationError("landmark command: expected a program, got nothing")

    def opening(self, frames: Array, name: str) -> Array:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "frames.npy", Path(folder) / "points.npz"
            np.save(given, frames)
            try:
                done = subprocess.run(
                    [*self.words, given, made], capture_output=True, text=True, timeout=self.seconds, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as e:
                raise EvaluationError(f"landmark command: {self.words[0]}: expected a run that ends, got {e}") from None
            if done.returncode or not made.is_file():
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise EvaluationError(
                    f"landmark command: {self.words[0]}: expected exit code 0 and a file of points, got exit code "
                    f"{done.returncode} ({last})"
                )
            return opening(read_points(made, len(frames)), name)


def read_points(path: Path, frames: int) -> Array:
    """A landmark file of so many frames: float64 [n, 4, 2]."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                points = np.asarray(file["points"], np.float64)
        else:
            points = np.array(json.loads(path.read_text())["points"], np.float64)
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as e:
        raise EvaluationError(
            f"{path}: expected landmarks with 'points', got a file that cannot be read ({e})"
        ) from None
    if points.shape != (frames, 4, 2):
        raise EvaluationError(f"{path}: points: expected [{frames}, 4, 2], got {list(points.shape)}")
    return points


def opening(points: Array, name: str) -> Array:
    """Points [n, 4, 2] as in a landmark file -> opening [n]; frames without a face are filled in between the others."""
    upper, lower, left, right = points.transpose(1, 0, 2)
    eyes = np.linalg.norm(left - right, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.linalg.norm(upper - lower, axis=1) / eyes
    known = np.isfinite(values)
    if known.mean() < 1 - MISSING:
        raise NoFace(f"{name}: expected a face in {1 - MISSING:.0%} of the frames, got {known.mean():.0%}")
    return np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
