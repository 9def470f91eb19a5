"""From a person and a motion to a picture with labels: calls of csrc/heads in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rest_fast.errors import OpError
from rest_fast.ops import native
from rest_fast.training.synthetic.heads.motion import HEAD_MOTION, PITCH, YAW, rotation
from rest_fast.training.synthetic.heads.people import KINDS, Person

Array = np.ndarray
FOCAL = 9.0  # decimetres from the eyes to the camera
FIELD = 3.9  # decimetres that a picture at zoom 1 shows
_SHADOWS, _REACH = 256, 2.6  # size of the shadow map and decimetres from its middle to its edge
_PIVOT = np.array([0, -1.3, -0.9], np.float32)
_NECK = (-2.2, -1.3)  # heights between which the head's turn fades
_MIDDLE = np.array([0, -0.6, -0.6], np.float32)  # of what casts shadows


def call(op: str, **given: Any) -> None:
    """Call an op of csrc/heads by names; arrays go in as addresses, so they must be contiguous."""
    compiled, reason = native.module()
    if compiled is None:
        raise OpError(f"{op}: heads are drawn by C++: {reason}")
    names = compiled.arguments[op]
    assert set(names) == set(given), f"{op}: expected {sorted(names)}, got {sorted(given)}"
    for name, value in given.items():
        if isinstance(value, np.ndarray):
            assert value.flags.c_contiguous, f"{op}: {name} must be contiguous"
            assert value.dtype in (np.float32, np.int32, np.uint8), f"{op}: {name} is {value.dtype}"
    values = [given[name].ctypes.data if isinstance(given[name], np.ndarray) else given[name] for name in names]
    code = getattr(compiled, op)(*values)
    if code:
        raise OpError(f"{op}: {compiled.error_string(code)}")


@dataclass(frozen=True, eq=False)
class Light:
    """Where light comes from, linear. directions [3] of unit length, towards the light."""

    key: Array
    key_colour: Array
    fill: Array
    fill_colour: Array
    sky: Array
    ground: Array
    softness: float  # decimetres over which the key light's shadows fade

    def packed(self) -> Array:
        parts = (self.key, self.key_colour, self.fill, self.fill_colour, self.sky, self.ground)
        return np.concatenate(parts).astype(np.float32)


@dataclass(frozen=True)
class Camera:
    """zoom: 1 shows FIELD decimetres; x, y: place of the eyes' middle as a share of the side; turns in radians that the
    person keeps."""

    zoom: float = 1.6
    x: float = 0.5
    y: float = 0.42
    focal: float = FOCAL
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class Sensor:
    """exposure: linear brightness of light skin; blur: radius in pixels; grain: standard deviation of noise; quality:
    of JPEG, 0 for none."""

    exposure: float
    shoulder: float
    saturation: float
    gamma: float
    blur: float
    grain: float
    quality: int


@dataclass(frozen=True, eq=False)
class Frame:
    """What the rasteriser leaves of a frame; side = 2 x the picture's size."""

    motion: dict[str, float]
    screen: Array  # [P, 3]
    world: Array  # [P, 3]
    id: Array  # [side, side]
    share: Array  # [side, side, 3]
    depth: Array  # [side, side]
    colour: Array  # [side, side, 3]


def points_of(motion: Array) -> dict[str, float]:
    """A row of motion by names."""
    return dict(zip(HEAD_MOTION, np.asarray(motion, np.float32).tolist()))


