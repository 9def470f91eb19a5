"""What people wear, as ribbons: glasses, and collars that stand off the neck."""

from __future__ import annotations

import numpy as np

from rest_fast.training.synthetic.heads.hair import Scalp, Strands

Array = np.ndarray


def glasses(rng: np.random.Generator, shape: Array, eyes: Array) -> list[Strands]:
    """Rims, bridge and temples of a pair of glasses that sits on the bridge of the nose. eyes: [2, 3]."""
    on = int(np.argmin(np.linalg.norm(shape - [0, -0.06, 0.33], axis=1)))  # it hardly moves with expressions
    x, y, z = np.abs(shape[:, 0]), shape[:, 1], shape[:, 2]
    front = float(z[(x > 0.12) & (x < 0.55) & (y > -0.25) & (y < 0.16)].max()) + 0.03  # before brows and cheeks
    colour = np.full(3, 0.012) if rng.random() < 0.6 else rng.uniform(0.02, 0.3, 3) * rng.uniform(0.3, 1)
    half = float(rng.choice([0.009, 0.016, 0.024]))
    wide, high, square = rng.uniform(0.21, 0.26), rng.uniform(0.15, 0.22), rng.uniform(2, 5)
    angle = np.linspace(0, 2 * np.pi, 25)
    cos, sin = np.cos(angle), np.sin(angle)
    rim = np.stack([wide * _bent(cos, square), high * _bent(sin, square), 0 * angle], 1)
    parts = []
    for side, eye in zip((-1, 1), eyes):
        middle = np.array([eye[0] * 1.04, -0.045, front])
        ring = middle + rim
        ring[:, 2] -= 0.25 * np.maximum(np.abs(ring[:, 0]) - 0.3, 0)
        parts.append(ring)
        start = middle + np.array([side * wide, 0.4 * high, -0.25 * max(abs(middle[0]) + wide - 0.3, 0)])
        end = np.array([side * 0.80, 0.02, -0.55])
        parts.append(start + np.linspace(0, 1, 6)[:, None] * (end - start))
    inner = eyes[1, 0] * 1.04 - wide
    x = np.linspace(-inner, inner, 6)
    parts.append(np.stack([x, 0.0 + 0.03 * np.cos(x / inner * 1.5), np.full(6, front + 0.02)], 1))
    return [_band(part, np.full((len(part), 3), on), half, colour, 1.0) for part in parts]


def _bent(x: Array, square: float) -> Array:
    return np.sign(x) * np.abs(x) ** (2 / square)


def collar(shape: Array, below: Array, colour: Array, half: float) -> list[Strands]:
    """A band along the neckline. below: [V] decimetres below it; vertices of the skin alone are finite."""
    near = np.flatnonzero(np.abs(below) < 0.12)
    if len(near) < 12:
        return []
    angle = np.degrees(np.arctan2(shape[near, 0], shape[near, 2] - Scalp.CENTRE[2]))
    places, roots = [], []
    for a in np.linspace(-125, 125, 26):
        close = near[np.abs(angle - a) < 14]
        if len(close) == 0:
            continue
        away = shape[close] - [0, 0, Scalp.CENTRE[2]]
        weight = np.exp(-((below[close] / 0.06) ** 2))[:, None] + 1e-3
        radius = (np.hypot(away[:, 0], away[:, 2])[:, None] * weight).sum() / weight.sum() + 0.03
        height = ((shape[close, 1] + below[close])[:, None] * weight).sum() / weight.sum()
        turn = np.radians(a)
        places.append([radius * np.sin(turn), height, Scalp.CENTRE[2] + radius * np.cos(turn)])
        roots.append(int(close[np.abs(below[close]).argmin()]))
    if len(places) < 8:
        return []
    path = np.array(places)
    path[1:-1] = (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
    return [_band(path, np.repeat(np.array(roots)[:, None], 3, 1), half, colour, 0.2)]


def _band(path: Array, roots: Array, half: float, colour: Array, gloss: float) -> Strands:
    n = len(path)
    outward = path - [0, 0, -1.0]
    outward = outward / (np.linalg.norm(outward, axis=1, keepdims=True) + 1e-9)
    return Strands(
        path[None], outward[None], roots[None].astype(np.int32), np.tile(np.array([1, 0, 0], np.float32), (1, n, 1)),
        np.full((1, n), half), np.tile(colour, (1, n, 1)), np.full(1, gloss), np.full((1, n), 0.8),
    )  # fmt: skip
