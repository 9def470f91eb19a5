"""Mouths from landmarks: geometry, files, a detector in another process; and from the fitted reader at any size."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from rest_fast.evaluation import mouths
from rest_fast.evaluation.mouths import DrawnMouths, LandmarkCommand, LandmarkFiles, NoFace
from rest_fast.evaluation.sources import EvaluationError

FRAMES = np.zeros((6, 16, 16, 3), np.uint8)


def points(gaps) -> np.ndarray:
    """A face of eyes 40 apart and lips ``gaps`` apart, somewhere else in every frame, turned by 30 degrees."""
    gaps = np.asarray(gaps, float)
    face = np.zeros((len(gaps), 4, 2))
    face[:, 0, 1], face[:, 1, 1] = 50, 50 + gaps
    face[:, 2, 0], face[:, 3, 0] = -20, 20
    turn = np.deg2rad(30)
    face = face @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return face + np.arange(len(gaps))[:, None, None] * 7


def test_opening_is_a_share_of_the_eyes_distance():
    gaps = np.array([0, 2, 8, 4.0])
    np.testing.assert_allclose(mouths.opening(points(gaps), "x"), gaps / 40)
    np.testing.assert_allclose(mouths.opening(points(gaps) * 3.7, "x"), gaps / 40)  # nearer to the camera


def test_frames_without_a_face_are_filled_in_until_they_are_many():
    face = points(np.arange(10.0))
    face[[3, 9]] = np.nan
    np.testing.assert_allclose(mouths.opening(face, "x"), np.r_[np.arange(9.0), 8] / 40)  # linear; the last one stays
    face[5] = np.nan
    with pytest.raises(NoFace, match="x: expected a face in 80% of the frames, got 70%"):
        mouths.opening(face, "x")
    with pytest.raises(NoFace, match="got 0%"):
        mouths.opening(np.zeros((4, 4, 2)), "x")  # eyes in one place


def test_landmark_files(tmp_path):
    gaps = np.arange(6.0)
    np.savez(tmp_path / "a.npz", points=points(gaps))
    holes = points(gaps).tolist()
    holes[2] = [[None, None]] * 4
    (tmp_path / "b.json").write_text(json.dumps({"points": holes}))
    files = LandmarkFiles(tmp_path, ["a", "b"])
    for name in ("a", "b"):
        np.testing.assert_allclose(files.opening(FRAMES, name), gaps / 40)
    with pytest.raises(EvaluationError, match=r"a\.npz: points: expected \[5, 4, 2\], got \[6, 4, 2\]"):
        files.opening(FRAMES[:5], "a")


def test_landmark_folders_are_whole_before_any_work(tmp_path):
    np.savez(tmp_path / "a.npz", points=points([1.0]))
    with pytest.raises(EvaluationError, match=r"a file for each of 3 videos, found none for 2 \(b\.npz or \.json"):
        LandmarkFiles(tmp_path, ["a", "b", "c"])
    with pytest.raises(EvaluationError, match="expected a folder"):
        LandmarkFiles(tmp_path / "none", ["a"])


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"points": "x"}', '{"points": [[1], [2, 3]]}'])
def test_landmark_files_that_do_not_read(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "b.npz").write_text(content)
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04" + content.encode())
    files = LandmarkFiles(tmp_path, ["a", "b", "c"])
    for name in ("a", "b", "c"):
        with pytest.raises(EvaluationError, match=rf"{name}\.\w+: expected landmarks with 'points'"):
            files.opening(FRAMES, name)


DETECTOR = """
import sys
import numpy as np
frames = np.load(sys.argv[-2])
points = np.zeros((len(frames), 4, 2))
points[:, 1, 1] = frames[:, 0, 0, 0]
points[:, 3, 0] = 10
np.savez(sys.argv[-1], points=points)
"""


def test_a_detector_in_a_process_of_its_own(tmp_path):
    (tmp_path / "detect it.py").write_text(DETECTOR)
    frames = FRAMES.copy()
    frames[:, 0, 0, 0] = [0, 5, 10, 20, 0, 1]
    detector = LandmarkCommand(f"{sys.executable} '{tmp_path / 'detect it.py'}' --quick")
    np.testing.assert_allclose(detector.opening(frames, "x"), np.array([0, 5, 10, 20, 0, 1]) / 10)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("no_such_program_at_all", "no_such_program_at_all: expected a run that ends"),
        (f"{sys.executable} -c 'raise SystemExit(\"no model here\")'", r"got exit code 1 \(no model here\)"),
        (f"{sys.executable} -c pass", "got exit code 0"),
    ],
)
def test_detectors_that_fail(command, says):
    with pytest.raises(EvaluationError, match=says):
        LandmarkCommand(command).opening(FRAMES, "x")


def test_no_detector_is_none():
    with pytest.raises(EvaluationError, match="expected a program"):
        LandmarkCommand("  ")


class Brightness:
    def read(self, video: torch.Tensor) -> np.ndarray:
        assert video.shape[-2:] == (128, 128)
        return video[0, :, 60:110, 40:90].mean((1, 2))[:, None].numpy()


@pytest.mark.parametrize("size", [64, 128, 512])
def test_the_fitted_reader_sees_any_size_as_128_pixels(size):
    frames = np.zeros((2, size, size, 3), np.uint8)
    frames[1, size // 2 :] = 255  # the lower half
    rows = np.arange(60, 110)
    want = np.r_[-1, 2 * (rows >= 64).mean() - 1]
    np.testing.assert_allclose(DrawnMouths(Brightness()).opening(frames, "x"), want, atol=0.03)