class Painter:
    """Draws one person before one camera in one light."""

    def __init__(self, person: Person, camera: Camera, light: Light, size: int) -> None:
        self.person, self.camera, self.light, self.size = person, camera, light, size
        self.side = 2 * size
        self.paint = person.paint.copy()
        strand = person.kind == KINDS.index("strand")
        self._mesh_triangles = np.ascontiguousarray(person.triangles[~strand])
        # Every third hair is enough to cast a shadow.
        thin = strand & (np.cumsum(strand) % 6 > 1)
        self._casting = np.ascontiguousarray(person.triangles[~thin])
        self._open_sky()

    def _open_sky(self) -> None:
        """What each vertex sees of the sky at rest goes into the paint."""
        who = self.person
        world, normal, _, _ = self._points(
            who.face.pose(dict.fromkeys(HEAD_MOTION, 0.0)), np.eye(3, dtype=np.float32), 0, 0
        )
        count = 14
        k = np.arange(count) + 0.5
        y, turn = 1 - 1.6 * k / count, k * 2.399963
        across = np.sqrt(1 - y**2)
        directions = np.stack([across * np.sin(turn), y, across * np.cos(turn)], 1).astype(np.float32)
        opened = np.zeros(who.mesh, np.float32)
        call(
            "heads_occlusion", world=world, normal=normal, triangle=self._mesh_triangles, directions=directions,
            middle=_MIDDLE, open=opened, points=who.mesh, triangles=len(self._mesh_triangles), count=count, size=128,
            radius=_REACH,
        )  # fmt: skip
        skin = np.zeros(who.mesh, bool)
        skin[who.triangles[who.kind == 0]] = True
        opened = np.maximum(opened, who.covered)  # lids are folded away at rest
        self.paint[: who.mesh][skin, 4] *= 0.25 + 0.75 * opened[skin]

    def _points(self, shape: Array, turn: Array, dx: float, dy: float) -> tuple[Array, Array, Array, Array]:
        who, cam = self.person, self.camera
        strands, pairs = who.strands, len(who.strands.rest)
        world, screen = (np.empty((who.mesh + 2 * pairs, 3), np.float32) for _ in range(2))
        normal, along = np.empty((who.mesh + pairs, 3), np.float32), np.empty((pairs, 3), np.float32)
        scale = cam.zoom * self.side / FIELD * cam.focal
        shift = self.side / 128
        view = np.array(
            [*_NECK, cam.focal, scale, cam.x * self.side, cam.y * self.side, dx * shift, dy * shift], np.float32
        )
        call(
            "heads_pose", shape=shape, rest=who.rest, out_dir=strands.outward, tangent=strands.tangent,
            half=strands.half, root=strands.root, root_part=strands.share, triangle=self._mesh_triangles, turn=turn,
            pivot=_PIVOT, view=view, world=world, normal=normal, along=along, screen=screen, mesh=who.mesh,
            pairs=pairs, triangles=len(self._mesh_triangles),
        )  # fmt: skip
        return world, normal, along, screen

    def frame(self, motion: Array, shaded: bool = True) -> Frame:
        """Draw a row of motion [14]."""
        who, m, side = self.person, points_of(motion), self.side
        cam = self.camera
        turn = rotation(cam.yaw + YAW * m["yaw"], cam.pitch + PITCH * m["pitch"], cam.roll + m["roll"])
        shape = who.face.pose(m)
        self._look(shape, turn)
        world, normal, along, screen = self._points(shape, turn, m["dx"], m["dy"])
        found, depth = np.empty((side, side), np.int32), np.empty((side, side), np.float32)
        share, colour = (np.empty((side, side, 3), np.float32) for _ in range(2))
        common = {"triangle": who.triangles, "points": len(world), "triangles": len(who.triangles)}
        call("heads_raster", screen=screen, id=found, share=share, depth=depth, height=side, width=side, **common)
        if shaded:
            self._shade(world, normal, along, found, share, turn, colour, self._mouth_light(shape), common)
        return Frame(m, screen, world, found, share, depth, colour)

    def _look(self, shape: Array, turn: Array) -> None:
        """Turn the eyes towards the camera, most of the way, wherever the head turns."""
        who = self.person
        towards = turn.T @ np.array([0, 0, 1], np.float32)
        right = np.clip(0.8 * np.arctan2(towards[0], towards[2]), -0.45, 0.45) + who.gaze[0]
        up = np.clip(0.8 * np.arcsin(towards[1]), -0.3, 0.3) + who.gaze[1]
        about = rotation(right, -up, 0)
        for vertices, middle in zip(who.eye_vertices, who.eyes):
            shape[vertices] = (shape[vertices] - middle) @ about.T + middle

    def _mouth_light(self, shape: Array) -> float:
        marks = self.person.marks
        gap = shape[marks.upper_lip, 1].min() - shape[marks.lower_lip, 1].max()
        return float(np.clip(0.5 + 2.0 * gap, 0.5, 1.0))

    def _shade(
        self,
        world: Array,
        normal: Array,
        along: Array,
        found: Array,
        share: Array,
        turn: Array,
        colour: Array,
        inside: float,
        common: dict[str, Any],
    ) -> None:
        who = self.person
        shadow = np.empty((_SHADOWS, _SHADOWS), np.float32)
        light = np.ascontiguousarray(self.light.key, np.float32)
        call(
            "heads_shadow",
            world=world,
            light=light,
            middle=_MIDDLE,
            height=shadow,
            size=_SHADOWS,
            radius=_REACH,
            triangle=self._casting,
            triangles=len(self._casting),
            points=len(world),
        )
        looks = who.looks
        mouth = looks.mouth.copy()
        mouth[1] = inside
        call(
            "heads_shade", id=found, share=share, kind=who.kind, rest=who.rest, world=world, normal=normal,
            along=along, paint=self.paint, shadow=shadow, lights=self.light.packed(), skin=looks.skin, mouth=mouth,
            eye=looks.eye, cloth=looks.cloth, turn=np.ascontiguousarray(turn),
            map=np.array([*_MIDDLE, _REACH, self.light.softness], np.float32), colour=colour, mesh=who.mesh,
            height=self.side, width=self.side, shadow_size=_SHADOWS, seed=looks.seed, **common,
        )  # fmt: skip

    def exposure(self, frame: Frame) -> float:
        """Mean brightness of the skin that is seen, linear, as far as a photographer allows for dark skin."""
        found = frame.id[::2, ::2]
        face = (found >= 0) & (self.person.kind[np.maximum(found, 0)] == 0)
        luminance = frame.colour[::2, ::2][face] @ np.array([0.21, 0.72, 0.07], np.float32)
        dark = float(np.clip(self.person.skin / 0.35, 0.2, 1)) ** 0.45
        return float(luminance.mean()) / dark if len(luminance) else 0.2

    def develop(self, frame: Frame, background: Array, gain: float, sensor: Sensor, seed: int) -> Array:
        """uint8 [size, size, 3] before a background [size, size, 3] in linear light; seed: of the grain."""
        picture = np.empty((self.size, self.size, 3), np.uint8)
        call(
            "heads_develop", colour=frame.colour, id=frame.id, background=np.ascontiguousarray(background, np.float32),
            picture=picture, size=self.size, seed=seed, gain=gain, shoulder=sensor.shoulder,
            saturation=sensor.saturation, gamma=sensor.gamma, grain=sensor.grain,
        )  # fmt: skip
        return picture

    def flow(self, frame: Frame, photo: Frame, grid: int) -> tuple[Array, Array, Array]:
        """flow float32 [grid, grid, 2] in pixels of a 128 px picture, visible and matte uint8 [grid, grid]."""
        flow = np.empty((grid, grid, 2), np.float32)
        visible, matte = (np.empty((grid, grid), np.uint8) for _ in range(2))
        who = self.person
        call(
            "heads_flow", id=frame.id, share=frame.share, triangle=who.triangles, kind=who.kind,
            photo_screen=photo.screen, photo_id=photo.id, photo_depth=photo.depth, flow=flow, visible=visible,
            matte=matte, points=len(photo.screen), triangles=len(who.triangles), side=self.side, grid=grid,
            unit=128 / self.side, near=0.05, near_hair=0.25,
        )  # fmt: skip
        return flow, visible, matte
