"""3-D rotary positions in LTX-Video's form, as three small tables; and how such tables turn heads in Wan's form.

The ``width // 6`` frequencies of each axis lie over the whole width before the head split, interleaved as
t, y, x, t, y, x, ...; the first ``(width - 6 n) / 2`` channel pairs are not rotated. A pair belongs to one axis, so its
angle depends on one coordinate: one table per axis holds everything, and a lane's place in time is one integer.
Angles are computed in float64: in float32 a minute of stream already costs two digits.
"""

from __future__ import annotations

import math

import torch


def frequencies(width: int, theta: float) -> torch.Tensor:
    """float64 [n]: spaced exponentially from pi/2 to theta pi/2."""
    n = width // 6
    exponent = torch.linspace(0, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
    return theta**exponent * (math.pi / 2)


def axis_table(positions: torch.Tensor, step: float, extent: float, freqs: torch.Tensor) -> torch.Tensor:
    """fp32 [P, n, 2] (cos, sin) for integer positions [P]; ``step`` and ``extent`` in seconds or pixels."""
    fraction = positions.double() * step / extent
    angle = (2 * fraction - 1)[:, None] * freqs
    return torch.stack([angle.cos(), angle.sin()], -1).float()


def shift_table(frames: int, step: float, extent: float, freqs: torch.Tensor) -> torch.Tensor:
    """fp32 [n, 2]: the rotation that moves a rotated key by this many latent frames."""
    angle = 2 * frames * step / extent * freqs
    return torch.stack([angle.cos(), angle.sin()], -1).float()


def token_table(t: torch.Tensor, y: torch.Tensor, x: torch.Tensor, width: int) -> torch.Tensor:
    """[F h w, width / 2, 2] from the axis tables [F, n, 2], [h, n, 2], [w, n, 2]; unrotated pairs first."""
    f, n, h, w = t.shape[0], t.shape[1], y.shape[0], x.shape[0]
    shape = (f, h, w, n, 2)
    axes = [t[:, None, None].expand(shape), y[:, None].expand(shape), x.expand(shape)]
    table = torch.stack(axes, -2).reshape(f * h * w, 3 * n, 2)
    still = torch.tensor([1.0, 0.0], dtype=table.dtype, device=table.device)
    return torch.cat([still.expand(f * h * w, width // 2 - 3 * n, 2), table], 1)


def head_table(t: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Wan's form: [F h w, D / 2, 2] for the pairs of each head, from axis tables [F, a, 2], [h, b, 2], [w, c, 2].

    The a + b + c = D / 2 pairs of a head belong to time, rows and columns, in this order.
    """
    shape = t.shape[0], y.shape[0], x.shape[0], -1, 2
    axes = [t[:, None, None].expand(shape), y[:, None].expand(shape), x.expand(shape)]
    return torch.cat(axes, -2).flatten(0, 2)


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate interleaved pairs of x [..., W] by table [..., W / 2, 2]; result in the wider dtype of the two."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = table.unbind(-1)
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)
