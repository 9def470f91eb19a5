"""Colours of generated frames, matched to those of the photo: mean and deviation of each channel of CIE L*a*b*.

The reference converts between sRGB, XYZ (D65) and L*a*b* with these constants and thresholds. What is shown, and what
the next chunk begins with, is matched, so a difference here comes back with every chunk.
"""

from __future__ import annotations

import functools

import torch

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]

WHITE = (0.95047, 1.0, 1.08883)  # D65
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
TO_RGB = ((3.2404542, -1.5371385, -0.4985314), (-0.9692660, 1.8760108, 0.0415560), (0.0556434, -0.2040259, 1.0572252))
EPSILON, KAPPA = 0.008856, 903.3  # where the cube root begins, and the slope below
LEAST = 1e-8  # of a deviation that is divided by


def match_colours(video: torch.Tensor, photo: torch.Tensor, share: float = 1.0) -> torch.Tensor:
    """Each frame of a video [B, 3, T, H, W] with the colours of a photo [B, 3, 1, H, W]; about -1..1, as the result.

    ``share``: of the matched frame in the result. A match leaves no value outside of -1..1.
    """
    if share == 0:
        return video
    given = (video.movedim(1, -1) + 1) / 2  # [B, T, H, W, 3] in 0..1
    lab, wanted = to_lab(given), to_lab((photo.movedim(1, -1) + 1) / 2)
    matched = to_rgb((lab - _mean(lab)) * (_deviation(wanted) / _safe(_deviation(lab))) + _mean(wanted))
    mixed = (1 - share) * given + share * matched
    return (mixed * 2 - 1).movedim(-1, 1).contiguous()


def to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB [..., 3] in 0..1 -> L*a*b* [..., 3]."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    white, matrix = _constant(WHITE, rgb), _constant(TO_XYZ, rgb)
    xyz = (linear @ matrix.T / white).clamp(1e-8, 1)
    x, y, z = torch.where(xyz > EPSILON, xyz ** (1 / 3), (KAPPA * xyz + 16) / 116).unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """L*a*b* [..., 3] -> sRGB [..., 3], moved into 0..1."""
    light, a, b = lab.unbind(-1)
    y = (light + 16) / 116
    x, z = a / 500 + y, y - b / 200
    cubes = [torch.where(v**3 > EPSILON, v**3, (116 * v - 16) / KAPPA) for v in (x, z)]
    middle = torch.where(light > KAPPA * EPSILON, y**3, light / KAPPA)
    xyz = torch.stack([cubes[0], middle, cubes[1]], -1) * _constant(WHITE, lab)
    linear = xyz @ _constant(TO_RGB, lab).T
    return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear).clamp(0, 1)


def _constant(numbers: Numbers, like: torch.Tensor) -> torch.Tensor:
    return _on(numbers, like.dtype, like.device)


@functools.cache
def _on(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Made once, since a graph cannot hold a copy from the host."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


def _mean(lab: torch.Tensor) -> torch.Tensor:
    return lab.mean((-3, -2), keepdim=True)


def _deviation(lab: torch.Tensor) -> torch.Tensor:
    return lab.std((-3, -2), keepdim=True, unbiased=False)


def _safe(deviation: torch.Tensor) -> torch.Tensor:
    return torch.where(deviation < LEAST, torch.ones_like(deviation), deviation)
