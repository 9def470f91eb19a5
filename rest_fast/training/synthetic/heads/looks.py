"""What a person looks like: colours, skin, eyes, teeth, clothes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rest_fast.training.synthetic.heads.mesh import Head

Array = np.ndarray
# Linear light, light to dark.
_SKIN = np.array(
    [
        *((0.80, 0.52, 0.40), (0.70, 0.42, 0.29), (0.57, 0.31, 0.20)),
        *((0.40, 0.20, 0.12), (0.22, 0.105, 0.062), (0.10, 0.048, 0.030)),
    ]
)
_HAIR = {
    "black": (0.010, 0.008, 0.008),
    "dark brown": (0.030, 0.018, 0.012),
    "brown": (0.075, 0.042, 0.024),
    "blond": (0.27, 0.17, 0.085),
    "red": (0.16, 0.055, 0.022),
}
_IRIS = np.array(
    [(0.045, 0.022, 0.012), (0.11, 0.055, 0.025), (0.12, 0.19, 0.27), (0.11, 0.16, 0.09), (0.2, 0.22, 0.24)]
)
_LIPSTICK = np.array([(0.42, 0.04, 0.05), (0.33, 0.07, 0.11), (0.5, 0.16, 0.15), (0.25, 0.03, 0.05)])
# Widths from the middle outwards, decimetres.
_UPPER = (0.085, 0.066, 0.076, 0.070, 0.068, 0.10, 0.10, 0.2)
_LOWER = (0.054, 0.059, 0.069, 0.070, 0.072, 0.11, 0.11, 0.2)
PLAIN, JACKET, STRIPES, SHIRT = range(4)  # styles of clothes, csrc/heads/shade.cpp


@dataclass(frozen=True, eq=False)
class Traits:
    """What several parts of a person depend on. woman, old: 0..1; people: shares of African, Asian and European
    ancestry; tone: 0 light to 5 dark; skin, hair: linear colours [3]; grey: share of grey hairs."""

    woman: float
    old: float
    people: Array
    tone: float
    skin: Array
    hair: Array
    grey: float

    @staticmethod
    def random(rng: np.random.Generator) -> Traits:
        woman, old = float(rng.random()), float(rng.beta(1.1, 2.4))
        people = rng.dirichlet([0.6] * 3)
        tone = 0.85 * people[0] + 0.33 * people[1] + rng.normal(0.06, 0.14)
        tone = float(np.clip(tone, 0, 1) * (len(_SKIN) - 1.001))
        skin = _SKIN[int(tone)] + (tone % 1) * (_SKIN[int(tone) + 1] - _SKIN[int(tone)])
        european = people[2] > 0.55 or rng.random() < 0.06  # or dyed
        name = str(rng.choice(list(_HAIR)[: 5 if european else 2]))
        grey = float(np.clip(1.6 * old - 0.45 + rng.normal(0, 0.15), 0, 1)) if rng.random() < 0.8 else 0.0
        hair = np.array(_HAIR[name]) * rng.uniform(0.75, 1.3)
        return Traits(woman, old, people, tone, skin * rng.uniform(0.93, 1.07, 3), hair, grey)


@dataclass(frozen=True, eq=False)
class Looks:
    """What a person's surfaces look like, as csrc/heads/shade.h takes it. All float32."""

    skin: Array
    mouth: Array
    eye: Array
    cloth: Array
    seed: int

    @staticmethod
    def random(rng: np.random.Generator, who: Traits, lip_depth: float) -> Looks:
        """lip_depth: how far forward the lips are, decimetres."""
        lip = who.skin * [0.92, 0.52, 0.52] * rng.uniform(0.75, 1.05)
        if who.woman > 0.5 and rng.random() < 0.45:
            lip = _mix(lip, _LIPSTICK[rng.integers(len(_LIPSTICK))] * rng.uniform(0.6, 1.2), rng.uniform(0.3, 0.9))
        rough = rng.uniform(0.6, 1.5)
        iris = _IRIS[rng.integers(len(_IRIS)) if who.people[2] > 0.6 else rng.integers(2)] * rng.uniform(0.7, 1.3)
        radii = (rng.uniform(0.41, 0.46), rng.uniform(0.13, 0.21))
        eye = [*iris, *radii, rng.uniform(0.85, 1.05), rng.uniform(0.3, 0.6), rng.uniform(0, 0.3)]
        grain = np.array([0.07, 0.06, 0.05, 0.045]) * rough
        mouth = [lip_depth, 1, rng.uniform(0, 0.8), rng.uniform(0.05, 0.10)]
        parts = ([*grain, 0.05 + 0.05 * rough, *lip], mouth, eye, _clothes(rng))
        skin, inside, eyes, cloth = (np.array(part, np.float32) for part in parts)
        return Looks(skin, inside, eyes, cloth, int(rng.integers(1, 2**31)))


