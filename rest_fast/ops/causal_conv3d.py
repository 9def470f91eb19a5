"""``causal_conv3d``: 3x3x3 convolution of one piece of a stream, with all that a decoder does to its result.

The frames of a piece lie in ``buffer [B, C, T + 2, H, W]`` after room for the ``past`` frames before them, which
``history`` keeps from call to call. A causal convolution has 2 past frames. A symmetric one has 1 and looks one frame
ahead; at the end of the piece the last frame is repeated. On the first call the history is the first frame, repeated.
After a call it holds the ``past`` frames before frame ``keep`` of the piece: ``keep`` is T in a causal stream, and less
if the last frames are provisional and will come again. These steps follow on the result y, with a single rounding if
the backend fuses them:

    y += noise_scale noise                        one image per stream (LTX-Video 0.9.1)
    y  = depth_to_space(y, factors, drop)         the upsampler's
    y += residual                                 rearranged likewise, and tiled over the channels
    out = y;  normed = silu(pixel_norm(y) (1 + scale) + shift);  pictures = to_uint8(y)

Each result is optional. ``normed`` is the input of the next convolution, and is written where that reads it. What has
to last between calls is in the history alone: a state is 2 frames for each convolution, whatever T is, and the buffer
is scratch that all convolutions of one shape share.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F

from rest_fast.ops import library_convolution, triton_kernels
from rest_fast.ops.depth_to_space import functional_depth_to_space
from rest_fast.ops.dispatch import Op, OpError, Spec, expect, expect_float
from rest_fast.ops.frames_to_uint8 import to_uint8
from rest_fast.ops.memory_layouts import expect_writable, layout
from rest_fast.ops.pixel_norm_silu import normed_silu

NAME = "causal_conv3d"
TAPS = 3  # of the kernel, in time as in space


def causal_convolution(
    x: torch.Tensor,  # [B, C, T, H, W]
    weight: torch.Tensor,  # [O, C, 3, k, k] with k 1 or 3
    bias: torch.Tensor | None,  # [O]
    history: torch.Tensor | None,  # [B, C, past, H, W]; None: the first frame, repeated
    *,
    past: int = 2,  # 2: causal; 1: symmetric, the last frame repeated after the piece
    keep: int | None = None,  # frames of x that will not come again; None: all
    reflect: bool = False,  # mirror rows and columns at the border, instead of padding with zeros
    convolve: Callable[..., torch.Tensor] = F.conv3d,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Functional reference: (conv [B, O, T, H, W], history for the next call). Differentiable."""
    if history is None:
        history = x[:, :, :1].expand(-1, -1, past, -1, -1)
    buffer = torch.cat([history, x, *[x[:, :, -1:]] * (TAPS - 1 - past)], 2)
    keep, side = x.shape[2] if keep is None else keep, weight.shape[-1] // 2
    kept = buffer[:, :, keep : keep + past]
    if reflect and side:
        buffer, side = mirrored(buffer), 0
    return convolve(buffer, weight, bias, padding=(0, side, side)), kept


