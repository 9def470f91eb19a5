"""Invented people: the shape of a head, its colours, hair and clothes. Everything random is drawn here, once a person."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rest_fast.training.synthetic.heads import styles
from rest_fast.training.synthetic.heads.hair import Ribbons, Scalp, Strands, ribbons
from rest_fast.training.synthetic.heads.mesh import PARTS, Head
from rest_fast.training.synthetic.heads.motion import Face, Landmarks

Array = np.ndarray
KINDS = ("skin", "mouth", "eye", "upper_teeth", "lower_teeth", "tongue", "solid", "strand")  # csrc/heads/shade.h
_DETAILS, _SPREAD = 45, 0.28  # detail targets of a person, and their standard deviation
_UNUSED = ("trans-in", "trans-out", "angle-in", "angle-out", "chin-triangle", "head-age", "pointed", "ear-shape-square")
# Linear light, light to dark.
_SKIN = np.array(
    [
        (0.80, 0.52, 0.40),
        (0.70, 0.42, 0.29),
        (0.57, 0.31, 0.20),
        (0.40, 0.20, 0.12),
        (0.22, 0.105, 0.062),
        (0.10, 0.048, 0.030),
    ]
)
_HAIR = {
    "black": (0.010, 0.008, 0.008),
    "dark brown": (0.030, 0.018, 0.012),
    "brown": (0.075, 0.042, 0.024),
    "blond": (0.27, 0.17, 0.085),
    "red": (0.16, 0.055, 0.022),
    "grey": (0.36, 0.35, 0.34),
}
_IRIS = np.array(
    [(0.045, 0.022, 0.012), (0.11, 0.055, 0.025), (0.12, 0.19, 0.27), (0.11, 0.16, 0.09), (0.2, 0.22, 0.24)]
)
_LIPSTICK = np.array([(0.42, 0.04, 0.05), (0.33, 0.07, 0.11), (0.5, 0.16, 0.15), (0.25, 0.03, 0.05)])


@dataclass(frozen=True, eq=False)
class Looks:
    """What a person's surfaces look like, as csrc/heads/shade.h takes it. All float32."""

    skin: Array
    mouth: Array
    eye: Array
    cloth: Array
    seed: int


@dataclass(frozen=True, eq=False)
class Person:
    """Someone who can be drawn. Places are relative to the middle between the eyes, in decimetres."""

    face: Face
    marks: Landmarks
    triangles: Array  # int32 [T, 3]: of the mesh first, then of strands
    kind: Array  # uint8 [T]
    mesh: int  # vertices of the mesh
    strands: Ribbons
    rest: Array  # float32 [P, 3]
    paint: Array  # float32 [P, 8], without the share of the sky for the mesh: the renderer finds it
    eyes: Array  # float32 [2, 3] middles, right eye first
    eye_vertices: tuple[Array, Array]
    pupils: tuple[int, int]  # the foremost vertex of each eye
    skin: float  # brightness of the skin, linear
    covered: Array  # float32 [P]: lids
    gaze: Array  # [2] radians: where the eyes rest, right and up
    looks: Looks
    about: dict[str, str] = field(default_factory=dict)


