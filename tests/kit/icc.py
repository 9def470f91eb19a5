"""Colour profiles built from primaries, and what colours they mean, by matrices alone."""

from __future__ import annotations

import struct

import numpy as np

D50, D65 = (0.9642, 1.0, 0.8249), (0.95047, 1.0, 1.08883)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
# Primaries (x, y) of red, green and blue, white, gamma (0: the curve of sRGB).
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, 0.0
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), D65, 0.0
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50, 1.8

Space = tuple[tuple[tuple[float, float], ...], tuple[float, float, float], float]


def to_xyz(space: Space) -> np.ndarray:
    """[3, 3]: linear RGB to XYZ under D50, where profiles keep their colours."""
    primaries, white, _ = space
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    columns = columns * np.linalg.solve(columns, np.array(white))
    cones = (BRADFORD @ D50) / (BRADFORD @ white)
    return np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ columns


def meant(space: Space, pixels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] of a space as levels of sRGB, float64, clipped to 0..255."""
    value, gamma = pixels / 255, space[2]
    linear = value**gamma if gamma else np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return encode(linear @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(space)).T)


def encode(linear: np.ndarray) -> np.ndarray:
    """Linear sRGB [..., 3] as levels, float64, clipped to 0..255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _s15(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _curve(gamma: float) -> bytes:
    if gamma:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return b"para\0\0\0\0\0\3\0\0" + _s15(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def _profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)} | tags
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, kind, space, pcs)
    head += bytes(12) + b"acsp" + bytes(28) + _s15(*D50)
    return head.ljust(128, b"\0") + table + body


def profile(space: Space) -> bytes:
    """The ICC profile of an RGB space."""
    columns = to_xyz(space).T
    colours = {k: b"XYZ \0\0\0\0" + _s15(*c) for k, c in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(space[2]))
    return _profile(b"RGB ", {b"wtpt": b"XYZ \0\0\0\0" + _s15(*D50)} | colours | curves)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {b"wtpt": b"XYZ \0\0\0\0" + _s15(*D50), b"kTRC": _curve(gamma)})


def cmyk_profile(lab: np.ndarray) -> bytes:
    """Of inks: Lab [2, 2, 2, 2, 3] of each corner of cyan, magenta, yellow and black, linear in between."""
    corners = np.concatenate([lab[..., :1] * 2.55, lab[..., 1:] + 128], -1).round().astype(np.uint8)
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += 4 * ramp + corners.tobytes() + 3 * ramp
    return _profile(b"CMYK", {b"wtpt": b"XYZ \0\0\0\0" + _s15(*D50), b"A2B0": table}, b"prtr", b"Lab ")


def lab_as_srgb(lab: np.ndarray) -> np.ndarray:
    """Lab [..., 3] as levels of sRGB, float64, clipped to 0..255."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
    return encode(xyz @ np.linalg.inv(to_xyz(SRGB)).T)
