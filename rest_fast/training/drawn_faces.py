"""Drawn talking faces with synthetic sound: deterministic training data for a first demo model.

A clip is one invented person (`Identity`), 25 frames per second, whose mouth follows the loudness
of 16 kHz sound (`mouth_from_sound`, a pure function, so recordings can be mapped the same way).
Shapes are signed distances, negative inside, over the head's own coordinates u (right) and v
(down) in pixels of a 128 x 128 picture: antialiased and smoothly shaded at any size.
"""

from __future__ import annotations

import colorsys
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np

RATE = 16_000  # sound samples per second
FRAME = 640  # sound samples per video frame: 40 ms, 25 frames per second
LEAD = 4_000  # samples of a clip before its frame 0 (0.25 s)
TAIL = 4_000  # samples of a clip after its last frame (0.25 s)
LOOK_AHEAD = 640  # `loudness` and `mouth_from_sound` hear this far past the end of a frame
FLOOR_DB, CEILING_DB = -45.0, -12.0  # RMS in dB of full scale that maps to loudness 0 and 1
SMOOTH = (0.25, 0.5, 0.25)  # over frames: one of attack, one of release
Array = np.ndarray
# Palettes, each ordered so that mixtures of neighbours look natural.
SKINS = ((252, 222, 200), (241, 200, 168), (222, 172, 132), (190, 136, 96), (125, 83, 59))
HAIRS = ((176, 172, 172), (44, 36, 38), (80, 52, 38), (150, 76, 46), (208, 168, 104))
IRISES = ((84, 54, 34), (122, 84, 44), (88, 118, 78), (72, 118, 160))


def _within(low: float, high: float):
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class Identity:
    """One invented person: tones are 0..1 positions in a palette, hues 0..1, lengths pixels."""

    skin: float = _within(0, 1)
    hair: float = _within(0, 1)
    iris: float = _within(0, 1)
    lip_red: float = _within(0, 1)  # 0 natural .. 1 lipstick
    wall_hue: float = _within(0, 1)
    wall: float = _within(0.6, 0.92)  # brightness
    clothes_hue: float = _within(0, 1)
    face_width: float = _within(31, 36)  # half width
    face_height: float = _within(41, 45)  # half height
    jaw: float = _within(0.05, 0.25)  # how much the face narrows towards the chin
    eye_size: float = _within(6.8, 8.2)  # half width
    eye_gap: float = _within(14, 16)  # from the middle to one eye
    brow: float = _within(1.0, 2.0)  # half thickness
    mouth_width: float = _within(15.5, 18.5)  # half width
    lip: float = _within(2.4, 4.0)  # thickness
    hair_length: float = _within(-25, 50)  # below the eyes, behind the head; negative: none
    hair_volume: float = _within(3.5, 8.0)
    hairline: float = _within(21, 29)  # height of the forehead above the eyes
    parting: float = _within(-0.7, 0.7)  # from the middle, in half widths of the face
    light: float = _within(-1, 1)  # the lit side
    x: float = _within(62, 66)  # resting place of the head's centre, which is 60 from the top

    @classmethod
    def random(cls, rng: np.random.Generator) -> Identity:
        return cls(*(float(rng.uniform(*f.metadata["range"])) for f in fields(cls)))


@dataclass(frozen=True)
class Motion:
    """What moves, one value per frame: arrays [n] of equal length."""

    mouth: Array  # opening, 0 closed .. 1
    width: Array  # -1 narrow .. 1 wide
    blink: Array  # 0 open .. 1 shut
    dx: Array  # head shift in pixels
    dy: Array
    roll: Array  # head turn in the picture plane, radians
    brow: Array  # -1 low .. 1 raised

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = np.asarray(getattr(self, name), np.float32)
            object.__setattr__(self, name, value)
            if value.ndim != 1 or value.shape != self.mouth.shape or not np.isfinite(value).all():
                raise ValueError(f"motion needs finite arrays [n] of one length: {name} {value}")


def _sway(rng: np.random.Generator, frames: int, neutral: bool) -> Array:
    """[frames] in about -1..1, smooth, with random knots 1.5-2 s apart; `neutral`: 0 at frame 0."""
    spacing = 25 * rng.uniform(1.5, 2.0)
    knots = rng.uniform(-1, 1, int(frames / spacing) + 4)
    knots[1] *= not neutral  # the place only, not the speed: heads need not start from rest
    t, k = np.modf(np.arange(frames) / spacing)
    a, b, c, d = (knots[k.astype(int) + j] for j in range(4))  # Catmull-Rom
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