def invent(rng: np.random.Generator, head: Head, marks: Landmarks) -> Person:
    """A person from random numbers; the same numbers give the same person."""
    woman, old = float(rng.random()), float(rng.beta(1.1, 2.4))
    people = rng.dirichlet([0.6] * 3)  # African, Asian, European shares
    shape = _shape(rng, head, woman, old, people)
    # MakeHuman's teeth end behind the lips; people show the upper ones when they speak, the lower ones less.
    shape[head.of("upper_teeth")] += np.array([0, -0.045, 0.012], np.float32)
    shape[head.of("lower_teeth")] += np.array([0, -0.035, 0], np.float32)
    sides = [np.flatnonzero(head.of("eye") & (np.sign(head.vertices[:, 0]) == side)) for side in (-1, 1)]
    eyes = np.array([(shape[side].max(0) + shape[side].min(0)) / 2 for side in sides])
    shape = (shape - eyes.mean(0)).astype(np.float32)
    eyes = (eyes - eyes.mean(0)).astype(np.float32)

    tone = np.clip(0.85 * people[0] + 0.33 * people[1] + rng.normal(0.06, 0.14), 0, 1) * (len(_SKIN) - 1.001)
    skin = _SKIN[int(tone)] + (tone % 1) * (_SKIN[int(tone) + 1] - _SKIN[int(tone)])
    skin = skin * rng.uniform(0.93, 1.07, 3)
    name = str(rng.choice(list(_HAIR)[: 5 if people[2] > 0.55 else 2]))
    grey = float(np.clip(1.6 * old - 0.45 + rng.normal(0, 0.15), 0, 1)) if rng.random() < 0.8 else 0.0
    hair = np.array(_HAIR[name]) * rng.uniform(0.75, 1.3)
    kinds, paint = _strands(rng, head, shape, eyes, woman, grey, hair, skin)
    made = ribbons(kinds)
    triangles, kind = _surfaces(head, made)
    looks = _looks(rng, woman, people, skin, shape[head.mask("lips") > 0.5, 2].max())
    vertex_paint = _paint(rng, head, shape, eyes, skin, tone, paint)
    covered = np.zeros(len(shape) + len(made.rest), np.float32)
    covered[: len(shape)] = 0.85 * (head.mask("eyelids") > 0.2)
    return Person(
        Face(head, shape, marks), marks, triangles, kind, len(shape), made,
        np.concatenate([shape, made.rest]), np.concatenate([vertex_paint, made.paint]), eyes, (sides[0], sides[1]),
        (int(sides[0][shape[sides[0], 2].argmax()]), int(sides[1][shape[sides[1], 2].argmax()])),
        float(skin @ [0.21, 0.72, 0.07]), covered, rng.normal([0, -0.02], [0.04, 0.02]), looks, {"hair": name},
    )  # fmt: skip


def _shape(rng: np.random.Generator, head: Head, woman: float, old: float, people: Array) -> Array:
    shape = head.vertices.copy()
    weights = rng.dirichlet([1, 2, 0.7])
    for sex, a in (("female", woman), ("male", 1 - woman)):
        for age, b in (("young", 1 - old), ("old", old)):
            for name, share in zip(("african", "asian", "caucasian"), people):
                head.shift(f"macro/{name}-{sex}-{age}", a * b * share, shape)
            for name, share in zip(("min", "average", "max"), weights):
                head.shift(f"macro/{sex}-{age}-{name}", a * b * share, shape)
    names = [n for n in head.targets if n.startswith("detail/") and not any(word in n for word in _UNUSED)]
    for name in rng.choice(names, _DETAILS, replace=False):
        head.shift(str(name), abs(rng.normal(0, _SPREAD)), shape)
    return shape


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


def _strands(
    rng: np.random.Generator, head: Head, shape: Array, eyes: Array, woman: float, grey: float, hair: Array, skin: Array
) -> tuple[list[Strands], dict[str, Array]]:
    """Strands of a person, and what they leave on the skin: a colour for the scalp and for a shaved beard."""
    skin_triangles = head.triangles[head.part == PARTS.index("skin")]
    ears = head.mask("ears")[skin_triangles].mean(1) > 0.3
    scalp = Scalp(shape, skin_triangles[~ears])
    recede = 0.0 if woman > 0.5 else float(rng.beta(1, 3)) * 0.30
    growth = styles.hairline(shape, float(rng.uniform(-0.08, 0.10)), recede)
    growth = np.where(head.mask("ears") > 0.5, -1, growth) * (head.mask("inside-mouth") < 0.5)
    if woman > 0.5:
        odds = [0, 0.2, 0.8, 0.2, 0.5, 1, 2, 2, 2.5, 2, 1.5, 1, 0.5]
    else:
        odds = [1.2, 2.5, 3, 1.5, 1, 2, 0.3, 0.1, 0.4, 0.3, 0.2, 0.8, 0.6]
    style = styles.STYLES[rng.choice(len(styles.STYLES), p=np.array(odds) / np.sum(odds))]
    bald = woman < 0.5 and rng.random() < 0.10
    kinds: list[Strands] = []
    if not bald:
        kinds.append(styles.grow(rng, scalp, growth, style, hair, grey))
        if style.name == "bun":
            top = int(np.argmin(np.linalg.norm(shape - styles.CROWN, axis=1)))
            kinds.append(styles.bun(rng, np.full(3, top, np.int32), hair))
    brow = 0.1 * skin + (hair * 0.8 if hair.mean() < 0.1 else hair * 0.4)
    thick = float(rng.uniform(0.020, 0.032) + 0.012 * (woman < 0.5))
    kinds.append(styles.brows(rng, scalp, shape, eyes[1], brow, thick, float(rng.uniform(0.4, 1.0))))
    for rows, upper in _lid_edges(head):
        kinds += styles.lashes(rng, shape, rows, upper, 0.04 + 0.03 * woman if upper else 0.02, 0.35 * skin)
    stubble = np.zeros(len(shape), np.float32)
    if woman < 0.45:
        kind = str(rng.choice(["none", "full", "goatee", "moustache"], p=[0.5, 0.32, 0.12, 0.06]))
        area = styles.beard_field(shape, head.mask("lips"), "full" if kind == "none" else kind)
        stubble = area * (rng.uniform(0, 0.5) if kind == "none" else 0.6)
        if kind != "none":
            length = float(rng.choice([0.035, 0.07, 0.16, 0.4], p=[0.4, 0.3, 0.2, 0.1]))
            kinds.append(styles.beard(rng, scalp, area, length, 6500 if length < 0.1 else 4500, hair, grey))
    cover = 0.0 if bald else 0.9
    scalp_share = np.clip(growth / 0.14, 0, 1) * cover
    base = hair * 0.5 if style.length > 0.1 else hair + 0.4 * skin
    return kinds, {"scalp": scalp_share, "scalp colour": base, "stubble": stubble, "hair": hair}


