"""One person before one camera: what pairs and clips have in common, and what is measured in a frame."""

from __future__ import annotations

from functools import cache

import numpy as np

from rest_fast.errors import ArgumentError
from rest_fast.training.synthetic.heads import scene
from rest_fast.training.synthetic.heads.draw import Frame, Painter
from rest_fast.training.synthetic.heads.mesh import Head, load_head
from rest_fast.training.synthetic.heads.motion import Landmarks
from rest_fast.training.synthetic.heads.people import invent

Array = np.ndarray
PLACES = (
    *("right_eye", "left_eye", "right_iris", "left_iris", "right_corner", "left_corner"),
    *("upper_lip", "lower_lip", "chin", "nose"),
)


@cache
def base() -> tuple[Head, Landmarks]:
    """The head that all people are made of."""
    head = load_head()
    return head, Landmarks.of(head)


class Studio:
    """An invented person, light, camera, background and sensor. The first frame sets the exposure.

    Args:
        backgrounds: uint8 RGB pictures; one in two people stands before one of them.
    """

    def __init__(self, rng: np.random.Generator, size: int, backgrounds: list[Array] | None = None) -> None:
        if size % 2 or size < 32:
            raise ArgumentError(f"heads: expected an even size >= 32, got {size}")
        self._rng = rng
        person = invent(rng, *base())
        camera, light, self._sensor = scene.random_camera(rng), scene.random_light(rng), scene.random_sensor(rng)
        picture = backgrounds[rng.integers(len(backgrounds))] if backgrounds and rng.random() < 0.5 else None
        self._wall = scene.random_background(rng, size, picture)
        self.painter = Painter(person, camera, light, size)
        self._gain = 0.0

    def shoot(self, motion: Array) -> Frame:
        """Draw a row of motion [14]."""
        frame = self.painter.frame(motion)
        if not self._gain:
            self._gain = self._sensor.exposure / max(self.painter.exposure(frame), 1e-3)
        return frame

    def picture(self, frame: Frame) -> Array:
        """uint8 [size, size, 3], with fresh grain."""
        seed = int(self._rng.integers(2**32))
        shot = self.painter.develop(frame, self._wall, self._gain, self._sensor, seed)
        return scene.publish(self._sensor, shot)

    def measure(self, frame: Frame) -> tuple[Array, Array, Array]:
        """From the vertices of a frame, in pixels of a 128 px picture: geometry float32 [4] as portraits.GEOMETRY,
        opening of the right and of the left eye [2], and PLACES [10, 2]."""
        painter = self.painter
        marks, person = painter.person.marks, painter.person
        at = frame.screen[: person.mesh, :2] * (128 / painter.side)
        roll = painter.camera.roll + frame.motion["roll"]
        along = at @ np.array([-np.sin(roll), np.cos(roll)], np.float32)  # down the head
        upper = marks.upper_lip[along[marks.upper_lip].argmax()]
        lower = marks.lower_lip[along[marks.lower_lip].argmin()]
        gap = max(0.0, float(along[lower] - along[upper]))
        right, left = at[marks.corners]
        geometry = np.array([gap, np.linalg.norm(left - right), *(at[upper] + at[lower]) / 2], np.float32)
        eyes = np.array([max(0.0, along[low] - along[up]) for up, low in marks.lids], np.float32)
        balls = [at[vertices].mean(0) for vertices in person.eye_vertices]
        irises = [at[vertex] for vertex in person.pupils]
        places = [*balls, *irises, right, left, at[upper], at[lower], at[marks.chin], at[marks.nose]]
        return geometry, eyes, np.array(places, np.float32)
