"""``causal_conv3d``: 3x3x3 convolution over time, rows and columns that sees only the present and two past frames.

In place, the temporal history lives in the buffer that the convolution reads: frames 0 and 1 of ``buffer`` are
history, the producer has written the rest, and the op ends by moving the last two frames to the front. Two results are
possible, each optional: ``out`` = conv + bias (+ residual), and ``normed`` = silu(pixel_norm(that)), what the next
convolution reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rest_fast.ops.dispatch import Op, OpError, Spec, expect, expect_float
from rest_fast.ops.layouts import expect_writable
from rest_fast.ops.pixel_norm_silu import normed_silu

NAME = "causal_conv3d"
HISTORY = 2  # frames of a kernel of three that lie in the past


def causal_convolution(
    x: torch.Tensor,  # [B, C, T, H, W]
    weight: torch.Tensor,  # [O, C, 3, k, k] with k 1 or 3
    bias: torch.Tensor | None,  # [O]
    history: torch.Tensor | None,  # [B, C, 2, H, W]; None: the first frame, twice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Functional reference: (conv [B, O, T, H, W], history for the next call). Differentiable."""
    if history is None:
        history = x[:, :, :1].expand(-1, -1, HISTORY, -1, -1)
    buffer = torch.cat([history, x], 2)
    side = weight.shape[-1] // 2
    return F.conv3d(buffer, weight, bias, padding=(0, side, side)), buffer[:, :, -HISTORY:]


def check(buffer, weight, bias, residual, out, normed, *, eps) -> Spec:
    expect_float(NAME, "buffer", buffer)
    expect(NAME, "buffer", buffer, (-1, -1, -1, -1, -1), contiguous=False)
    expect_writable(NAME, "buffer", buffer)
    b, c, t, h, w = buffer.shape
    if t <= HISTORY:
        raise OpError(f"{NAME}: argument buffer: expected more than {HISTORY} frames, got {t}")
    expect(NAME, "weight", weight, (-1, c, 3, 3, 3), dtype=buffer.dtype, device=buffer.device, contiguous=False)
    shape = (b, weight.shape[0], t - HISTORY, h, w)
    if bias is not None:
        expect(NAME, "bias", bias, shape[1:2], dtype=buffer.dtype, device=buffer.device)
    for name, tensor in (("residual", residual), ("out", out), ("normed", normed)):
        if tensor is not None:
            expect(NAME, name, tensor, shape, dtype=buffer.dtype, device=buffer.device, contiguous=False)
            if name != "residual":
                expect_writable(NAME, name, tensor)
    if out is None and normed is None:
        raise OpError(f"{NAME}: argument out: expected out or normed, got None for both")
    return Spec(
        buffer.device.type,
        buffer.dtype,
        (("batch", b), ("in", c), ("channels", shape[1]), ("frames", shape[2]), ("height", h), ("width", w)),
    )


def reference(buffer, weight, bias, residual, out, normed, *, eps) -> None:
    y = F.conv3d(buffer, weight, bias, padding=(0, 1, 1))
    if residual is not None:
        y = y + residual
    if normed is not None:
        normed.copy_(normed_silu(y, eps=eps))
    if out is not None:
        out.copy_(y)
    buffer[:, :, :HISTORY] = buffer[:, :, -HISTORY:].clone()  # the ranges may overlap


causal_conv3d = Op(
    f"{NAME}(Tensor(a!) buffer, Tensor weight, Tensor? bias, Tensor? residual, Tensor(b!)? out, Tensor(c!)? normed, "
    "*, float eps)",
    check=check,
    reference=reference,
)
