"""Invented people: the shape of a head with all that grows on it. Everything random is drawn here, once a person."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from rest_fast.training.synthetic.heads import looks, styles, worn
from rest_fast.training.synthetic.heads.hair import Ribbons, Scalp, Strands, ribbons
from rest_fast.training.synthetic.heads.looks import Covers, Looks, Traits
from rest_fast.training.synthetic.heads.mesh import PARTS, Head
from rest_fast.training.synthetic.heads.motion import Face, Landmarks

Array = np.ndarray
KINDS = ("skin", "mouth", "eye", "upper_teeth", "lower_teeth", "tongue", "solid", "strand")  # csrc/heads/shade.h
_DETAILS, _SPREAD = 45, 0.28  # detail targets of a person, and their standard deviation
_UNUSED = ("trans-in", "trans-out", "angle-in", "angle-out", "chin-triangle", "head-age", "pointed", "ear-shape-square")
# MakeHuman's teeth end behind the lips; people show the upper ones when they speak, the lower ones less.
_BEHIND = 0.035  # decimetres from the lips' inner edge to the teeth
_TEETH = {"upper_teeth": (0, -0.045, 0.012), "lower_teeth": (0, -0.035, 0)}


@dataclass(frozen=True, eq=False)
class Person:
    """Someone who can be drawn. Places are relative to the middle between the eyes, in decimetres."""

    face: Face
    marks: Landmarks
    triangles: Array  # int32 [T, 3]: of the mesh first, then of strands
    kind: Array  # uint8 [T]
    mesh: int  # vertices of the mesh
    strands: Ribbons
    rest: Array  # float32 [S, 3]: vertices of the mesh, then pairs of points of strands
    paint: Array  # float32 [S, 8], without the share of the sky for the mesh: the renderer finds it
    eyes: Array  # float32 [2, 3] middles, right eye first
    eye_vertices: tuple[Array, Array]
    pupils: tuple[int, int]  # the foremost vertex of each eye
    skin: float  # brightness of the skin, linear
    covered: Array  # float32 [V]: lids
    gaze: Array  # [2] radians: where the eyes rest, right and up
    looks: Looks


def invent(rng: np.random.Generator, head: Head, marks: Landmarks) -> Person:
    """A person from random numbers; the same numbers give the same person."""
    who = Traits.random(rng)
    shape = _shape(rng, head, who)
    _seat_teeth(head, marks, shape)
    sides = [np.flatnonzero(head.of("eye") & (np.sign(head.vertices[:, 0]) == side)) for side in (-1, 1)]
    eyes = np.array([(shape[side].max(0) + shape[side].min(0)) / 2 for side in sides])
    shape, eyes = (shape - eyes.mean(0)).astype(np.float32), (eyes - eyes.mean(0)).astype(np.float32)
    look = Looks.random(rng, who, float(shape[head.mask("lips") > 0.5, 2].max()))
    below = looks.neckline(rng, head, shape)
    kinds, covers = _hair(rng, head, shape, eyes, who)
    kinds += _things(rng, head, shape, eyes, look, below)
    made = ribbons(kinds)
    triangles, kind = _surfaces(head, made)
    paint = np.concatenate([looks.paint(rng, head, shape, eyes, who, covers, below), made.paint])
    covered = (0.85 * (head.mask("eyelids") > 0.2)).astype(np.float32)
    pupils = tuple(int(side[shape[side, 2].argmax()]) for side in sides)
    gaze = rng.normal([0, -0.02], [0.04, 0.02])
    return Person(
        Face(head, shape, marks), marks, triangles, kind, len(shape), made, np.concatenate([shape, made.rest]), paint,
        eyes, (sides[0], sides[1]), (pupils[0], pupils[1]), float(who.skin @ [0.21, 0.72, 0.07]), covered, gaze, look,
    )  # fmt: skip


def _shape(rng: np.random.Generator, head: Head, who: Traits) -> Array:
    shape = head.vertices.copy()
    weights = rng.dirichlet([1, 2, 0.7])
    for sex, a in (("female", who.woman), ("male", 1 - who.woman)):
        for age, b in (("young", 1 - who.old), ("old", who.old)):
            for name, share in zip(("african", "asian", "caucasian"), who.people):
                head.shift(f"macro/{name}-{sex}-{age}", a * b * share, shape)
            for name, share in zip(("min", "average", "max"), weights):
                head.shift(f"macro/{sex}-{age}-{name}", a * b * share, shape)
    names = [n for n in head.targets if n.startswith("detail/") and not any(word in n for word in _UNUSED)]
    for name in rng.choice(names, _DETAILS, replace=False):
        head.shift(str(name), abs(rng.normal(0, _SPREAD)), shape)
    return shape


def _seat_teeth(head: Head, marks: Landmarks, shape: Array) -> None:
    """Move the teeth to where they are seen, and back where lips of this shape would not cover them."""
    for part, shift in _TEETH.items():
        shape[head.of(part)] += np.array(shift, np.float32)
    lips = shape[np.concatenate([marks.upper_lip, marks.lower_lip]), 2].min()
    front = max(shape[head.of(part), 2].max() for part in _TEETH)
    shape[head.of(*_TEETH, "tongue"), 2] -= max(0.0, front - (lips - _BEHIND))


def _surfaces(head: Head, made: Ribbons) -> tuple[Array, Array]:
    """Triangles and kinds of what is drawn: lashes are strands instead, walls of the mouth a kind of their own."""
    kept = head.part != PARTS.index("lashes")
    triangles = head.triangles[kept]
    names = np.array([KINDS.index(name) if name in KINDS else 0 for name in PARTS], np.uint8)
    kind = names[head.part[kept]]
    inside = head.mask("inside-mouth")[triangles].mean(1) > 0.5
    kind[inside & (kind == KINDS.index("skin"))] = KINDS.index("mouth")
    strands = np.full(len(made.triangles), KINDS.index("strand"), np.uint8)
    return (
        np.ascontiguousarray(np.concatenate([triangles, made.triangles + len(head.vertices)]), np.int32),
        np.concatenate([kind, strands]),
    )


def _hair(rng: np.random.Generator, head: Head, shape: Array, eyes: Array, who: Traits) -> tuple[list[Strands], Covers]:
    """Hair, brows, lashes and beard, and what they leave on the skin."""
    skin_triangles = head.triangles[head.part == PARTS.index("skin")]
    ears = head.mask("ears")[skin_triangles].mean(1) > 0.3
    scalp = Scalp(shape, skin_triangles[~ears])
    recede = 0.0 if who.woman > 0.5 else float(rng.beta(1, 3)) * 0.30
    growth = styles.hairline(shape, float(rng.uniform(-0.08, 0.10)), recede)
    growth = np.where((head.mask("ears") > 0.5) | (head.mask("inside-mouth") > 0.5), -1, growth)
    style = styles.random_style(rng, who.woman)
    kinds: list[Strands] = []
    bald = who.woman < 0.5 and rng.random() < 0.10
    if not bald:
        kinds.append(styles.grow(rng, scalp, growth, style, who.hair, who.grey))
        if style.name == "bun":
            top = int(np.argmin(np.linalg.norm(shape - styles.CROWN, axis=1)))
            kinds.append(styles.bun(rng, np.full(3, top, np.int32), who.hair))
    brow = 0.1 * who.skin + (who.hair * 0.8 if who.hair.mean() < 0.1 else who.hair * 0.4)
    thick = float(rng.uniform(0.020, 0.032) + 0.012 * (who.woman < 0.5))
    kinds.append(styles.brows(rng, scalp, shape, eyes[1], brow, thick, float(rng.uniform(0.4, 1.0))))
    for rows, upper in _lid_edges(head):
        kinds += styles.lashes(rng, shape, rows, upper, 0.04 + 0.03 * who.woman if upper else 0.02, 0.35 * who.skin)
    stubble: Array = np.zeros(len(shape), np.float32)
    if who.woman < 0.45:
        kind = str(rng.choice(["none", "full", "goatee", "moustache"], p=[0.5, 0.32, 0.12, 0.06]))
        area = styles.beard_field(shape, head.mask("lips"), "full" if kind == "none" else kind)
        stubble = area * (rng.uniform(0, 0.5) if kind == "none" else 0.6)
        if kind != "none":
            length = float(rng.choice([0.035, 0.07, 0.16, 0.4], p=[0.4, 0.3, 0.2, 0.1]))
            count = 6500 if length < 0.1 else 4500
            kinds.append(styles.beard(rng, scalp, area, length, count, who.hair, who.grey))
    base = who.hair * 0.5 if style.length > 0.1 else who.hair + 0.4 * who.skin
    return kinds, Covers(np.clip(growth / 0.14, 0, 1) * (0.0 if bald else 0.9), base, stubble)


def _things(
    rng: np.random.Generator, head: Head, shape: Array, eyes: Array, look: Looks, below: Array
) -> list[Strands]:
    """Collar and glasses."""
    style = int(look.cloth[9])
    colour = look.cloth[3:6] if style == looks.JACKET else look.cloth[:3] * rng.uniform(0.7, 1.1)
    half = rng.uniform(0.08, 0.13) if style in (looks.JACKET, looks.SHIRT) else rng.uniform(0.025, 0.05)
    skin = np.where(head.of("skin"), below, np.inf)
    out = worn.collar(shape, skin, colour, float(half))
    if rng.random() < 0.16:
        out += worn.glasses(rng, shape, eyes)
    return out


@cache
def _lid_edges(head: Head) -> list[tuple[Array, bool]]:
    """Vertices of MakeHuman's lashes that lie on a lid, from the nose outwards, and whether it is an upper one."""
    lash, skin = np.flatnonzero(head.of("lashes")), head.vertices[head.of("skin")]
    skin = skin[skin[:, 2] > 1.2]
    away = np.linalg.norm(head.vertices[lash][:, None] - skin, axis=-1).min(1)
    moved = np.zeros_like(head.vertices)
    for side in ("Left", "Right"):
        head.shift(f"unit/eyeBlink{side}", 1.0, moved)
    out = []
    blinks = np.abs(moved[lash]).max(1) > 0
    for upper in (True, False):
        for sign in (-1, 1):
            rows = lash[(away < 0.012) & (blinks == upper) & (np.sign(head.vertices[lash, 0]) == sign)]
            out.append((rows[np.argsort(np.abs(head.vertices[rows, 0]))], upper))
    return out
