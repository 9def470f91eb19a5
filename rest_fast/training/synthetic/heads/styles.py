"""Hair styles: where hair grows, how long it is and which way it goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rest_fast.training.synthetic.heads.hair import Scalp, Strands, unit

Array = np.ndarray
CROWN = np.array([0.0, 1.15, -1.15], np.float32)
KNOT = np.array([0.0, 0.55, -1.95], np.float32)


@dataclass(frozen=True)
class Style:
    """Lengths in decimetres. ``comb``: crown, back, part or fringe; ``curl`` is the radius of a curl."""

    name: str
    count: int
    length: float
    lift: float  # of the outermost strands above the skull
    comb: str
    gravity: float = 0.3
    stiffness: float = 0.5
    curl: float = 0.0
    fringe: float = 0.0  # share of forward hair over the forehead
    steps: int = 9
    wide: float = 0.013  # half width of a strand


STYLES = (
    Style("shaved", 1500, 0.05, 0.02, "crown", steps=1, wide=0.008),
    Style("crop", 3200, 0.22, 0.09, "crown", 0.1, 0.3, steps=3),
    Style("short", 2400, 0.55, 0.16, "crown", 0.15, 0.35, fringe=0.4, steps=6),
    Style("quiff", 2200, 0.75, 0.26, "back", 0.1, 0.28, steps=7),
    Style("slick", 2200, 0.9, 0.08, "back", 0.1, 0.8, steps=8),
    Style("parted", 2200, 0.85, 0.15, "part", 0.25, 0.5, steps=8),
    Style("bob", 1500, 1.7, 0.18, "part", 0.5, 0.5, steps=10),
    Style("bob with fringe", 1700, 1.6, 0.16, "part", 0.5, 0.5, fringe=1.0, steps=10),
    Style("long", 1300, 3.0, 0.18, "part", 0.5, 0.5, steps=11, wide=0.015),
    Style("long wavy", 1300, 3.0, 0.24, "part", 0.5, 0.45, curl=0.07, steps=15, wide=0.016),
    Style("bun", 2000, 1.4, 0.08, "back", 0.0, 0.9, steps=9),
    Style("curly", 1900, 0.8, 0.34, "crown", 0.12, 0.15, curl=0.055, steps=14, wide=0.011),
    Style("afro", 2600, 0.45, 0.40, "out", 0.0, 0.0, curl=0.035, steps=9, wide=0.011),
)


# Odds of each style for a woman and for a man.
_ODDS = (
    (0.0, 0.2, 0.8, 0.2, 0.5, 1.0, 2.0, 2.0, 2.5, 2.0, 1.5, 1.0, 0.5),
    (1.2, 2.5, 3.0, 1.5, 1.0, 2.0, 0.3, 0.1, 0.4, 0.3, 0.2, 0.8, 0.6),
)


def random_style(rng: np.random.Generator, woman: float) -> Style:
    odds = np.array(_ODDS[0 if woman > 0.5 else 1])
    return STYLES[int(rng.choice(len(STYLES), p=odds / odds.sum()))]


def hairline(shape: Array, line: float, recede: float) -> Array:
    """[V]: decimetres above the hairline, negative where no hair grows; `line` raises it, `recede` the temples."""
    front = np.degrees(np.arctan2(np.abs(shape[:, 0]), shape[:, 2] - Scalp.CENTRE[2]))
    angle = [0, 18, 32, 45, 58, 70, 80, 92, 105, 125, 150, 180]
    limit = [0.80, 0.80, 0.78 + recede, 0.66 + 0.8 * recede, 0.36, 0.02, -0.12, 0.16, 0.02, -0.45, -0.75, -0.80]
    raised = np.clip((75 - front) / 50, 0, 1) * line
    return shape[:, 1] - np.interp(front, angle, limit) - raised


def _comb(style: Style, places: Array, roots: Array, part: float) -> Array:
    """Direction of growth at `places` [n, 3], not of unit length."""
    if style.comb == "out":
        return places - Scalp.CENTRE
    if style.comb == "back":
        return KNOT - places
    if style.comb == "part":
        side = np.tanh((roots[:, :1] - part) / 0.08)
        return np.concatenate([0.8 * side, -0.9 + 0.3 * np.abs(side), 0.15 + 0 * side], 1) + 0.3 * (places - CROWN)
    return places - CROWN


def grow(rng: np.random.Generator, scalp: Scalp, field: Array, style: Style, colour: Array, grey: float) -> Strands:
    """Hair of a style where `field` [V], decimetres above the hairline, is positive."""
    dense = np.clip(field / 0.10, 0, 1)
    places, normals, root, share = scalp.sample(rng, dense, style.count)
    n, m = len(places), style.steps
    inner = rng.random(n).astype(np.float32) ** 0.7  # 0 next to the skin, 1 outside
    lift = 0.02 + style.lift * inner
    length = style.length * rng.uniform(0.75, 1.1, n).astype(np.float32) * (0.8 + 0.2 * inner)
    forward = np.clip((places[:, 2] + 0.2) / 0.4, 0, 1) * np.clip(1 - np.abs(places[:, 0]) / 0.6, 0, 1)
    fringed = rng.random(n) < style.fringe * (forward > 0.3)
    length = np.where(fringed, np.minimum(length, rng.uniform(0.45, 0.62, n).astype(np.float32)), length)
    if style.name in ("crop", "short", "quiff", "parted", "slick"):  # short at the sides and the nape
        length *= np.clip(0.35 + 0.9 * (places[:, 1] - 0.1), 0.25, 1)
    if style.length < 1.2 and style.comb != "back":  # the nape is cut
        length *= np.clip(1 + 1.2 * (places[:, 1] + 0.1), 0.15, 1)
    part = float(rng.choice([-1, 1]) * rng.uniform(0.0, 0.35))
    phase, turns = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.8, 1.3, n)
    clump = np.sin(places @ rng.normal(0, 9, (3, 3)) + rng.uniform(0, 6, 3))  # neighbours go the same way
    clump = clump.astype(np.float32)
    path, outward = (np.zeros((n, m + 1, 3), np.float32) for _ in range(2))
    path[:, 0], outward[:, 0] = places, normals
    now, direction = places + 0.0, normals + 0.3 * clump
    down, facing, over = (np.array(v, np.float32) for v in ([0, -1, 0], [1, 0.8, 1], [0, -0.5, 0.7]))
    frame = float(rng.uniform(0.50, 0.66))  # half width of the face that long hair leaves free
    for step in range(m):
        radial = unit(now - scalp.CENTRE)
        comb = unit(_comb(style, now, places, part)) + 0.12 * clump
        comb[fringed] = unit(0.5 * (now[fringed] - CROWN) + over) + 0.15 * clump[fringed]
        flat = comb - 0.9 * np.einsum("nk,nk->n", comb, radial)[:, None] * radial if style.comb != "out" else comb
        direction = unit(
            (1 - style.stiffness) * unit(direction) + (style.stiffness + 0.15) * unit(flat) + style.gravity * down
        )
        _turn_aside(direction, ~fringed, now, places[:, 0] - part, frame)
        now = scalp.push_out(now + direction * (length / m)[:, None], lift * min(1.0, 0.4 + 0.9 * (step + 1) / m))
        path[:, step + 1], outward[:, step + 1] = now, unit(now - scalp.CENTRE) * facing
    along = np.linspace(0, 1, m + 1, dtype=np.float32)
    if style.curl:
        rounds = min(style.length / (6.0 * style.curl), m / 5.0)  # five places to a turn, or it has corners
        angle = 2 * np.pi * (along[None] * rounds * turns[:, None]) + phase[:, None] * 0.6 + 3 * clump[:, :1]
        wave = np.stack([np.cos(angle), 0.6 * np.sin(angle), np.cos(angle + 1.3)], -1)
        path += style.curl * wave * np.minimum(1, 2.5 * along)[None, :, None]
    # The back of a head is never seen.
    shown = (outward[..., 2] > -0.6).any(1) & (
        (places[:, 2] > -1.1) | (style.length > 1) | (np.abs(places[:, 0]) > 0.4)
    )
    path, outward, root, share, clump, inner = (a[shown] for a in (path, outward, root, share, clump, inner))
    n = len(path)
    tint = colour * np.exp(rng.normal(0, 0.12, (n, 1)) + 0.10 * clump[:, :1])
    white = rng.random(n) < grey
    tint[white] = np.array([0.42, 0.41, 0.40]) * rng.uniform(0.6, 1.2, (white.sum(), 1))
    tint = tint + (tint.mean(0) - tint) * 0.45  # a ribbon stands for many hairs
    shade = (0.7 + 0.3 * along)[None, :, None] * (0.7 + 0.3 * inner)[:, None, None]
    half = style.wide * rng.uniform(0.6, 1.2, (n, 1)) * np.clip(1.3 - along, 0.3, 1)[None]
    opened = (0.55 + 0.45 * inner)[:, None] * (0.8 + 0.2 * along)[None]
    return Strands(path, outward, root, share, half, tint[:, None] * shade, rng.uniform(0.5, 1.2, n), opened)


def _turn_aside(direction: Array, which: Array, now: Array, side: Array, frame: float) -> None:
    """Turn directions [n, 3] away from the face where hair would hang before it; which: bool [n]; side: [n], which way
    each strand goes."""
    x, y, z = now.T
    inside = np.sqrt((x / frame) ** 2 + ((y + 0.15) / 1.02) ** 2)  # an ellipse around the face
    before = np.clip((z + 0.5) / 0.25, 0, 1) * np.clip((1.12 - inside) / 0.2, 0, 1)
    turned = which & (before > 0)
    x, y, before = x[turned], y[turned], before[turned]
    out = np.where(np.abs(x) > 0.05, np.sign(x), np.where(side[turned] < 0, np.float32(-1), np.float32(1)))
    away = np.stack([out * np.maximum(np.abs(x) / frame, 0.35), 0.5 * (y + 0.15), np.full_like(x, -0.3)], 1)
    direction[turned] = unit(direction[turned] + 1.8 * before[:, None] * unit(away))


def bun(rng: np.random.Generator, root: Array, colour: Array) -> Strands:
    """A knot behind and above: strands in rings; `root` [3] is the triangle that it hangs on."""
    n, m = 700, 8
    angle, tilt = rng.uniform(0, 2 * np.pi, (n, 1)), rng.normal(0, 0.8, (n, 1))
    turn = angle + np.linspace(0, 1.6, m + 1)
    radius = rng.uniform(0.26, 0.36, (n, 1))
    ring = np.stack([np.cos(turn) * np.cos(tilt), np.sin(turn) + 0 * tilt, np.cos(turn) * np.sin(tilt)], -1)
    places = KNOT + [0, 0.75, 0.55] + radius[..., None] * ring
    outward = unit(ring.reshape(-1, 3)).reshape(ring.shape)
    tint = np.broadcast_to(colour * np.exp(rng.normal(0, 0.25, (n, 1, 1))), places.shape)
    opened = np.full((n, m + 1), 0.7) * (radius - 0.1) / 0.26
    return Strands(
        places, outward, np.tile(root, (n, 1)), np.tile([1, 0, 0], (n, 1)).astype(np.float32),
        np.full((n, m + 1), 0.02), tint, rng.uniform(0.5, 1.1, n), opened,
    )  # fmt: skip


def brows(
    rng: np.random.Generator, scalp: Scalp, shape: Array, eye: Array, colour: Array, thick: float, dense: float
) -> Strands:
    """Both brows: short hairs that point outwards, up near the nose and down at the tail. eye: [3], the left one."""
    x, y = np.abs(shape[:, 0]), shape[:, 1]
    t = (x - (eye[0] - 0.17)) / 0.45
    front = shape[:, 2] > -0.35
    middle = _brow_line(t)
    # Vertices are further apart than a brow is thick, so that the field is made wide and roots are chosen by place.
    wide = ((np.abs(y - middle) < 0.2) & (t > -0.3) & (t < 1.3) & front).astype(np.float32)
    places, normals, root, share = scalp.sample(rng, wide, int(9000 * dense))
    s = (np.abs(places[:, 0]) - (eye[0] - 0.17)) / 0.45
    off = (places[:, 1] - _brow_line(s)) / (thick * np.interp(s, [0, 0.15, 0.6, 1], [0.75, 1, 0.8, 0.3]))
    kept = (s > 0) & (s < 1) & (np.abs(off) < rng.uniform(0.5, 1.1, len(s)))
    places, normals, root, share, s, off = (a[kept] for a in (places, normals, root, share, s, off))
    n, m = len(places), 3
    side = np.sign(places[:, 0])
    lean = np.interp(s, [0, 0.2, 0.6, 1], [1.3, 0.6, 0.1, -0.5]) - 0.35 * off + rng.normal(0, 0.15, n)
    direction = unit(np.stack([side * np.cos(lean), np.sin(lean), -0.25 + 0 * s], 1) + 0.25 * normals)
    step = np.linspace(0, 1, m + 1)
    length = rng.uniform(0.07, 0.13, n)
    path = places[:, None] + normals[:, None] * (0.012 + 0.01 * np.sin(np.pi * step))[None, :, None]
    path = path + direction[:, None] * (length[:, None] * step)[..., None]
    tint = np.broadcast_to((colour * np.exp(rng.normal(0, 0.25, (n, 1))))[:, None], path.shape)
    half = 0.0034 * rng.uniform(0.7, 1.2, (n, 1)) * (1.2 - step)[None]
    outward = np.broadcast_to(normals[:, None], path.shape)
    return Strands(path, outward, root, share, half, tint, np.full(n, 0.3), np.full((n, m + 1), 0.8))


def _brow_line(t: Array) -> Array:
    return np.interp(t, [0, 0.3, 0.65, 1], [0.185, 0.225, 0.250, 0.165])


def lashes(
    rng: np.random.Generator, shape: Array, edge: Array, upper: bool, length: float, skin: Array
) -> list[Strands]:
    """Dark hairs that grow forward from a lid's edge (vertices, from the nose outwards), and the line of their
    roots."""
    n = 45 if upper else 25
    at = np.sort(rng.uniform(0, len(edge) - 1.001, n))
    first, part = edge[at.astype(int)], at % 1
    second = edge[at.astype(int) + 1]
    places = shape[first] + part[:, None] * (shape[second] - shape[first])
    step = np.linspace(0, 1, 3)
    out = np.sign(places[:, 0]) * (at / len(edge) - 0.35) * 0.9
    rise = (0.55 if upper else -0.35) * step**1.5 - 0.1 * step
    bend = np.stack([out[:, None] * step, rise + 0 * out[:, None], 0.6 * step + 0 * out[:, None]], -1)
    path = places[:, None] + (length * rng.uniform(0.7, 1.1, n))[:, None, None] * bend
    share = np.stack([1 - part, part, 0 * part], 1).astype(np.float32)
    dark = np.array([0.012, 0.009, 0.008]) + (0 if upper else 0.5) * skin
    front = np.array([0, 0.3, 0.95])
    hairs = Strands(
        path, np.broadcast_to(front, path.shape), np.stack([first, second, second], 1).astype(np.int32), share,
        np.full((n, 3), 0.0032) * (1.2 - step), np.broadcast_to(dark, path.shape), np.zeros(n), np.full((n, 3), 0.6),
    )  # fmt: skip
    line = shape[edge][None] + [0, 0, 0.006]
    taper = np.sin(np.pi * (0.12 + 0.8 * np.linspace(0, 1, len(edge)) ** 0.8))
    roots = np.repeat(edge[None, :, None], 3, 2).astype(np.int32)
    rim = Strands(
        line, np.broadcast_to(front, line.shape), roots, np.broadcast_to(np.array([1, 0, 0], np.float32), roots.shape),
        ((0.011 if upper else 0.005) * taper)[None], np.broadcast_to(dark + 0.15 * skin, line.shape), np.zeros(1),
        np.full(line.shape[:2], 0.6),
    )  # fmt: skip
    return [hairs, rim]


def beard_field(shape: Array, lips: Array, kind: str) -> Array:
    """[V], 0..1: where a beard grows; kind: full, goatee or moustache."""
    x, y, z = np.abs(shape[:, 0]), shape[:, 1], shape[:, 2]
    line = np.interp(x, [0, 0.25, 0.38, 0.5, 0.62, 0.72], [-0.50, -0.50, -0.62, -0.52, -0.25, 0.0])
    field = np.clip((line - y) / 0.05, 0, 1) * np.clip((z + 0.68) / 0.1, 0, 1) * np.clip((y + 1.22) / 0.15, 0, 1)
    if kind == "goatee":
        field = field * np.clip((0.34 - x) / 0.08, 0, 1)
    if kind == "moustache":
        field = field * np.clip((y + 0.70) / 0.03, 0, 1) * np.clip((0.34 - x) / 0.05, 0, 1)
    return field * (1 - np.clip(3 * lips, 0, 1))


def beard(
    rng: np.random.Generator, scalp: Scalp, field: Array, length: float, count: int, colour: Array, grey: float
) -> Strands:
    """Hairs that grow down and forward."""
    places, normals, root, share = scalp.sample(rng, field, count)
    n, m = len(places), 3
    step = np.linspace(0, 1, m + 1)
    direction = unit(0.55 * normals + [0, -0.75, 0.1] + rng.normal(0, 0.18, (n, 3)))
    reach = np.where(places[:, 1] > -0.72, min(length, 0.09), length) * rng.uniform(
        0.5, 1.2, n
    )  # a moustache is cut short
    path = places[:, None] + normals[:, None] * 0.008 + direction[:, None] * (reach[:, None] * step)[..., None]
    path[..., 1] -= (reach[:, None] * step**2) * 0.3
    tint = colour * np.exp(rng.normal(0, 0.3, (n, 1)))
    tint[rng.random(n) < grey] = [0.4, 0.39, 0.38]
    half = min(0.007, 0.03 * length + 0.004) * (1.15 - step)[None] * rng.uniform(0.7, 1.2, (n, 1))
    outward = np.broadcast_to(normals[:, None], path.shape)
    shade = (0.6 + 0.4 * step)[None, :, None]
    opened = np.broadcast_to(0.55 + 0.45 * step, path.shape[:2])
    return Strands(path, outward, root, share, half, tint[:, None] * shade, np.full(n, 0.4), opened)
