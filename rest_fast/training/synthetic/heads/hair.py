"""Strands: hair, brows, lashes and beards as ribbons that hang on the mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Strands:
    """N strands of m + 1 places each.

    places: float32 [N, m + 1, 3] at rest; outward: [N, m + 1, 3] the direction in which their surroundings face;
    root: int32 [N, 3] or [N, m + 1, 3] vertices, share: float32 like it; half: [N, m + 1] half widths in decimetres;
    colour: [N, m + 1, 3] linear light; gloss: [N]; open: [N, m + 1] share of the sky that is seen.
    """

    places: Array
    outward: Array
    root: Array
    share: Array
    half: Array
    colour: Array
    gloss: Array
    open: Array


@dataclass(frozen=True, eq=False)
class Ribbons:
    """Strands of several kinds as Q pairs of points, the two edges at a place, ready to draw: see csrc/heads/pose.h."""

    rest: Array  # [Q, 3]
    outward: Array  # [Q, 3]
    tangent: Array  # [Q, 3]
    half: Array  # [Q]
    root: Array  # [Q, 3]
    share: Array  # [Q, 3]
    paint: Array  # [Q, 8]
    triangles: Array  # [T, 3], counted from the first point


def ribbons(kinds: list[Strands]) -> Ribbons:
    """All strands as one set of ribbons."""
    parts = [_ribbon(strands) for strands in kinds if len(strands.places)]
    assert parts, "ribbons: nobody is without lashes"
    starts = np.cumsum([0, *(2 * len(part.rest) for part in parts[:-1])])
    names = ("rest", "outward", "tangent", "half", "root", "share", "paint")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    triangles = np.concatenate([part.triangles + start for part, start in zip(parts, starts)])
    return Ribbons(**joined, triangles=triangles.astype(np.int32))


def _ribbon(strands: Strands) -> Ribbons:
    count, places = strands.places.shape[:2]
    paint = np.zeros((count, places, 8), np.float32)
    paint[..., :3], paint[..., 3], paint[..., 4] = strands.colour, strands.gloss[:, None], strands.open
    paint[..., 5] = np.linspace(0, 1, places)
    paint[..., 6] = (np.arange(count) * 0.618 % 1 * 100)[:, None]  # each ribbon's own fibres

    def each(values: Array, dtype: type) -> Array:
        """[Q, 3] of [N, 3], the same for a whole strand, or of [N, places, 3]."""
        whole = values if values.ndim == 3 else values[:, None]
        return np.broadcast_to(whole, (count, places, 3)).astype(dtype).reshape(-1, 3)

    first = 2 * (np.arange(count, dtype=np.int32)[:, None] * places + np.arange(places - 1, dtype=np.int32))
    triangles = first.reshape(-1, 1) + np.array([0, 1, 2, 1, 3, 2], np.int32)
    return Ribbons(
        each(strands.places, np.float32),
        each(strands.outward, np.float32),
        each(unit(np.gradient(strands.places, axis=1)), np.float32),
        strands.half.astype(np.float32).ravel(),
        each(strands.root, np.int32),
        each(strands.share, np.float32),
        paint.reshape(-1, 8),
        triangles.reshape(-1, 3),
    )


def unit(v: Array) -> Array:
    """[..., 3] of unit length."""
    return v / (np.sqrt(np.einsum("...k,...k->...", v, v))[..., None] + v.dtype.type(1e-9))


def _blend(corners: Array, share: Array) -> Array:
    """[n, ...]: points of triangles, from their corners [n, 3, ...] and shares [n, 3]. Sums over an axis of three are
    many times slower."""
    weights = share.reshape(*share.shape, *[1] * (corners.ndim - 2))
    return corners[:, 0] * weights[:, 0] + corners[:, 1] * weights[:, 1] + corners[:, 2] * weights[:, 2]


class Scalp:
    """Where strands may grow, and the skull that they lie on.

    Args:
        shape: [V, 3] skin at rest, the middle of the eyes at 0; triangles: [T, 3] of the skin without the ears.
    """

    CENTRE = np.array([0.0, 0.30, -0.72], np.float32)  # of the skull
    _BANDS, _SECTORS = 24, 48  # of elevation and azimuth

    def __init__(self, shape: Array, triangles: Array) -> None:
        self.triangles = triangles
        a, b, c = (shape[triangles[:, k]] for k in range(3))
        normal = np.cross(b - a, c - a)
        size = np.linalg.norm(normal, axis=1)
        self._corner = np.stack([a, b, c], 1)
        self._normal, self._area = normal / (size[:, None] + 1e-9), size
        used = np.zeros(len(shape), bool)
        used[triangles] = True
        points = np.concatenate([shape[used], (a + b + c) / 3])
        points = points[points[:, 1] > -0.85]  # without the shoulders, onto which hair would else be thrown
        radius, row, column = self._polar(points)
        grid = np.zeros((self._BANDS, self._SECTORS), np.float32)
        np.maximum.at(grid, (row.astype(int), column.astype(int) % self._SECTORS), radius)
        for _ in range(6):  # cells without a point take their neighbours' mean
            near = np.stack([np.roll(grid, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
            mean = near.sum(0) / np.maximum((near > 0).sum(0), 1)
            grid = np.where(grid > 0, grid, mean)
        self._radius = grid

    def sample(self, rng: np.random.Generator, field: Array, count: int) -> tuple[Array, Array, Array, Array]:
        """Up to `count` roots where `field` [V], 0..1, allows: places, outward normals, vertices [n, 3], shares."""
        a, b, c = (field[self.triangles[:, k]] for k in range(3))
        weight = self._area * ((a + b + c) / 3)
        if weight.sum() <= 0:
            return (np.zeros((0, 3), np.float32),) * 2 + (np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32))
        order = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(count))
        chosen = np.minimum(order, len(weight) - 1)
        u, v = rng.random((2, count))
        share = np.stack([1 - np.sqrt(u), np.sqrt(u) * (1 - v), np.sqrt(u) * v], 1).astype(np.float32)
        places = _blend(self._corner[chosen], share)
        kept = rng.random(count) < _blend(field[self.triangles[chosen]], share)
        return places[kept], self._normal[chosen][kept], self.triangles[chosen][kept], share[kept]

    def push_out(self, places: Array, lift: Array) -> Array:
        """Places [n, 3] moved out of the skull to at least `lift` [n] above it; below the jaw they are let be."""
        radius, row, column = self._polar(places)
        i, j = row.astype(int), column.astype(int)
        u, v = row - i, column - j
        i2, j, j2 = np.minimum(i + 1, self._BANDS - 1), j % self._SECTORS, (j + 1) % self._SECTORS
        g = self._radius
        least = (g[i, j] * (1 - v) + g[i, j2] * v) * (1 - u) + (g[i2, j] * (1 - v) + g[i2, j2] * v) * u + lift
        free = np.clip((places[:, 1] + 0.85) / 0.4, 0, 1)  # hair hangs free below the jaw
        scale = 1 + free * (np.maximum(least / radius, 1) - 1)
        return self.CENTRE + (places - self.CENTRE) * scale[:, None]

    def _polar(self, places: Array) -> tuple[Array, Array, Array]:
        q = places - self.CENTRE
        radius = np.sqrt(np.einsum("nk,nk->n", q, q)) + np.float32(1e-6)
        row = (np.arcsin(np.clip(q[:, 1] / radius, -1, 1)) / np.pi + 0.5) * (self._BANDS - 1)
        column = (np.arctan2(q[:, 0], q[:, 2]) / (2 * np.pi) + 0.5) * self._SECTORS
        return radius, row, np.minimum(column, self._SECTORS - 1e-3)