def random_motion(rng: np.random.Generator, mouth: Array, width: Array, start_neutral: bool = True) -> Motion:
    """Head, blinks and brows at random, independent of the sound, for a given mouth [n].

    With `start_neutral` frame 0 is the reference photo, mouth closed, eyes open, head at rest;
    at frame 1 the mouth is half way to its curve, since speech may be going on already.
    """
    opening = np.minimum(np.arange(len(mouth)) / 2, 1) if start_neutral else 1
    blink, start = np.zeros(len(mouth) + 9), int(rng.integers(4, 70))
    while start < len(mouth):  # blinks of 7-9 frames, 1.4-4 s apart
        length = int(rng.integers(7, 10))
        wave = np.sin(np.pi * (np.arange(length) + 0.5) / length)
        blink[start : start + length] = np.minimum(1.0, 1.25 * wave**1.5)
        start += int(rng.integers(35, 100))
    sway = partial(_sway, rng, len(mouth), start_neutral)
    return Motion(mouth * opening, width * opening, blink[: len(mouth)], 8 * sway(), 4 * sway(), 0.1 * sway(), sway())


@dataclass(frozen=True)
class _Canvas:
    """Pixels [3, h, w] (0..255, painted in place) and the head coordinates u, v [h, w] of each."""

    pixels: Array
    u: Array
    v: Array
    scale: float  # picture pixels per length unit

    def paint(self, distance: Array, colour: Array, soft: float = 0, opacity: float = 1) -> None:
        """Lay `colour` (broadcast to [3, h, w]) where `distance` [h, w] < 0; edge `soft` wide."""
        cover = opacity * np.clip(0.5 - distance / (1 / self.scale + soft), 0, 1)
        self.pixels[:] += cover * (colour - self.pixels)

    def window(self, u: float, v: float, reach_u: float, reach_v: float) -> _Canvas:
        """The part within reach of (u, v), which becomes its origin: small shapes cost little."""
        row, column = np.divmod(np.argmin(np.hypot(self.u - u, self.v - v)), self.u.shape[1])
        h, w = round(reach_v * self.scale), round(reach_u * self.scale)
        box = np.s_[max(row - h, 0) : row + h + 1, max(column - w, 0) : column + w + 1]
        return _Canvas(self.pixels[(..., *box)], self.u[box] - u, self.v[box] - v, self.scale)


def _ellipse(u: Array, v: Array, a: float, b: float) -> Array:
    """Distance [h, w] to an ellipse with half axes a, b (first order: right at the edge)."""
    p, q = u / a, v / b
    r = np.sqrt(p * p + q * q) + 1e-6
    return r * (r - 1) / np.sqrt((p / a) ** 2 + (q / b) ** 2 + 1e-9)


def _lens(u: Array, v: Array, half: float, up: float, down: float, power: float = 2) -> Array:
    """Distance to the region between two arches over |u| < half, `up` above, `down` below v = 0."""
    x = np.abs(u) / half
    arch, slope = 1 - x**power, power * x ** (power - 1) / half
    above = (-up * arch - v) / np.sqrt(1 + (up * slope) ** 2)
    return np.maximum(above, (v - down * arch) / np.sqrt(1 + (down * slope) ** 2))


def _rgb(*colour: float, scale: float = 1) -> Array:  # [3, 1, 1]
    return scale * np.array(colour, np.float32)[:, None, None]


def _tone(palette: tuple, at: float) -> Array:
    return _rgb(*(np.interp(at, np.linspace(0, 1, len(palette)), c) for c in np.transpose(palette)))