def _lid_edges(head: Head) -> list[tuple[Array, bool]]:
    """Vertices of MakeHuman's lashes that lie on a lid, from the nose outwards, and whether it is an upper one."""
    lash, skin = np.flatnonzero(head.of("lashes")), head.vertices[head.of("skin")]
    skin = skin[skin[:, 2] > 1.2]
    away = np.linalg.norm(head.vertices[lash][:, None] - skin, axis=-1).min(1)
    moved = np.zeros_like(head.vertices)
    for side in ("Left", "Right"):
        head.shift(f"unit/eyeBlink{side}", 1.0, moved)
    out = []
    for upper in (True, False):
        for side in (-1, 1):
            blinks = np.abs(moved[lash]).max(1) > 0
            rows = lash[(away < 0.012) & (blinks == upper) & (np.sign(head.vertices[lash, 0]) == side)]
            out.append((rows[np.argsort(np.abs(head.vertices[rows, 0]))], upper))
    return out


def _paint(
    rng: np.random.Generator, head: Head, shape: Array, eyes: Array, skin: Array, tone: float, left: dict[str, Array]
) -> Array:
    """[V, 8] of the mesh as csrc/heads/shade.h reads it."""
    paint = np.zeros((len(shape), 8), np.float32)
    x, y, z = np.abs(shape[:, 0]), shape[:, 1], shape[:, 2]
    red = np.exp(-((x - 0.42) ** 2 / 0.06 + (y + 0.50) ** 2 / 0.06)) + 0.7 * np.exp(
        -(x**2 / 0.03 + (y + 0.55) ** 2 / 0.04)
    )
    red += 0.6 * (head.mask("ears") > 0.3)
    sunk = np.exp(-((x - 0.30) ** 2 / 0.03 + (y + 0.17) ** 2 / 0.008))  # below the eyes
    colour = skin * (1 - rng.uniform(0.1, 0.3) * red[:, None] * [0.1, 1, 0.9])
    colour = colour * (1 - rng.uniform(0.0, 0.22) * sunk[:, None] * [0.8, 1, 0.7])
    lid = head.mask("eyelids")
    colour = colour * (1 - rng.uniform(0.1, 0.3) * lid[:, None] * [0.7, 1, 1])
    colour = _over(colour, 0.75 * left["hair"] + 0.25 * skin, 0.75 * left["stubble"])
    colour = _over(colour, left["scalp colour"], left["scalp"])
    paint[:, :3] = colour
    oily = rng.uniform(0.05, 0.6)
    paint[:, 3] = oily * (
        0.6 + 0.6 * np.exp(-(x**2 / 0.05 + (y - 0.4) ** 2 / 0.3)) + 0.5 * np.exp(-(x**2 / 0.02 + (y + 0.5) ** 2 / 0.05))
    )
    paint[:, 4] = 1
    paint[:, 5] = head.mask("lips")
    depth, wide = rng.uniform(1.30, 1.65), rng.uniform(0.1, 0.4)
    paint[:, 6] = -(depth - wide * np.clip(x - 0.3, 0, 1)) - y - 0.25 * np.clip(-0.3 - z, 0, 1)
    paint[:, 6] = np.minimum(paint[:, 6], -1.2 - y)  # never above the middle of the neck
    paint[:, 7] = (red + 0.3) * (rng.uniform(0.3, 1) if tone < 2 and rng.random() < 0.3 else 0)
    for side, middle in zip((-1, 1), eyes):
        eye = head.of("eye") & (np.sign(head.vertices[:, 0]) == side)
        paint[eye, :3] = shape[eye] - middle
    for part, seed in (("upper_teeth", 1), ("lower_teeth", 2)):
        teeth = np.flatnonzero(head.of(part))
        paint[teeth, 5:7] = _tooth_places(shape[teeth], part == "upper_teeth")
        paint[teeth, 7] = seed
    return paint


