"""``gate_norm_modulate``: what stands between two branches of a block, in one pass over the residual stream.

    x <- x + gate branch,   out = rms_norm(x) (1 + scale) + shift

Gate, scale and shift are per latent frame (AdaLN-single). Without a gate the branch is added as it is; without a
branch the op is norm and modulation alone; without ``out`` it is the gated residual alone.

The norm is one of three: ``rms``; ``layer``, which takes the mean away first; and ``affine``, a LayerNorm that has
learned its own weight and bias, which are then scale and shift: out = layer_norm(x) scale + shift.

There are two rounding modes. ``fused`` computes everything in fp32 from the loaded values, norms the sum before it is
rounded, and rounds ``x`` and ``out`` once each. ``eager`` rounds where eager PyTorch, the functional reference, does:
the product, the sum, ``1 + scale`` and ``out``; and it norms the rounded ``x``. In fp32 and float64 the two are the
same formula.
"""

from __future__ import annotations

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, OpError, Spec, expect, expect_float
from rest_fast.ops.qk_norm_rope_cache import rms_norm

NAME = "gate_norm_modulate"
ROUNDINGS = ("fused", "eager")
NORMS = ("rms", "layer", "affine")
CUDA_ROW = 8192  # kMostChannels of csrc/cuda/gate_norm_modulate.cu


def gated_residual(x: torch.Tensor, branch: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """x + gate branch: x, branch [B, N, W], gate [B, F, W] with F dividing N, or None. Differentiable."""
    if gate is None:
        return x + branch
    frames = gate.shape[1]
    return (x.unflatten(1, (frames, -1)) + branch.unflatten(1, (frames, -1)) * gate[:, :, None]).flatten(1, 2)


def norm_modulate(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float, norm: str = "rms"
) -> torch.Tensor:
    """norm(x) (1 + scale) + shift, or affine without the 1: x [B, N, W], scale, shift [B, F, W]. Differentiable."""
    y = (rms_norm(x, None, eps) if norm == "rms" else layer_norm(x, eps)).unflatten(1, (scale.shape[1], -1))
    factor = scale if norm == "affine" else 1 + scale
    return (y * factor[:, :, None] + shift[:, :, None]).flatten(1, 2).to(x.dtype)


def layer_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm over the last axis, without a weight, computed and returned in at least fp32."""
    wide = x.double() if x.dtype == torch.float64 else x.float()
    return rms_norm(wide - wide.mean(-1, keepdim=True), None, eps)


def check(x, branch, gate, scale, shift, out, *, eps, rounding="fused", norm="rms") -> Spec:
    for name, word, words in (("rounding", rounding, ROUNDINGS), ("norm", norm, NORMS)):
        if word not in words:
            raise OpError(f"{NAME}: argument {name}: expected one of {list(words)}, got {word!r}")
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
            if width > 1 and vector.stride(-1) != 1:
                raise OpError(
                    f"{NAME}: argument {name}: expected a contiguous last dimension, got strides {vector.stride()}"
                )
    if scale is not None and shift is not None and scale.shape != shift.shape:
        raise OpError(f"{NAME}: argument shift: expected scale's shape {list(scale.shape)}, got {list(shift.shape)}")
    return Spec(x.device.type, x.dtype, (("lanes", lanes), ("tokens", tokens), ("width", width)))


def reference(
    x: torch.Tensor,
    branch: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    out: torch.Tensor | None,
    *,
    eps: float,
    rounding: str = "fused",
    norm: str = "rms",
) -> None:
    """x <- x + gate branch, then out = norm(x) (1 + scale) + shift, for B lanes of N tokens, W channels wide.

    Args:
        x: [B, N, W], floating. Written where there is a branch.
        branch: [B, N, W], or None: x stays as it is.
        gate: [B, F, W] with F dividing N, rows contiguous, or None: the branch is added as it is.
        scale, shift: like gate, of one shape; required if there is an out.
        out: [B, N, W], or None: no norm. Written.
        eps: of the norm.
        rounding: ``fused`` or ``eager``; see the module.
        norm: ``rms``, ``layer``, or ``affine``, a LayerNorm whose weight is ``scale`` itself.
    """
    total = x
    if rounding == "fused" and x.dtype != torch.float64:
        total = x.float()
        branch, gate, scale, shift = (None if t is None else t.float() for t in (branch, gate, scale, shift))
    if branch is not None:
        total = gated_residual(total, branch, gate)
        x.copy_(total)
    if out is not None:
        out.copy_(norm_modulate(total, scale, shift, eps, norm))


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(vector: torch.Tensor | None) -> tuple[int, int]:
    """The strides of lane and frame."""
    return (0, 0) if vector is None else (vector.stride(0), vector.stride(1))


def _arguments(x, branch, gate, scale, shift, out, *, eps, rounding="fused", norm="rms") -> tuple:
    """Those that csrc/ops/gate_norm_modulate.h lists: addresses, sizes, strides."""
    return (
        *(_address(t) for t in (x, branch, gate, scale, shift, out)),
        *x.shape,
        1 if gate is None else gate.shape[1],
        1 if scale is None else scale.shape[1],
        *_strides(gate),
        *_strides(scale),
        *_strides(shift),
        eps,
        ROUNDINGS.index(rounding),
        NORMS.index(norm),
        native.DTYPES[x.dtype],
    )


def _cuda_unfit(spec: Spec) -> str:
    width = spec.get("width") or 0
    return f"rows of at most {CUDA_ROW} channels, got {width}" if width > CUDA_ROW else ""


gate_norm_modulate = Op(
    f"{NAME}(Tensor(a!) x, Tensor? branch, Tensor? gate, Tensor? scale, Tensor? shift, Tensor(b!)? out, *, "
    'float eps, str rounding="fused", str norm="rms")',
    check=check,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, measured="ops_cpu.json"),
        native.cuda_backend(NAME, _arguments, _cuda_unfit),
    ),
)