def mirrored(x: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] -> [B, C, T, H + 2, W + 2], rows and columns mirrored at the border."""
    return F.pad(x.flatten(1, 2), (1, 1, 1, 1), mode="reflect").unflatten(1, x.shape[1:3])


def check(
    buffer, history, weight, bias, noise, noise_scale, residual, scale, shift, out, normed, pictures,
    *, factors, drop, keep, first, reflect, eps,
) -> Spec:  # fmt: skip
    expect_float(NAME, "buffer", buffer)
    expect(NAME, "buffer", buffer, (-1, -1, -1, -1, -1), contiguous=False)
    expect_writable(NAME, "buffer", buffer)
    b, c, t, h, w = buffer.shape
    t, same = t - (TAPS - 1), {"dtype": buffer.dtype, "device": buffer.device}
    if t < 1:
        raise OpError(f"{NAME}: argument buffer: expected more than {TAPS - 1} frames, got {t + TAPS - 1}")
    expect(NAME, "history", history, (b, c, -1, h, w), contiguous=False, **same)
    expect_writable(NAME, "history", history)
    past = history.shape[2]
    if past not in (1, 2):
        raise OpError(f"{NAME}: argument history: expected 1 or 2 frames, got {past}")
    if not 0 <= keep <= t:
        raise OpError(f"{NAME}: argument keep: expected 0..{t}, got {keep}")
    expect(NAME, "weight", weight, (-1, c, TAPS, TAPS, TAPS), contiguous=False, **same)
    o, cell = weight.shape[0], prod(factors)
    if len(factors) != 3 or min(factors) < 1 or o % cell or not 0 <= drop < t * factors[0]:
        raise OpError(
            f"{NAME}: argument factors: expected three that divide {o} channels and more than drop {drop} frames, "
            f"got {list(factors)} for {t} frames"
        )
    if reflect and min(h, w) < 2:
        raise OpError(f"{NAME}: argument reflect: expected at least 2 rows and columns to mirror, got {h} x {w}")
    shape = (b, o // cell, t * factors[0] - drop, h * factors[1], w * factors[2])
    _check_operands(bias, noise, noise_scale, residual, scale, shift, shape, (b, o, t, h, w), cell, same)
    for name, tensor in (("out", out), ("normed", normed)):
        if tensor is not None:
            expect(NAME, name, tensor, shape, contiguous=False, **same)
            expect_writable(NAME, name, tensor)
    if pictures is not None:
        expect(NAME, "pictures", pictures, (b, *shape[2:], 3), dtype=torch.uint8, device=buffer.device)
        if shape[1] != 3:
            raise OpError(f"{NAME}: argument pictures: expected a convolution to 3 channels, got {shape[1]}")
    if out is None and normed is None and pictures is None:
        raise OpError(f"{NAME}: argument out: expected out, normed or pictures, got None for all")
    dims = (
        ("batch", b), ("in", c), ("channels", o), ("frames", t), ("height", h), ("width", w), ("past", past),
        ("factors", "x".join(map(str, factors))), ("cell", cell), ("reflect", int(reflect)),
        ("noise", int(noise is not None)), ("residual", int(residual is not None)), ("out", int(out is not None)),
        ("normed", int(normed is not None)), ("pictures", int(pictures is not None)),
        ("layout", layout(buffer)), ("history_layout", layout(history)), ("weight_layout", layout(weight)),
        ("out_layout", "" if out is None else layout(out)),
        ("normed_layout", "" if normed is None else layout(normed)),
        ("residual_layout", "" if residual is None else layout(residual)),
    )  # fmt: skip
    return Spec(buffer.device.type, buffer.dtype, dims)


def _check_operands(bias, noise, noise_scale, residual, scale, shift, shape, convolved, cell, same) -> None:
    b, o, t, h, w = convolved
    if (noise is None) != (noise_scale is None):
        raise OpError(f"{NAME}: argument noise: expected noise and noise_scale together, got one of them")
    if (scale is None) != (shift is None):
        raise OpError(f"{NAME}: argument shift: expected scale and shift together, got one of them")
    wanted = {"bias": (bias, (o,)), "noise": (noise, (b, h, w)), "noise_scale": (noise_scale, (o,))}
    wanted |= {"scale": (scale, (shape[1],)), "shift": (shift, (shape[1],))}
    for name, (tensor, size) in wanted.items():
        if tensor is not None:
            expect(NAME, name, tensor, size, **same)
    if residual is not None:
        expect(NAME, "residual", residual, (b, -1, t, h, w), contiguous=False, **same)
        channels = residual.shape[1]
        if channels % cell or shape[1] % (channels // cell):
            raise OpError(
                f"{NAME}: argument residual: expected {cell} n channels where n divides {shape[1]}, got {channels}"
            )


def reference(
    buffer, history, weight, bias, noise, noise_scale, residual, scale, shift, out, normed, pictures,
    *, factors, drop, keep, first, reflect, eps,
) -> None:  # fmt: skip
    """3x3x3 convolution of T frames after their history, and what follows it: C channels become O = N p1 p2 p3.

    Args:
        buffer: [B, C, T + 2, H, W], floating: room for the history, then the frames. Written.
        history: [B, C, 1 or 2, H, W]. Written.
        weight, bias: [O, C, 3, 3, 3]; [O] or None.
        noise, noise_scale: [B, H, W] and [O], or both None.
        residual: [B, R, T, H, W] with R dividing O, or None.
        scale, shift: [N] of the norm, or both None.
        out, normed: [B, N, T p1 - drop, H p2, W p3], or None; pictures: uint8 [B, T p1 - drop, H p2, W p3, 3], or
            None. Written; at least one of the three is there.
        factors, drop: as those of ``depth_to_space``.
        keep: frames of the piece after which the history of the next call ends, 0 to T.
        first: whether there is no history yet.
        reflect: rows and columns mirrored at the border instead of zeros.
        eps: of the norm.
    """
    past, frames = history.shape[2], buffer.shape[2] - (TAPS - 1)
    x = buffer[:, :, past : past + frames]
    before = None if first else history
    y, kept = causal_convolution(x, weight, bias, before, past=past, keep=keep, reflect=reflect)
    if noise is not None:
        y = y + noise_scale.view(-1, 1, 1, 1) * noise[:, None, None]
    y = functional_depth_to_space(y, tuple(factors), drop)
    if residual is not None:
        added = functional_depth_to_space(residual, tuple(factors), drop)
        y = y + added.repeat(1, y.shape[1] // added.shape[1], 1, 1, 1)
    if normed is not None:
        normed.copy_(normed_silu(y, scale, shift, eps=eps))
    if pictures is not None:
        pictures.copy_(to_uint8(y))
    if out is not None:
        out.copy_(y)
    history.copy_(kept)


causal_conv3d = Op(
    f"{NAME}(Tensor(a!) buffer, Tensor(b!) history, Tensor weight, Tensor? bias, Tensor? noise, Tensor? noise_scale, "
    "Tensor? residual, Tensor? scale, Tensor? shift, Tensor(c!)? out, Tensor(d!)? normed, Tensor(e!)? pictures, "
    "*, int[] factors, int drop, int keep, bool first, bool reflect, float eps)",
    check=check,
    reference=reference,
    backends=(triton_kernels.backend(NAME), library_convolution.BACKEND),
)