def _body(c: _Canvas, who: Identity, x: Array, y: Array, dx: float) -> None:
    """The hair behind, clothes and neck; x, y [h, w] are places in the picture."""
    skin, hair = _tone(SKINS, who.skin), _tone(HAIRS, who.hair)
    lit = 1 + 0.15 * who.light * (x / 64 - 1)
    if who.hair_length > 0:  # an ellipse whose sides run straight down from the eyes to the tips
        drop = np.minimum(c.v, 0) + 1.7 * np.maximum(c.v - who.hair_length, 0)
        a, b = who.face_width + who.hair_volume, who.face_height + who.hair_volume
        c.paint(_ellipse(c.u, drop, a, b), hair * (0.78 * lit))
    clothes = _ellipse(x - who.x, y - 152, 62, 44)
    cloth = _rgb(*colorsys.hsv_to_rgb(who.clothes_hue, 0.55, 0.6), scale=255)
    c.paint(clothes, cloth * (0.88 + lit - 0.008 * y))
    # The neck's top goes with the head, its foot stays in the collar.
    bend = x - who.x - dx * np.clip((118 - y) / 30, 0, 1)
    neck = np.maximum(np.abs(bend) - 0.46 * who.face_width, y - 112)
    collar = np.maximum(clothes, _ellipse(x - who.x, y - 106, 0.6 * who.face_width, 13))
    neck = np.maximum(np.minimum(neck, collar), 20 - c.v)
    c.paint(neck, skin * (0.80 * lit + 0.004 * np.clip(c.v - who.face_height, 0, 25)))


def _head(c: _Canvas, who: Identity, opening: float) -> None:
    """Ears, face and the hair in front."""
    skin, hair = _tone(SKINS, who.skin), _tone(HAIRS, who.hair)
    u, v, w, h, volume = c.u, c.v, who.face_width, who.face_height, who.hair_volume
    across, low, lit = u / w, np.clip(v / h, 0, 1.2), 1 + 0.07 * who.light * u / w
    c.paint(_ellipse(np.abs(u) - w * 0.98, v - 3, 5, 9), 0.88 * skin)
    # The chin follows the jaw: below the nose the face is evaluated higher than it is.
    face = _ellipse(u / (1 - who.jaw * low * low), v - 5 * opening * low * low, w, h)
    c.paint(face, skin * (lit - 0.1 * np.clip(1 + face / 14, 0, 1) ** 2 - 0.03 * v / h))
    # The front hair ends at the temples; its line rises to the parting and falls to the sides.
    cap = _ellipse(u, v + 0.35 * h, w + 0.3 * volume, 0.65 * h + volume)
    square = across * across
    line = v + who.hairline - 5 * (across - who.parting) ** 2 - 22 * square * square * square
    edge = np.maximum(cap, line / (1 + 3 * square * square))  # undo its slope: even smoothing
    c.paint(np.maximum(edge - 1, face + 1), 0.75 * skin, 4, 0.35)
    c.paint(edge, hair * (lit + 0.16 * np.exp(-(((v + 0.8 * h - 9 * square) / 6) ** 2))))


def _features(c: _Canvas, who: Identity, blink: float, brow: float) -> None:
    """Cheeks, nose, eyes and brows."""
    skin, iris = _tone(SKINS, who.skin), _tone(IRISES, who.iris)
    dark = 0.5 * _tone(HAIRS, who.hair) + 6
    away, size, tall = -np.sign(who.light), who.eye_size, 0.66 * who.eye_size
    n = c.window(0, 11, 12, 18)
    n.paint(_ellipse(n.u - 2.6 * away, n.v + 5, 1.2, 9), 0.8 * skin, 4, 0.5)
    n.paint(_lens(n.u, n.v - 1, 5.2, -0.5, 3.2), 0.66 * skin, 1.2, 0.8)
    n.paint(_ellipse(n.u + 0.8 * away, n.v + 1, 2.2, 2.6), np.minimum(1.1 * skin, 255), 4, 0.7)
    up, down = tall * (1 - 1.5 * blink), 0.5 * tall  # the upper lid comes down onto the lower one
    for side in (-1, 1):
        cheek = c.window(side * 0.58 * who.face_width, 14, 14, 12)
        cheek.paint(_ellipse(cheek.u, cheek.v, 5, 4), skin * _rgb(1, 0.78, 0.74), 12, 0.55)
        e = c.window(side * who.eye_gap, -4, 1.7 * size, 22)
        x = e.u / size  # -1 and 1 at the corners
        e.paint(_ellipse(e.u, e.v + 1, 1.15 * size, 1.5 * tall), 0.82 * skin, 5, 0.45)
        eye = _lens(e.u, e.v, size, up, down) + blink * blink  # nothing white between shut lids
        e.paint(eye, _rgb(250, 248, 246))
        for radius, colour in ((0.52, 0.6 * iris), (0.44, iris), (0.22, _rgb(18, 14, 16))):
            e.paint(np.maximum(eye, np.hypot(e.u, e.v) - radius * size), colour)
        e.paint(np.maximum(eye, np.hypot(e.u + 1.2 * away, e.v + 1.5) - 1.1), _rgb(255, 255, 255))
        lid = np.abs(e.v + up * (1 - x * x)) - 0.9
        e.paint(np.maximum(lid, size * (np.abs(x) - 1) - 0.5), dark, 0.4)
        bend = e.v + 12.5 + 2.2 * brow - 1.6 * x * x
        e.paint(_lens(e.u, bend, 1.35 * size, who.brow, who.brow, 4), dark, 0.5, 0.9)