def _over(below: Array, colour: Array, share: Array) -> Array:
    return below + (colour - below) * share[:, None]


def _tooth_places(teeth: Array, upper: bool) -> Array:
    """[n, 2]: place along the arch in teeth, whole numbers between teeth, 0 the middle; height, 0 gum to 1 edge."""
    widths = (
        [0.085, 0.066, 0.076, 0.07, 0.068, 0.10, 0.10, 0.2]
        if upper
        else [0.054, 0.059, 0.069, 0.07, 0.072, 0.11, 0.11, 0.2]
    )
    x, y, z = np.abs(teeth[:, 0]), teeth[:, 1], teeth[:, 2]
    back = z.min() + 0.35 * np.ptp(z)
    angle = np.arctan2(x, z - back)
    bins = np.linspace(0, angle.max() + 1e-3, 9)
    outer = [np.flatnonzero((angle >= a) & (angle < b)) for a, b in zip(bins[:-1], bins[1:])]
    outer = [group[np.hypot(x[group], z[group] - back).argmax()] for group in outer if len(group)]
    reach = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x[outer]), np.diff(z[outer])))])
    reach += x[outer[0]] if angle[outer[0]] > 0 else 0
    length = np.interp(angle, angle[outer], reach)
    place = np.interp(length, np.concatenate([[0], np.cumsum(widths)]), np.arange(len(widths) + 1))
    up = -1.0 if upper else 1.0
    edge = np.array([(up * y[np.abs(angle - a) < 0.25]).max() for a in angle])
    gum = np.array([(up * y[np.abs(angle - a) < 0.25]).min() for a in angle])
    return np.stack([place * np.sign(teeth[:, 0]), (up * y - gum) / (edge - gum + 1e-6)], 1)


def _looks(rng: np.random.Generator, woman: float, people: Array, skin: Array, lips: float) -> Looks:
    lip = skin * [0.92, 0.52, 0.52] * rng.uniform(0.75, 1.05)
    if woman > 0.5 and rng.random() < 0.45:
        lip = mix(lip, _LIPSTICK[rng.integers(len(_LIPSTICK))] * rng.uniform(0.6, 1.2), rng.uniform(0.3, 0.9))
    age = rng.uniform(0.6, 1.5)
    iris = _IRIS[rng.integers(len(_IRIS)) if people[2] > 0.6 else rng.integers(2)] * rng.uniform(0.7, 1.3)
    cloth = rng.uniform(0.01, 0.6, 3) * rng.uniform(0.15, 1)
    style = int(rng.choice(4, p=[0.45, 0.2, 0.1, 0.25]))
    if style == 1:
        cloth = rng.uniform(0.008, 0.1) * (1 + rng.uniform(-0.3, 0.3, 3))
    second = np.full(3, rng.uniform(0.4, 0.75)) if style == 1 else cloth * rng.uniform(0.2, 2)
    tie = rng.uniform(0.01, 0.4, 3) * rng.uniform(0.2, 1)
    return Looks(
        np.array([0.07 * age, 0.06 * age, 0.05 * age, 0.045 * age, 0.05 + 0.05 * age, *lip], np.float32),
        np.array([lips, 1, rng.uniform(0, 0.8), rng.uniform(0.05, 0.10)], np.float32),
        np.array([*iris, rng.uniform(0.41, 0.46), rng.uniform(0.13, 0.21), rng.uniform(0.85, 1.05), rng.uniform(0.3, 0.6), rng.uniform(0, 0.3)], np.float32),
        np.array([*cloth, *second, *tie, style, rng.uniform(1.5, 5), rng.uniform(0.02, 0.15)], np.float32),
        int(rng.integers(1, 2**31)),
    )  # fmt: skip


def mix(a: Array, b: Array, share: float) -> Array:
    return a + (b - a) * share
