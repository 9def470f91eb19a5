"""Finds the faces of a picture: OpenCV's cascade in this process, or mediapipe's landmarks in another Python.

The release of mediapipe that contains its models needs numpy < 2. So it has an environment of its own, whose
interpreter the variable ``REST_FAST_MEDIAPIPE_PYTHON`` names.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from rest_fast.errors import ArgumentError
from rest_fast.errors import DetectorError as DetectorError
from rest_fast.media.faces import CASCADE, LONGEST, NEIGHBOURS, SMALLEST, WIDER
from rest_fast.media.sources import UInt8
from rest_fast.training.preparation.crops import Box, Framing

DETECTORS = ("auto", "opencv", "mediapipe")
INTERPRETER = "REST_FAST_MEDIAPIPE_PYTHON"
SCRIPT = Path(__file__).with_name("mediapipe_faces.py")
INSTALL = "python3.11 -m venv mp && mp/bin/pip install mediapipe==0.10.21; REST_FAST_MEDIAPIPE_PYTHON=mp/bin/python"


class Detector(Protocol):
    """Boxes of all faces in uint8 [H, W, 3], and how a portrait is framed from one."""

    framing: Framing

    def faces(self, picture: UInt8) -> list[Box]: ...

    def close(self) -> None: ...


def choose(name: str) -> str:
    """The detector's name, with ``auto`` resolved, after a trial start. Raises: ValueError if it does not start."""
    if name not in DETECTORS:
        raise ArgumentError(f"detector: expected one of {', '.join(DETECTORS)}, got {name!r}")
    if name == "auto":
        name = "mediapipe" if os.environ.get(INTERPRETER) else "opencv"
    try:
        open_detector(name).close()
    except DetectorError as error:
        raise ArgumentError(f"detector {name}: {error}") from None
    return name


def open_detector(name: str) -> Detector:
    """Start a detector. Raises: DetectorError if it cannot be started."""
    return Cascade() if name == "opencv" else Landmarks()


class Cascade:
    """OpenCV's frontal faces: squares from the middle of the forehead to below the mouth."""

    framing = Framing(WIDER, 0.0)

    def __init__(self) -> None:
        try:
            import cv2.data

            self._cascade: Any = cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)
        except (ImportError, AttributeError):  # OpenCV 5 comes without cascades
            ways = f'pip install "rest_fast[face]", or {INSTALL}, or boxes'
            raise DetectorError(f"expected OpenCV 4, found none ({ways})") from None

    def faces(self, picture: UInt8) -> list[Box]:
        height, width = picture.shape[:2]
        scale = min(1.0, LONGEST / max(height, width))
        grey = Image.fromarray(picture).convert("L")
        small = grey.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
        least = max(20, round(SMALLEST * min(small.size)))  # the cascade's own window is 20 px
        found = self._cascade.detectMultiScale(np.asarray(small), 1.1, NEIGHBOURS, minSize=(least, least))
        edges = [(float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in found]
        return [(a / scale, b / scale, c / scale, d / scale) for a, b, c, d in edges]

    def close(self) -> None:
        pass


class Landmarks:
    """mediapipe's face mesh in its own Python: extremes of the landmarks, from the top of the forehead to the chin.

    Measured against the cascade on two people: the mesh is 0.97 and 1.14 times as high as the cascade's square, and its
    centre lies 0.11 lower.
    """

    framing = Framing(WIDER / 1.05, 0.11)

    def __init__(self) -> None:
        interpreter = os.environ.get(INTERPRETER)
        if not interpreter:
            raise DetectorError(f"expected {INTERPRETER} to name a Python that has mediapipe ({INSTALL}), got none")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [interpreter, "-I", str(SCRIPT)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
            )
        except OSError as error:
            self._errors.close()
            expected = f"{INTERPRETER}: expected a Python that has mediapipe ({INSTALL})"
            raise DetectorError(f"{expected}, got {interpreter}: {error.strerror}") from None
        self._answer()

    def faces(self, picture: UInt8) -> list[Box]:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # the process has ended: reading its answer, below, tells why
            self._process.stdin.write(struct.pack("<II", *picture.shape[:2]))
            self._process.stdin.write(picture.tobytes())
            self._process.stdin.flush()
        return [tuple(box) for box in self._answer()]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        try:
            return json.loads(self._process.stdout.readline())
        except ValueError:
            self._process.kill()
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            name = os.environ.get(INTERPRETER)
            self.close()
            raise DetectorError(
                f"{INTERPRETER}: expected faces from mediapipe in {name} ({INSTALL}), which ended and said {said[-1]}"
            ) from None

    def close(self) -> None:
        """End the other Python process."""
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):  # something was left that it did not read
                    pipe.close()
        self._process.wait()
