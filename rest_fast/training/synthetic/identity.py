"""One invented person: what a portrait needs to know that does not move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from rest_fast.training.synthetic.brush import Colour, grade, mix, tint

T = TypeVar("T")
SKINS: tuple[Colour, ...] = (
    (253, 226, 206), (246, 207, 176), (228, 180, 142), (200, 145, 106), (156, 105, 75), (108, 70, 52),
)  # fmt: skip
HAIRS: dict[str, Colour] = {
    "black": (38, 33, 36), "espresso": (58, 42, 36), "brown": (92, 62, 44), "chestnut": (122, 72, 46),
    "copper": (172, 88, 48), "dark blonde": (168, 130, 84), "blonde": (216, 180, 122), "silver": (178, 176, 178),
}  # fmt: skip
IRISES: tuple[Colour, ...] = (
    (70, 44, 30),
    (110, 72, 40),
    (124, 118, 66),
    (82, 122, 96),
    (76, 122, 160),
    (104, 128, 144),
)
LIPSTICKS: tuple[Colour, ...] = ((200, 92, 96), (178, 58, 68), (186, 80, 98), (150, 66, 72))
CLOTHES: tuple[Colour, ...] = (
    (44, 62, 92), (236, 232, 224), (62, 104, 98), (168, 74, 62), (216, 168, 92), (88, 76, 104), (52, 54, 60),
    (142, 168, 186), (120, 128, 92), (196, 136, 128),
)  # fmt: skip
# wall above, wall below, two accents: quiet colours that let the face come forward
WALLS: tuple[tuple[Colour, Colour, Colour, Colour], ...] = (
    ((226, 220, 210), (188, 176, 164), (246, 226, 196), (150, 160, 160)),
    ((176, 200, 206), (118, 150, 164), (224, 230, 220), (84, 118, 136)),
    ((220, 190, 172), (176, 132, 118), (246, 216, 184), (150, 104, 100)),
    ((180, 194, 172), (120, 142, 122), (226, 224, 188), (92, 118, 104)),
    ((92, 104, 128), (52, 60, 82), (206, 168, 122), (74, 120, 140)),
    ((204, 196, 216), (150, 142, 172), (240, 214, 212), (122, 122, 162)),
    ((236, 206, 152), (206, 158, 106), (252, 232, 192), (176, 128, 100)),
    ((112, 92, 84), (66, 54, 54), (220, 168, 112), (124, 112, 96)),
)
LONG = ("long", "bob", "bun", "fringe", "waves", "curls")  # worn with lashes and lip colour more often
CROPPED = ("short", "quiff", "buzz", "bald", "afro", "curls")
COLLARS = ("crew", "vee", "shirt", "turtle", "blazer")
SCENES = ("plain", "bokeh", "shelf", "window", "plant")


@dataclass(frozen=True)
class Identity:
    """Lengths are pixels of a 128 px picture, colours are tuples of 0..255, the rest 0..1 unless said."""

    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    clothes: Colour
    wall: int  # index in WALLS
    scene: str  # one of SCENES
    scene_seed: int  # places of shapes behind, of curls and of freckles
    style: str  # hair: one of LONG or CROPPED
    part: float  # where hair parts, -1 left .. 1 right
    volume: float  # of hair above the skull, pixels
    hairline: float  # height above the eyes, pixels
    face_width: float  # half width
    chin: float  # height of the chin below the eyes
    jaw: float  # half width at the corner of the jaw, as a part of face_width
    chin_width: float  # roundness of the chin, half width
    eye_gap: float  # from the middle to one eye
    eye_size: float  # half width
    eye_tall: float  # half height as a part of eye_size
    eye_tilt: float  # outer corner raised, pixels
    brow_thick: float
    brow_arch: float
    brow_height: float  # above the eyes
    nose_width: float
    nose_length: float  # below the eyes
    mouth_width: float  # half width at rest
    mouth_y: float  # below the eyes
    mouth_curve: float  # corners raised, pixels
    lip_upper: float  # thickness
    lip_lower: float
    teeth: float  # whiteness
    lashes: float
    blush: float
    freckles: float
    beard: str  # "none", "stubble", "full", "goatee" or "moustache"
    glasses: str  # "none", "round" or "square"
    earrings: bool
    collar: str  # one of COLLARS
    light: float  # side the light comes from: -1 or 1, less is softer

    @classmethod
    def random(cls, rng: np.random.Generator) -> Identity:
        def within(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        def pick(options: Sequence[T]) -> T:
            return options[int(rng.integers(len(options)))]

        tone = within(0, 1)
        skin = grade(SKINS, tone)
        feminine = rng.random() < 0.5  # only moves odds: hair, beard, lips and lashes that go together
        style = pick(LONG if feminine else CROPPED)
        # Fair hair on dark skin would be rare; silver goes with all.
        names = ("black", "espresso", "black", "espresso", "silver") if tone > 0.55 else tuple(HAIRS)
        hair = tint(HAIRS[pick(names)], within(0.92, 1.08))
        natural = mix(tint(skin, (0.86, 0.62, 0.60)), (178, 84, 86), 0.38)
        lips = mix(natural, pick(LIPSTICKS), within(0.2, 0.9) if feminine and rng.random() < 0.7 else within(0, 0.1))
        bearded = not feminine and rng.random() < 0.55
        iris = grade(IRISES, within(0, 1) if tone < 0.5 else within(0, 0.25))
        width = within(30.5, 32.5) if feminine else within(31.5, 34.0)
        return cls(
            skin=skin, hair=hair, iris=iris, lips=lips, clothes=tint(pick(CLOTHES), within(0.92, 1.06)),
            wall=int(rng.integers(len(WALLS))), scene=pick(SCENES), scene_seed=int(rng.integers(1 << 30)),
            style=style, part=within(-0.8, 0.8), volume=within(2.5, 6.0), hairline=within(23, 27),
            face_width=width, chin=within(42.5, 44.5) if feminine else within(43.5, 46.0),
            jaw=within(0.72, 0.80) if feminine else within(0.78, 0.87),
            chin_width=within(7, 10) if feminine else within(9.5, 13),
            eye_gap=within(14.2, 15.4), eye_size=within(6.8, 7.7) + 0.3 * feminine, eye_tall=within(0.46, 0.55),
            eye_tilt=within(-0.3, 1.0), brow_thick=within(1.3, 2.0) if feminine else within(1.9, 3.0),
            brow_arch=within(0.8, 2.4), brow_height=within(9.6, 11.4), nose_width=within(5.2, 7.0) + 0.8 * tone,
            nose_length=within(14.5, 16.8), mouth_width=within(15.2, 17.2), mouth_y=within(26.2, 27.8),
            mouth_curve=within(1.3, 2.3), lip_upper=within(2.3, 3.1) + 0.7 * tone * within(0.3, 1),
            lip_lower=within(3.0, 4.0) + 0.8 * tone * within(0.3, 1), teeth=within(0.2, 1),
            lashes=within(0.6, 1) if feminine else within(0, 0.3), blush=within(0.3, 1),
            freckles=within(0.4, 1) if tone < 0.45 and rng.random() < 0.2 else 0.0,
            beard=pick(("stubble", "full", "full", "goatee", "moustache")) if bearded else "none",
            glasses=pick(("round", "square")) if rng.random() < 0.25 else "none",
            earrings=bool(feminine and rng.random() < 0.5), collar=pick(COLLARS),
            light=within(0.5, 1) * pick((-1, 1)),
        )  # fmt: skip

    @property
    def shade(self) -> Colour:
        """Skin in shadow: darker and warmer."""
        return tint(self.skin, (0.74, 0.60, 0.56))

    @property
    def shine(self) -> Colour:
        """Skin in light."""
        return mix(self.skin, (255, 244, 230), 0.5)