def _mouth(c: _Canvas, who: Identity, opening: float, width: float) -> None:
    """Lips around a dark inside with tongue and upper teeth."""
    skin, red, lip = _tone(SKINS, who.skin), 0.65 * who.lip_red, who.lip
    lips = (1 - red) * (skin * _rgb(0.8, 0.56, 0.56) + 14) + red * _rgb(190, 56, 68)
    half = who.mouth_width * (1 + 0.14 * width - 0.06 * opening)
    up, down = 4 * opening, 14 * opening
    m = c.window(0, 24, half + 6, 26)
    u, v = m.u, m.v + 2.5 * (m.u / half) ** 2  # the corners rise
    bow = v - 0.9 * np.exp(-((u / 2.6) ** 2))  # the dip of the upper lip
    m.paint(_ellipse(u, v - down - 1.9 * lip, 0.6 * half, 1.5), 0.8 * skin, 5, 0.6)
    m.paint(_lens(u, v, half, 0.5 * up, down + 1.4 * lip, 2.2), lips)
    m.paint(_lens(u, bow, half, up + 0.8 * lip, 0.5 * down, 2.2), 0.88 * lips)
    m.paint(_ellipse(u, v - down - 0.6 * lip, 0.4 * half, 0.5), lips * 0.6 + 100, 2, 0.6)
    inner = _lens(u, v, 0.93 * half, up + 0.5, down + 0.5, 2.4)
    m.paint(inner, _rgb(62, 14, 22))
    tongue = _ellipse(u, v - down - 1.5, 0.55 * half, 9 * opening + 0.1)
    m.paint(np.maximum(inner + 0.6, tongue), _rgb(190, 84, 88), 0.8)
    teeth = np.maximum(v + up - 5.4 * opening, np.abs(u) - 0.74 * half)
    m.paint(np.maximum(inner + 0.8, teeth), _rgb(246, 242, 236), 0.3)


def draw(identity: Identity, motion: Motion, size: int = 128) -> Array:
    """Paint every frame: uint8 [n, size, size, 3]."""
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, not {size}")
    y, x = ((np.mgrid[:size, :size] + 0.5) * 128 / size).astype(np.float32)
    glow = np.exp(-(np.hypot(x - 64 - 30 * identity.light, y - 40) ** 2) / 5000)
    wall = _rgb(*colorsys.hsv_to_rgb(identity.wall_hue, 0.2, identity.wall), scale=255)
    wall = wall * (0.82 + 0.24 * glow)  # what never moves
    out = np.empty((len(motion.mouth), size, size, 3), np.uint8)
    for i, frame in enumerate(out):
        mouth, width, blink, dx, dy, roll, brow = (float(getattr(motion, f.name)[i]) for f in fields(Motion))
        px, py, cos, sin = x - identity.x - dx, y - 60 - dy, math.cos(roll), math.sin(roll)
        canvas = _Canvas(wall.copy(), cos * px + sin * py, cos * py - sin * px, size / 128)
        _body(canvas, identity, x, y, dx)
        _head(canvas, identity, mouth)
        _features(canvas, identity, blink, brow)
        _mouth(canvas, identity, mouth, width)
        frame[:] = np.clip(canvas.pixels + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return out


def portrait(seed: int, size: int = 512) -> Array:
    """uint8 [size, size, 3]: the person of `make_clip(seed)`, mouth closed, at rest."""
    rng = np.random.default_rng((seed, 0))
    return draw(Identity.random(rng), Motion(*np.zeros((7, 1))), size)[0]


def _blocks(samples: Array) -> Array:
    """[frames, 640]: the sound of each whole video frame."""
    if samples.ndim != 1 or samples.dtype.kind != "f" or len(samples) < FRAME or not np.isfinite(samples).all():
        raise ValueError(f"sound is finite floats [n >= 640], not {samples.dtype} {samples.shape}")
    return samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float32)


