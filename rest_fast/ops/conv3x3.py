"""``conv3x3``: a convolution of maps by 3 x 3, with SiLU before and after it, and what is added to its result.

    y   = W * s(x) + bias           s: SiLU or nothing; zeros outside
    out = (s'(y) + added) scale + shift

Maps are [N, C, H, W]; those with channels innermost (PyTorch's ``channels_last``) are fast. ``added`` may belong to
several frames each, and ``scale`` and ``shift`` are of a frame and a channel: what the motion VAE's flow branch does
with the photo and the motion.

The backend in C++ is Winograd's F(4 x 4, 3 x 3), which multiplies a quarter as often. Its results are off by about
3e-6 of the largest, ten times as much as those of a plain sum of products in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rest_fast.ops import native
from rest_fast.ops.derived import derived
from rest_fast.ops.dispatch import Backend, Op, OpError, Spec, expect, expect_float
from rest_fast.ops.memory_layouts import expect_writable

NAME = "conv3x3"
BLOCK = 16  # output channels that lie together: kConvBlock of csrc/ops/conv3x3.h
POINTS = (0, 1, -1, 2, -2)  # at which polynomials are multiplied, and infinity


def convolved(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    added: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    *,
    silu_before: bool = False,
    silu_after: bool = False,
) -> torch.Tensor:
    """Functional reference: shapes as of the op, a new [N, O, H, W]. Differentiable."""
    y = F.conv2d(F.silu(x) if silu_before else x, weight, bias, padding=1)
    if silu_after:
        y = F.silu(y, inplace=True)
    if added is not None:
        y = y + added if len(added) == len(y) else (y.unflatten(0, (len(added), -1)) + added[:, None]).flatten(0, 1)
    return y if scale is None or shift is None else torch.addcmul(shift[..., None, None], y, scale[..., None, None])


def check(x, weight, bias, added, scale, shift, out, *, silu_before, silu_after) -> Spec:
    expect_float(NAME, "x", x)
    expect(NAME, "x", x, (-1, -1, -1, -1), contiguous=False)
    n, channels, *size = x.shape
    like = {"dtype": x.dtype, "device": x.device}
    expect(NAME, "weight", weight, (-1, channels, 3, 3), contiguous=False, **like)
    wide = weight.shape[0]
    if bias is not None:
        expect(NAME, "bias", bias, (wide,), **like)
    if added is not None:
        expect(NAME, "added", added, (-1, wide, *size), contiguous=False, **like)
        if n and (len(added) == 0 or n % len(added)):
            raise OpError(f"{NAME}: argument added: expected a number of maps that divides {n}, got {len(added)}")
    if (scale is None) != (shift is None):
        raise OpError(f"{NAME}: argument shift: expected scale and shift together, got one of them")
    if scale is not None:
        for name, vector in (("scale", scale), ("shift", shift)):
            expect(NAME, name, vector, (n, wide), **like)
    expect(NAME, "out", out, (n, wide, *size), contiguous=False, **like)
    expect_writable(NAME, "out", out)
    maps = [m for m in (x, added, out) if m is not None]
    innermost = all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    dims = (("frames", n), ("channels", channels), ("out_channels", wide), ("height", size[0]), ("width", size[1]))
    return Spec(x.device.type, x.dtype, (*dims, ("channels_innermost", str(innermost))))


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    added: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    out: torch.Tensor,
    *,
    silu_before: bool,
    silu_after: bool,
) -> None:
    """out = (s'(W * s(x) + bias) + added) scale + shift.

    Args:
        x: [N, C, H, W], floating.
        weight: [O, C, 3, 3].
        bias: [O], or None.
        added: [M, O, H, W], M a divisor of N: each is added to N / M frames, one after another; or None.
        scale, shift: [N, O], or both None.
        out: [N, O, H, W], in other memory than x. Written.
        silu_before, silu_after: whether s and s' are SiLU.
    """
    out.copy_(convolved(x, weight, bias, added, scale, shift, silu_before=silu_before, silu_after=silu_after))


def at_points(weight: torch.Tensor) -> torch.Tensor:
    """A weight [O, C, 3, 3] at the points of F(4 x 4, 3 x 3), as csrc/ops/conv3x3.h wants it: fp32 [O / 16, 36, C, 16]
    with O rounded up. Kept with a frozen weight."""
    return derived(weight, "points", (weight,), lambda: _at_points(weight.detach()))


def _at_points(weight: torch.Tensor) -> torch.Tensor:
    """In float64, as each of these numbers goes into many results."""
    rows = []
    for p in POINTS:  # Lagrange's denominators, which interpolation would divide by, are part of the weight
        others = torch.tensor([float(p - q) for q in POINTS if q != p], dtype=torch.float64)
        rows.append(torch.tensor([1.0, p, p * p], dtype=torch.float64) / others.prod())
    rows.append(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    evaluate = torch.stack(rows)  # [6, 3]
    found = torch.einsum("iu,jv,ocuv->ijoc", evaluate, evaluate, weight.double()).flatten(0, 1)
    padded = F.pad(found, (0, 0, 0, -len(weight) % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).permute(1, 0, 3, 2).float().contiguous()


def supports(spec: Spec) -> tuple[bool, str]:
    if spec.get("channels_innermost") == "False":
        return False, "maps whose channels are not innermost"
    return native.supports(spec, (torch.float32,))


def run(x, weight, bias, added, scale, shift, out, *, silu_before, silu_after) -> None:
    points = at_points(weight)
    n, channels, height, width = x.shape
    native.call(
        NAME,
        *(0 if t is None else t.data_ptr() for t in (x, points, bias, added, scale, shift, out)),
        (n, height, width, channels, len(weight)),
        1 if added is None else len(added),
        (int(silu_before), int(silu_after)),
        0,  # vectors as wide as the machine has
    )


conv3x3 = Op(
    f"{NAME}(Tensor x, Tensor weight, Tensor? bias, Tensor? added, Tensor? scale, Tensor? shift, Tensor(a!) out, *, "
    "bool silu_before, bool silu_after)",
    check=check,
    reference=reference,
    backends=(Backend("cpp", supports, run, measured="conv3x3_epyc.json"),),
)