def _clothes(rng: np.random.Generator) -> list[float]:
    style = int(rng.choice(4, p=[0.40, 0.25, 0.10, 0.25]))
    first = rng.uniform(0.01, 0.6, 3) * rng.uniform(0.15, 1)
    if rng.random() < 0.5:
        first = first.mean() + 0.3 * (first - first.mean())  # most clothes are dull
    second = first * rng.uniform(0.2, 2)
    if style == JACKET:
        first = rng.uniform(0.008, 0.1) * (1 + rng.uniform(-0.3, 0.3, 3))
        second = rng.uniform(0.35, 0.7) * (1 + rng.uniform(-0.12, 0.05, 3))
    tie = rng.uniform(0.01, 0.4, 3) * rng.uniform(0.2, 1)
    return [*first, *second, *tie, style, rng.uniform(1.5, 5), rng.uniform(0.02, 0.15)]


@dataclass(frozen=True, eq=False)
class Covers:
    """What hair leaves on the skin, [V] each: share and colour of the scalp, share of a shaved beard."""

    scalp: Array
    scalp_colour: Array
    stubble: Array


def neckline(rng: np.random.Generator, head: Head, shape: Array) -> Array:
    """float32 [V]: decimetres below the edge of the clothes."""
    x, y, z = np.abs(shape[:, 0]), shape[:, 1], shape[:, 2]
    depth, wide = rng.uniform(1.30, 1.60), rng.uniform(0.1, 0.4)
    below = -(depth - wide * np.clip(x - 0.3, 0, 1)) - y - 0.25 * np.clip(-0.3 - z, 0, 1)
    return np.minimum(below, -1.2 - y)  # never above the middle of the neck


def paint(
    rng: np.random.Generator, head: Head, shape: Array, eyes: Array, who: Traits, covers: Covers, below: Array
) -> Array:
    """float32 [V, 8] of the mesh as csrc/heads/shade.h reads it; eyes: [2, 3]; below: see :func:`neckline`."""
    out = np.zeros((len(shape), 8), np.float32)
    x, y = np.abs(shape[:, 0]), shape[:, 1]

    def spot(at_x: float, at_y: float, wide: float, high: float) -> Array:
        return np.exp(-((x - at_x) ** 2 / wide + (y - at_y) ** 2 / high))

    red = spot(0.42, -0.50, 0.06, 0.06) + 0.7 * spot(0, -0.55, 0.03, 0.04) + 0.6 * (head.mask("ears") > 0.3)
    colour = who.skin * (1 - rng.uniform(0.05, 0.22) * red[:, None] * [0.1, 1, 0.9])
    colour = colour * (1 - rng.uniform(0.0, 0.22) * spot(0.30, -0.17, 0.03, 0.008)[:, None] * [0.8, 1, 0.7])
    colour = colour * (1 - rng.uniform(0.1, 0.3) * head.mask("eyelids")[:, None] * [0.7, 1, 1])
    colour = _mix(colour, 0.75 * who.hair + 0.25 * who.skin, 0.75 * covers.stubble[:, None])
    out[:, :3] = _mix(colour, covers.scalp_colour, covers.scalp[:, None])
    out[:, 3] = rng.uniform(0.05, 0.6) * (0.6 + 0.6 * spot(0, 0.4, 0.05, 0.3) + 0.5 * spot(0, -0.5, 0.02, 0.05))
    out[:, 4] = 1
    out[:, 5] = head.mask("lips")
    out[:, 6] = below
    freckled = who.tone < 2 and rng.random() < 0.3
    out[:, 7] = (red + 0.3) * (rng.uniform(0.3, 1) if freckled else 0)
    for side, middle in zip((-1, 1), eyes):
        eye = head.of("eye") & (np.sign(head.vertices[:, 0]) == side)
        out[eye, :3] = shape[eye] - middle
    for part, widths, seed in (("upper_teeth", _UPPER, 1), ("lower_teeth", _LOWER, 2)):
        teeth = np.flatnonzero(head.of(part))
        out[teeth, 5:7] = tooth_places(shape[teeth], widths, part == "upper_teeth")
        out[teeth, 7] = seed
    return out


def tooth_places(teeth: Array, widths: tuple[float, ...], upper: bool) -> Array:
    """[n, 2] for vertices [n, 3] of a row of teeth: place along the arch counted in teeth (0 the middle, whole numbers
    lie between teeth); height from 0, gum, to 1, edge."""
    x, y, z = np.abs(teeth[:, 0]), teeth[:, 1], teeth[:, 2]
    back = z.min() + 0.35 * np.ptp(z)
    angle = np.arctan2(x, z - back)
    bins = np.linspace(0, angle.max() + 1e-3, 9)
    groups = [np.flatnonzero((angle >= a) & (angle < b)) for a, b in pairwise(bins)]
    outer = [group[np.hypot(x[group], z[group] - back).argmax()] for group in groups if len(group)]
    steps = np.hypot(np.diff(x[outer]), np.diff(z[outer]))
    length = np.interp(angle, angle[outer], x[outer[0]] + np.concatenate([[0], np.cumsum(steps)]))
    place = np.interp(length, np.concatenate([[0], np.cumsum(widths)]), np.arange(len(widths) + 1))
    up = -y if upper else y
    near = np.abs(angle[:, None] - angle) < 0.25
    edge, gum = np.where(near, up, -np.inf).max(1), np.where(near, up, np.inf).min(1)
    return np.stack([place * np.sign(teeth[:, 0]), (up - gum) / (edge - gum + 1e-6)], 1)


def _mix(a: Array, b: Array, share: Array | float) -> Array:
    return a + (b - a) * share