def loudness(samples: Array) -> Array:
    """float32 [frames] in 0..1: level of each frame (dB, FLOOR_DB..CEILING_DB), smoothed.

    Frame i hears samples 640 (i - 1) .. 640 (i + 1) + LOOK_AHEAD; beyond the ends is silence.
    """
    power = np.mean(_blocks(samples) ** 2, axis=1)
    level = (10 * np.log10(power + 1e-12) - FLOOR_DB) / (CEILING_DB - FLOOR_DB)
    return np.convolve(np.clip(level, 0, 1), SMOOTH)[1:-1].astype(np.float32)


def mouth_from_sound(samples: Array) -> tuple[Array, Array]:
    """Opening 0..1 and width -1..1, float32 [frames] each: loud is open, bright is wide."""
    loud = loudness(samples)
    power = np.abs(np.fft.rfft(_blocks(samples) * np.hanning(FRAME), axis=1)) ** 2
    centre = power @ np.fft.rfftfreq(FRAME, 1 / RATE) / (power.sum(1) + 1e-9)
    bright = np.clip(np.log2(centre / 600 + 1e-3) / 1.5, -1, 1)
    return loud**0.8, loud * np.convolve(bright, SMOOTH)[1:-1].astype(np.float32)


def _syllables(rng: np.random.Generator, seconds: float) -> tuple[Array, Array]:
    """Times [k] in s and there [7, k]: voice and hiss gain, pitch, 3 formants, hiss centre (Hz)."""
    rate, tract, held = rng.uniform(3, 6), rng.uniform(0.85, 1.15), np.ones((6, 1))
    n = int((seconds + 0.5) * rate / 0.7) + 2
    draw, kind, onset = partial(rng.uniform, size=n), rng.random(n), rng.integers(3, size=n)
    pause = draw(0.1, 0.3) * (kind < 0.3) + draw(0.3, 0.8) * (kind > 0.9)  # word, sentence ends
    length, loud, linked = draw(0.7, 1.3) / rate, 10 ** draw(-0.5, 0), pause == 0
    start = np.cumsum(length + pause) - length - pause - rng.uniform(0, 0.5)
    hum = 0.3 * loud * (onset == 0) * np.roll(linked, 1)
    hiss = draw(0.1, 0.6) * (onset > 0)  # 1: a fricative; 2: a closure that bursts at its end
    attack, zero = draw(0.15, 0.35) * length, np.zeros(n)
    times = (zero, 0.8 * attack, attack, attack + 0.03, 0.75 * length, length)
    voiced = (hum, hum, hum, loud, 0.8 * loud, draw(0, 0.4) * loud * linked)
    hissing = (zero, hiss * (onset == 1), hiss, 0.02 + zero, 0.02 + zero, zero)
    pitch = np.clip(rng.uniform(90, 240) * rng.uniform(0.8, 1.2, (2, n)), 80, 280)
    spans = ((280, 800), (800, 2200), (2200, 3000), (1500, 6500))
    tracks = (voiced, hissing, pitch[[0, 0, 0, 0, 1, 1]], *(held * tract * draw(*s) for s in spans))
    return (start + np.array(times)).T.ravel(), np.array([np.array(t).T.ravel() for t in tracks])


