"""How a head moves: from the motion of a frame to shifts of the mesh. Lips meet exactly where they should."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from rest_fast.training.synthetic.heads.mesh import Head
from rest_fast.training.synthetic.portraits import MOTION

Array = np.ndarray
HEAD_MOTION = (*MOTION, "smile")  # smile: 0 .. 1, with teeth where the mouth is not pressed
UNITS = (
    *("jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthRollLower", "mouthRollUpper", "browInnerUp"),
    *(
        f"mouth{kind}{side}"
        for kind in ("LowerDown", "UpperUp", "Stretch", "Smile", "Press")
        for side in ("Left", "Right")
    ),
    *(f"{kind}{side}" for kind in ("eyeBlink", "browOuterUp", "browDown", "cheekSquint") for side in ("Left", "Right")),
)
YAW, PITCH = 0.22, 0.12  # radians for 1
_TOUCH = 0.012  # decimetres by which closed lips overlap, so that no crack shows between them
_PRESSED = 0.03  # more of it where they are pressed, or their sides stay open
_TONGUE = (0.10, 0.05)  # decimetres by which the tip rises and comes forward


def neutral() -> Array:
    """float32 [1, 14]: at rest, lips closed, eyes open."""
    return np.zeros((1, len(HEAD_MOTION)), np.float32)


def unit_weights(m: dict[str, float]) -> Array:
    """Weights of :data:`UNITS` for a motion, before lips and lids are made to meet."""
    weights = dict.fromkeys(UNITS, 0.0)
    opening, rounding, press, smile = m["open"], m["round"], m["press"], m["smile"]
    spread, pursed = max(m["width"], 0.0), max(m["round"], -m["width"], 0.0)
    loose = 1.0 - press
    weights["jawOpen"] = 0.58 * opening + 0.06 * m["tuck"] + 0.05 * m["tongue"] + 0.10 * smile * loose
    weights["mouthFunnel"] = 0.6 * rounding * min(1.0, 0.3 + opening)
    weights["mouthPucker"] = 0.75 * pursed
    weights["mouthRollLower"] = 0.8 * m["tuck"] + 0.30 * press
    weights["mouthRollUpper"] = 0.25 * press
    weights["browInnerUp"] = 0.6 * max(m["brow"], 0.0)
    both = {
        "mouthLowerDown": 0.35 * opening * (1 - rounding) + 0.35 * smile * loose,
        "mouthUpperUp": (0.3 * min(1.0, 1.6 * opening) + 0.3 * spread * min(1.0, 4 * opening)) * (1 - rounding)
        + 0.35 * m["tuck"]
        + 0.8 * smile * loose,
        "mouthStretch": 0.55 * spread,
        "mouthSmile": 0.18 * spread + 0.95 * smile * (1 - 0.6 * rounding),
        "mouthPress": 0.4 * press,
        "eyeBlink": m["blink"],
        "browOuterUp": 0.6 * max(m["brow"], 0.0),
        "browDown": 0.6 * max(-m["brow"], 0.0),
        "cheekSquint": 0.5 * smile,
    }
    weights |= {f"{name}{side}": value for name, value in both.items() for side in ("Left", "Right")}
    return np.array([weights[name] for name in UNITS], np.float32)


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Vertices that are measured: int [n] each, or one index."""

    upper_lip: Array
    lower_lip: Array
    corners: Array  # [2], the person's right first: left in the picture
    lids: Array  # [2, 2] right and left eye: upper, lower
    chin: int
    nose: int

    @staticmethod
    def of(head: Head) -> Landmarks:
        v, skin, lips = head.vertices, head.of("skin"), head.mask("lips")
        jaw = np.zeros_like(v)
        head.shift("unit/jawOpen", 1.0, jaw)
        front = v[:, 2] > 1.4  # decimetres: the face, not the inside of the mouth
        middle = skin & front & (np.abs(v[:, 0]) < 0.005)
        lip = np.flatnonzero(middle & (lips > 0.5))
        lower = jaw[lip, 1] < -0.1
        red = np.flatnonzero(skin & front & (lips > 0.5))
        corners = np.array([red[v[red, 0].argmin()], red[v[red, 0].argmax()]])
        below = np.flatnonzero(middle & (v[:, 1] < v[lip[lower], 1].min() - 0.2))
        above = np.flatnonzero(middle & (v[:, 1] > v[lip[~lower], 1].max() + 0.1))
        return Landmarks(
            lip[~lower],
            lip[lower],
            corners,
            np.array([_lids(head, side) for side in ("Right", "Left")]),
            int(below[v[below, 2].argmax()]),
            int(above[v[above, 2].argmax()]),
        )


