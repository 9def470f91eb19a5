"""``gate_norm_modulate``: the glue between two branches of a block, in one pass over the residual stream.

    x <- x + gate branch,   out = rms_norm(x) (1 + scale) + shift

Gate, scale and shift are per latent frame (AdaLN-single). Without a gate the branch is added as it is; without a
branch the op is norm and modulation alone; without ``out`` it is the gated residual alone.
"""

from __future__ import annotations

import torch

from rest_fast.ops import triton_kernels
from rest_fast.ops.dispatch import Op, OpError, Spec, expect, expect_float
from rest_fast.ops.qk_norm_rope_cache import rms_norm

NAME = "gate_norm_modulate"


def gated_residual(x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """x + gate branch: x, branch [B, N, W], gate [B, F, W] with F dividing N, or None. Differentiable."""
    if gate is None:
        return x + branch
    frames = gate.shape[1]
    return (x.unflatten(1, (frames, -1)) + branch.unflatten(1, (frames, -1)) * gate[:, :, None]).flatten(1, 2)


def norm_modulate(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """rms_norm(x) (1 + scale) + shift: x [B, N, W], scale and shift [B, F, W]. Differentiable."""
    y = rms_norm(x, None, eps).unflatten(1, (scale.shape[1], -1))
    return (y * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2).to(x.dtype)


def check(x, branch, gate, scale, shift, out, *, eps) -> Spec:
    expect_float(NAME, "x", x)
    expect(NAME, "x", x, (-1, -1, -1))
    lanes, tokens, width = x.shape
    if branch is not None:
        expect(NAME, "branch", branch, (lanes, tokens, width), dtype=x.dtype, device=x.device)
    if gate is not None and branch is None:
        raise OpError(f"{NAME}: argument branch: expected a tensor beside gate, got None")
    if out is not None:
        expect(NAME, "out", out, (lanes, tokens, width), dtype=x.dtype, device=x.device)
        if scale is None or shift is None:
            raise OpError(f"{NAME}: argument scale: expected scale and shift beside out, got None")
    for name, vector in (("gate", gate), ("scale", scale), ("shift", shift)):
        if vector is not None:
            frames = vector.shape[1] if vector.ndim == 3 else 0
            if frames == 0 or tokens % frames:
                raise OpError(
                    f"{NAME}: argument {name}: expected [{lanes}, F, {width}] with F dividing {tokens}, "
                    f"got {list(vector.shape)}"
                )
            expect(NAME, name, vector, (lanes, frames, width), dtype=x.dtype, device=x.device, contiguous=False)
    if scale is not None and shift is not None and scale.shape != shift.shape:
        raise OpError(f"{NAME}: argument shift: expected scale's shape {list(scale.shape)}, got {list(shift.shape)}")
    return Spec(x.device.type, x.dtype, (("lanes", lanes), ("tokens", tokens), ("width", width)))


def reference(x, branch, gate, scale, shift, out, *, eps) -> None:
    if branch is not None:
        x.copy_(gated_residual(x, branch, gate))
    if out is not None:
        out.copy_(norm_modulate(x, scale, shift, eps))


gate_norm_modulate = Op(
    f"{NAME}(Tensor(a!) x, Tensor? branch, Tensor? gate, Tensor? scale, Tensor? shift, Tensor(b!)? out, *, float eps)",
    check=check,
    reference=reference,
    backends=(triton_kernels.backend(NAME),),
)