def _voice(rng: np.random.Generator, count: int) -> Array:
    """[count]: buzz and hiss through moving formants, by overlapping 32 ms FFTs every 8 ms."""
    hop, window = 128, 512
    frames, (times, tracks) = count // hop + window // hop, _syllables(rng, count / RATE)
    total = (frames - 1) * hop + window
    voiced, hissing, _, *poles, place = (np.interp(np.arange(frames) * hop / RATE, times, t)[:, None] for t in tracks)
    breath = rng.normal(size=total)
    cycles = np.cumsum(np.interp(np.arange(total) / RATE, times, tracks[2])) / RATE
    buzz = 2 * (cycles % 1) - 1 + rng.uniform(0.02, 0.15) * breath
    hertz, tube, spectrum = np.linspace(0, RATE / 2, window + 1), np.ones(1), np.zeros(1)
    for pole in (*poles, 3500.0, 4500.0):
        tube = tube * pole**2 / np.hypot(pole**2 - hertz**2, (50 + 0.05 * pole) * hertz)
    band = np.exp(-(((hertz - place) / 1200) ** 2))
    for source, gain, shape in ((buzz, voiced, tube), (breath, 0.3 * hissing, band)):
        slices = np.lib.stride_tricks.sliding_window_view(source, window)[::hop]
        bins = np.fft.rfft(slices * np.hanning(window), 2 * window)
        spectrum = spectrum + bins * gain * shape / shape.mean(1, keepdims=True)
    # The filters have zero phase: half a window of shift keeps what precedes a piece before it.
    pieces = np.roll(np.fft.irfft(spectrum), window // 2, axis=1)
    out = np.zeros((frames + 2 * window // hop, hop))
    for k, part in enumerate(np.split(pieces, 2 * window // hop, axis=1)):
        out[k : k + frames] += part
    return out.ravel()[:count]


def speech_like(rng: np.random.Generator, seconds: float) -> Array:
    """float32 [seconds * 16000]: syllables, pauses, a room and noise; at times total silence."""
    count = round(seconds * RATE)
    if count <= 0:
        raise ValueError(f"seconds must be positive, not {seconds}")
    # The room: a random tone colour of +-6 dB and, for some, a decaying tail.
    tail = rng.normal(size=count) * np.exp(-30 * np.arange(count) / RATE)
    room = 1 + rng.choice([0, 0, 0.02, 0.05]) * np.fft.rfft(tail)
    room *= 10 ** np.interp(np.linspace(0, 5, len(room)), np.arange(6), rng.uniform(-0.3, 0.3, 6))
    sound = np.fft.irfft(np.fft.rfft(_voice(rng, count)) * room, count)
    power = np.convolve(sound**2, np.full(320, 1 / 320))[:count]
    level = np.sqrt(power[power >= 0.05 * power.max()].mean() + 1e-12)  # while speaking
    sound *= 10 ** (rng.uniform(-30, -12) / 20) / level
    sound += (rng.random() < 0.6) * 10 ** (rng.uniform(-80, -52) / 20) * rng.normal(size=count)
    silent, start = rng.integers(RATE // 2, 3 * RATE), rng.integers(count)
    sound[start : start + silent * (rng.random() < 0.25)] = 0
    return np.clip(sound, -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Clip:
    """Pictures and their sound. Frame i covers samples LEAD + 640 i .. LEAD + 640 (i + 1)."""

    video: Array  # uint8 [frames, size, size, 3]
    samples: Array  # float32 [LEAD + 640 frames + TAIL]
    mouth: Array  # float32 [frames]: the opening drawn, 0..1


def make_clip(seed: int, frames: int = 97, size: int = 128) -> Clip:
    """The clip of a seed (0 or more). Frame 0 is neutral: it serves as the reference photo."""
    if frames < 1:
        raise ValueError(f"a clip needs at least one frame, not {frames}")
    # Separate streams for person, sound and motion: changing one leaves the others alone.
    person, sound, moves = (np.random.default_rng((seed, stream)) for stream in range(3))
    samples = speech_like(sound, (LEAD + frames * FRAME + TAIL) / RATE)
    before, skip = divmod(LEAD, FRAME)  # whole frames before frame 0, and the odd samples
    mouth, width = (x[before : before + frames] for x in mouth_from_sound(samples[skip:]))
    motion = random_motion(moves, mouth, width)
    return Clip(draw(Identity.random(person), motion, size), samples, motion.mouth)


def make_clips(seeds: Sequence[int], workers: int = 1, frames: int = 97, size: int = 128) -> Iterator[Clip]:
    """Clips in the order of their seeds, at most 4 `workers` of them held at a time."""
    make = partial(make_clip, frames=frames, size=size)
    if workers == 1:
        yield from map(make, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for i in range(0, len(seeds), 4 * workers):  # bounds the clips waiting to be read
            yield from pool.imap(make, seeds[i : i + 4 * workers])
