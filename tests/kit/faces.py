"""Faces that nobody has to find: a mesh with points where they are wanted, and a program that reads it off colours."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

EYES = 30.0  # px between the outer corners of the eyes of :func:`mesh`, at a picture of 100 px


def mesh(gap: float = 0.0, lids: float = 0.1, side: float = 100.0, yaw: float = 0.0) -> np.ndarray:
    """A face from the front in the middle of a picture: [478, 3], NaN where no measure looks.

    ``gap`` and ``lids`` are openings over the distance of the outer corners of the eyes; ``yaw`` in degrees turns the
    head about the vertical axis.
    """
    points = np.full((478, 3), np.nan)
    at = {  # x, y, z in hundredths of the side
        10: (50, 25, 0), 152: (50, 75, 0), 234: (31, 50, 0), 454: (69, 50, 0),
        33: (35, 42, 0), 133: (44, 42, 0), 362: (56, 42, 0), 263: (65, 42, 0),
        168: (50, 41, 0), 6: (50, 44, 0), 197: (50, 47, 0), 195: (50, 50, 0),
        159: (40, 42, 0), 145: (40, 42 + EYES * lids, 0), 386: (60, 42, 0), 374: (60, 42 + EYES * lids, 0),
        13: (50, 63, 0), 14: (50, 63 + EYES * gap, 0), 151: (50, 32, 0), 50: (39, 55, 0), 280: (61, 55, 0),
    }  # fmt: skip
    for index, place in at.items():
        points[index] = place
    turn = np.exp(1j * np.radians(yaw))
    across = (points[:, 0] - 50) * turn
    points[:, 0], points[:, 2] = 50 + across.real, across.imag
    return points * side / 100


# Reads as the real one does, of frames whose colours say what is there. Black: nobody. Blue: three faces, of which the
# one that is read is turned by 40 degrees with its mouth open. Else the mouth opens as the middle gets brighter.
READER = """
import json, sys
import numpy as np
sys.path.insert(0, {root!r})
from tests.kit.faces import mesh

stride, paths = int(sys.argv[1]), sys.argv[2:]
for given, made in zip(paths[::2], paths[1::2]):
    frames = np.load(given, allow_pickle=False)
    n, height, width = frames.shape[:3]
    landmarks, descriptors = np.full((n, 478, 3), np.nan, np.float32), np.full((n, 128), np.nan, np.float32)
    for i, frame in enumerate(frames):
        red, green, blue = frame.mean((0, 1))
        if frame.max() == 0:
            continue
        odd = blue > red + 100
        middle = frame[height * 5 // 8 : height * 3 // 4, width * 3 // 8 : width * 5 // 8].mean() / 255
        face = mesh(0.4 if odd else 0.3 * middle, side=height, yaw=40 * odd)
        landmarks[i] = np.where(np.isnan(face), 0, face)
        if i % stride == 0:
            descriptors[i] = frame.mean() / 255
    red, green, blue = frames[0].mean((0, 1))
    np.savez(made, landmarks=landmarks, descriptors=descriptors, faces=np.int64(3 if blue > red + 100 else 1))
print(json.dumps({{"reader": "of colours"}}))
"""


def reader_script(folder: Path) -> Path:
    """That program, for the Python of the tests."""
    path = folder / "read_colours.py"
    path.write_text(READER.format(root=str(Path(__file__).parents[2])))
    return path


def interpreter(folder: Path, script: Path) -> Path:
    """Something that is called like a Python with instruments, and runs ``script`` whatever it is asked to."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" "{script}" "$@"\n')
    path.chmod(0o755)
    return path
