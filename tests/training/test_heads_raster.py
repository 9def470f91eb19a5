"""The rasteriser of csrc/heads against the definition, written with numpy."""

from __future__ import annotations

import numpy as np
import pytest

from rest_fast.training.synthetic.heads.draw import call

SIDE = 48


def raster(screen: np.ndarray, triangle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = np.full((SIDE, SIDE), 7, np.int32)
    share = np.full((SIDE, SIDE, 3), np.nan, np.float32)
    depth = np.full((SIDE, SIDE), np.nan, np.float32)
    call(
        "heads_raster", screen=screen, triangle=triangle, id=found, share=share, depth=depth, points=len(screen),
        triangles=len(triangle), height=SIDE, width=SIDE,
    )  # fmt: skip
    return found, share, depth


def random_triangles(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of every size, some outside the picture, at distances of 4 to 12."""
    rng = np.random.default_rng(seed)
    middle, reach = rng.uniform(-5, SIDE + 5, (count, 1, 2)), rng.choice([0.4, 3, 15], (count, 1, 1))
    places = middle + reach * rng.normal(size=(count, 3, 2))
    screen = np.concatenate([places, rng.uniform(4, 12, (count, 3, 1))], 2).reshape(-1, 3).astype(np.float32)
    return screen, np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


def by_definition(screen: np.ndarray, triangle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In float64: for each triangle [T] and middle of a picture element [SIDE, SIDE], the least of the three affine
    shares (negative outside), and the distance."""
    corner = screen.astype(np.float64)[triangle]
    x, y = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    least, distance = [], []
    for a, b, c in corner:
        shares = np.linalg.solve(
            np.array([[a[0], b[0], c[0]], [a[1], b[1], c[1]], [1, 1, 1]]),
            np.stack([x.ravel(), y.ravel(), np.ones(x.size)]),
        )
        least.append(shares.min(0).reshape(SIDE, SIDE))
        distance.append((1 / (shares.T @ (1 / np.array([a[2], b[2], c[2]])))).reshape(SIDE, SIDE))
    return np.array(least), np.array(distance)


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_triangle_is_found(seed: int):
    screen, triangle = random_triangles(40, seed)
    found, _, depth = raster(screen, triangle)
    least, distance = by_definition(screen, triangle)
    nearest = np.where(least >= 0, distance, np.inf)
    expected = np.where(np.isfinite(nearest.min(0)), nearest.argmin(0), -1)
    # A middle on an edge, to float32's rounding of an edge function of thin triangles, may fall to either side; so may
    # one where two surfaces are equally far.
    on_edge = (np.abs(least) < 1e-3).any(0)
    first, second = np.partition(np.minimum(nearest, 1e6), 1, axis=0)[:2]
    tie = (second - first < 1e-4) & (first < 1e6)
    clear = ~on_edge & ~tie
    assert clear.mean() > 0.5 and (expected[clear] >= 0).sum() > 100
    np.testing.assert_array_equal(found[clear], expected[clear])
    hit = clear & (expected >= 0)
    # 1 / d is a sum of three products with shares that carry float32's rounding of cancelling products: 1e-3 at worst.
    np.testing.assert_allclose(depth[hit], nearest.min(0)[hit], rtol=2e-3)
    assert (depth[clear & (expected < 0)] == np.float32(1e30)).all()


def test_shares_are_right_in_perspective():
    """A function that is linear in space is reproduced exactly: here space itself, found again by projecting back."""
    screen, triangle = random_triangles(60, 9)
    corner = screen[triangle][..., :2].astype(np.float64)
    sides = np.linalg.norm(corner - np.roll(corner, 1, 1), axis=2)
    area = np.abs(np.linalg.det(np.concatenate([corner, np.ones((60, 3, 1))], 2)))
    triangle = triangle[area / sides.max(1) > 2]  # at least two elements wide
    found, share, depth = raster(screen, triangle)
    space = np.concatenate([screen[:, :2] * screen[:, 2:], screen[:, 2:]], 1)  # a camera at 0 with focal length 1
    row, column = np.nonzero(found >= 0)
    assert len(row) > 100
    place = (space[triangle[found[row, column]]] * share[row, column][..., None]).sum(1)
    np.testing.assert_allclose(share[row, column].sum(1), 1, atol=1e-5)
    ray = np.stack([column + 0.5, row + 0.5, np.ones(len(row))], 1) * depth[row, column][:, None]
    # Edge functions are differences of products up to 50 x 50 over an area of at least some 4: 2500 / 4 x 6e-8 = 4e-5
    # of places up to 50 x 12.
    np.testing.assert_allclose(place, ray, atol=0.03)


def test_both_windings_and_neighbours_leave_no_gap():
    """A fan of triangles, turned either way, covers its square without a hole."""
    rng = np.random.default_rng(2)
    border = np.array([(4, 4), (20, 4), (44, 4), (44, 17), (44, 44), (13, 44), (4, 44), (4, 30)], np.float32)
    screen = np.concatenate([border, [[23.3, 21.7]]])
    screen = np.concatenate([screen, np.full((9, 1), 5)], 1).astype(np.float32)
    triangle = np.array(
        [(i, (i + 1) % 8, 8) if rng.random() < 0.5 else ((i + 1) % 8, i, 8) for i in range(8)], np.int32
    )
    found, _, _ = raster(screen, triangle)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[4:44, 4:44] = True
    np.testing.assert_array_equal(found >= 0, inside)


def test_a_vertex_outside_is_refused():
    screen, triangle = random_triangles(2, 0)
    triangle[1, 2] = 6
    with pytest.raises(ValueError, match="heads_raster: bad shape"):
        raster(screen, triangle)


def test_what_is_left_out_is_hidden():
    """Thousands of sloping triangles, most of which are left out behind others, against a few hundred at a time."""
    count, some = 6000, 500
    rng = np.random.default_rng(5)
    places = rng.uniform(0, SIDE, (count, 1, 2)) + 4 * rng.normal(size=(count, 3, 2))
    distance = np.maximum(4 + 0.5 * places[..., :1] + rng.uniform(0, 2, (count, 3, 1)), 1)
    screen = np.concatenate([places, distance], 2).reshape(-1, 3).astype(np.float32)
    triangle = np.arange(3 * count, dtype=np.int32).reshape(-1, 3)
    found, _, depth = raster(screen, triangle)
    founds, _, depths = map(np.stack, zip(*(raster(screen, triangle[k : k + some]) for k in range(0, count, some))))
    nearest = depths.argmin(0)
    np.testing.assert_allclose(depth, depths.min(0), rtol=1e-5)  # float32's rounding, where two are equally far
    expected = np.take_along_axis(founds, nearest[None], 0)[0] + some * nearest
    assert np.mean(found == expected) > 0.999


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 0])
def test_places_that_cannot_be_are_survived(value: float):
    """One corner's number is spoilt; triangles without it are drawn as before."""
    screen, triangle = random_triangles(10, 3)
    expected = raster(screen, triangle[1:])
    for axis in range(3):
        for corner in range(3):
            spoilt = screen.copy()
            spoilt[corner, axis] = value
            found, _, depth = raster(spoilt, triangle)
            np.testing.assert_array_equal(depth[found != 0], expected[2][found != 0])
