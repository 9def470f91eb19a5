"""Light, camera, background and sensor of a photo-like picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rest_fast.training.synthetic.heads.draw import Camera, Light, Sensor

Array = np.ndarray


def random_light(rng: np.random.Generator) -> Light:
    """A key light from somewhere in front and above, sometimes from the side; a weaker second one; sky and ground."""
    wide = 1.3 if rng.random() < 0.25 else 0.7
    key = _unit(rng.normal([0, 0.45, 0.85], [wide, 0.4, 0.2]))
    fill = _unit(np.array([-np.sign(key[0]) * rng.uniform(0.3, 1.2), rng.normal(0.1, 0.3), 0.7]))
    warm = np.array([1, 0.90, 0.78]) ** rng.uniform(-0.6, 1.1)
    cool = np.array([0.86, 0.94, 1.0]) ** rng.uniform(-0.6, 1.1)
    strength = rng.uniform(0.3, 1.1)
    sky = rng.uniform(0.25, 0.7)
    return Light(
        key, strength * warm, fill, rng.uniform(0.05, 0.5) * cool, sky * cool ** 0.5,
        sky * rng.uniform(0.3, 0.7) * warm**0.5, float(rng.uniform(0.03, 0.16)),
    )  # fmt: skip


def random_camera(rng: np.random.Generator) -> Camera:
    """Eyes near (0.5, 0.42) of the picture, apart by 0.15 to 0.29 of its side: framed as photographs are by
    :func:`rest_fast.media.faces.find_face`, up to twice as near. A person keeps a pose of the head."""
    zoom = float(np.exp(rng.uniform(np.log(1.05), np.log(1.95))))
    return Camera(
        zoom,
        0.5 + rng.normal(0, 0.02),
        0.40 + 0.03 * zoom / 1.7 + rng.normal(0, 0.02),
        float(np.exp(rng.uniform(np.log(6), np.log(16)))),
        rng.normal(0, 0.10),
        rng.normal(0, 0.05),
        rng.normal(0, 0.03),
    )


def random_sensor(rng: np.random.Generator) -> Sensor:
    return Sensor(
        float(rng.uniform(0.17, 0.34)),
        float(rng.uniform(0, 1)),
        float(rng.uniform(0.75, 1.2)),
        float(rng.uniform(0.9, 1.15)),
        float(rng.choice([0, rng.uniform(0.2, 0.8)])),
        float(rng.uniform(0.001, 0.015)),
        int(rng.integers(70, 98)),
    )


def random_background(rng: np.random.Generator, size: int, picture: Array | None = None) -> Array:
    """float32 [size, size, 3] in linear light: something blurred. picture: uint8 RGB to take it from."""
    if picture is not None:
        height, width = picture.shape[:2]
        side = int(min(height, width) * rng.uniform(0.4, 1))
        y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        image = Image.fromarray(picture[y : y + side, x : x + side]).resize((size, size))
    else:
        image = _shapes(rng, size)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.01, 0.07)) * size))
    light = (np.asarray(image, np.float32) / 255) ** 2.2
    slope = rng.normal(0, 0.25, 2)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return (light * np.exp(slope[0] * x + slope[1] * y)[..., None] * rng.uniform(0.5, 1.3)).astype(np.float32)


def _shapes(rng: np.random.Generator, size: int) -> Image.Image:
    level = rng.uniform(20, 220)
    base = np.clip(level * (1 + rng.uniform(-0.15, 0.15, 3)), 0, 255).astype(int)
    image = Image.new("RGB", (size, size), tuple(base.tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.choice([0, 3, 8, 20]))):
        colour = np.clip(rng.uniform(10, 245) * (1 + rng.uniform(-0.2, 0.2, 3)), 0, 255).astype(int)
        x, y = rng.uniform(-0.2, 1, 2) * size
        w, h = rng.uniform(0.05, 0.6, 2) * size
        shape = pen.ellipse if rng.random() < 0.4 else pen.rectangle
        shape((x, y, x + w, y + h), fill=tuple(colour.tolist()))
    return image


def publish(sensor: Sensor, picture: Array) -> Array:
    """uint8 [size, size, 3] of what the sensor saw, uint8 like it: blurred, and once a JPEG."""
    image = Image.fromarray(picture)
    if sensor.blur:
        image = image.filter(ImageFilter.GaussianBlur(sensor.blur))
    if sensor.quality:
        kept = io.BytesIO()
        image.save(kept, "JPEG", quality=sensor.quality)
        image = Image.open(kept)
    return np.array(image.convert("RGB"))


def _unit(v: Array) -> Array:
    return v / np.linalg.norm(v)