def _lids(head: Head, side: str) -> tuple[int, int]:
    """Middles of the upper and of the lower lid's edge: what moves most in a blink, and what it meets there."""
    moved = np.zeros_like(head.vertices)
    head.shift(f"unit/eyeBlink{side}", 1.0, moved)
    upper = int(np.where(head.of("skin"), moved[:, 1], 0).argmin())
    still = np.flatnonzero(head.of("skin") & (np.abs(moved[:, 1]) < 0.03))
    away = np.linalg.norm(head.vertices[still] - (head.vertices + moved)[upper], axis=1)
    return upper, int(still[away.argmin()])


@cache
def _unit_shifts(head: Head) -> tuple[Array, Array, Array]:
    """Shifts of UNITS [units, V, 3]; the vertices that any of them moves [n]; theirs alone, [units, 3 n]."""
    shifts = np.zeros((len(UNITS), *head.vertices.shape), np.float32)
    for shift, name in zip(shifts, UNITS):
        head.shift(f"unit/{name}", 1.0, shift)
    moved = np.flatnonzero(np.abs(shifts).max(axis=(0, 2)) > 0)
    return shifts, moved, np.ascontiguousarray(shifts[:, moved]).reshape(len(UNITS), -1)


class Face:
    """One person's shape [V, 3], and how it changes with motion."""

    def __init__(self, head: Head, shape: Array, marks: Landmarks) -> None:
        self.shape, self.marks = shape, marks
        self.shifts, self._moved, self._compact = _unit_shifts(head)
        tongue = head.of("tongue")
        low, high = shape[tongue, 2].min(), shape[tongue, 2].max()
        self._tip = np.where(tongue, np.clip((shape[:, 2] - low) / (high - low), 0, 1) ** 2, 0).astype(np.float32)
        self._lid_size = np.array([shape[upper, 1] - shape[lower, 1] for upper, lower in marks.lids])

    def gap(self, weights: Array) -> float:
        """Decimetres between the inner lips in the middle, negative where they overlap."""
        upper, lower = (
            self.shape[chain, 1] + weights @ self.shifts[:, chain, 1]
            for chain in (self.marks.upper_lip, self.marks.lower_lip)
        )
        return float(upper.min() - lower.max())

    def weights(self, m: dict[str, float]) -> Array:
        """Weights of UNITS with lips that touch for `open` 0 or `press` 1, and lids that meet for `blink` 1."""
        weights = unit_weights(m)
        closing = np.eye(len(UNITS), dtype=np.float32)[UNITS.index("mouthClose")]
        shut = unit_weights(m | dict.fromkeys(("open", "smile", "tuck", "tongue"), 0.0))
        gain = (self.gap(shut) - self.gap(shut + 0.1 * closing)) / 0.1
        touch = _TOUCH + _PRESSED * m["press"]
        weights += (self.gap(shut) + touch) / gain * closing
        weights += m["press"] * max(0.0, self.gap(weights) + touch) / gain * closing
        for k, side in enumerate(("Right", "Left")):
            i = UNITS.index(f"eyeBlink{side}")
            upper, lower = self.marks.lids[k]
            down = self.shifts[i, lower, 1] - self.shifts[i, upper, 1]
            weights[i] *= (self._lid_size[k] + 0.01) / down
        return weights

    def pose(self, m: dict[str, float]) -> Array:
        """float32 [V, 3]: the shape of a motion, before the head turns."""
        weights = self.weights(m)
        out = self.shape.copy()
        used = np.flatnonzero(weights)
        out[self._moved] += (weights[used] @ self._compact[used]).reshape(-1, 3)
        out[:, 1] += _TONGUE[0] * m["tongue"] * self._tip
        out[:, 2] += _TONGUE[1] * m["tongue"] * self._tip
        return out


def rotation(yaw: float, pitch: float, roll: float) -> Array:
    """float32 [3, 3]. Positive: the nose goes to the right of the picture, down, and the head leans to the right."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (yaw, pitch, -roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return (about_z @ about_x @ about_y).astype(np.float32)
