"""What stands between two branches of a block: gated residual, norm and modulation in one pass.

    x <- x + gate branch,   out = norm(x) (1 + scale) + shift

The norm is the RMS norm, a LayerNorm, or an affine LayerNorm, whose weight is scale itself.

One program holds one token's row: x and branch are read once, x and out written once, where eager PyTorch runs about
ten kernels. A missing gate, branch or out costs nothing, since each combination is compiled separately. The vectors are
read in place, by their strides of lane and frame (0 for a vector that lanes share).
Rounding: ``fused`` computes in fp32 and rounds x and out once each; ``eager`` rounds product, sum and 1 + scale, too,
where eager PyTorch does, and norms the rounded x. Limits: W at most ``rows.WIDEST``.
"""

from __future__ import annotations

from typing import Any

import torch

from rest_fast.kernels import rows as tile
from rest_fast.kernels.gate_norm_modulate.kernel import gate_norm_modulate_kernel


def plan(width: int) -> dict[str, int]:
    """The constants of a launch."""
    block = tile.block(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": tile.warps(block)}


def supports(spec: Any) -> tuple[bool, str]:
    return tile.fits(spec)


def layout(vector: torch.Tensor | None) -> tuple[int, int, int]:
    """Frames, lane stride and frame stride of a modulation vector [B, F, W]."""
    return (1, 0, 0) if vector is None else (vector.shape[1], vector.stride(0), vector.stride(1))


def launch(
    x: torch.Tensor,  # [B, N, W], written where there is a branch
    branch: torch.Tensor | None,  # [B, N, W]
    gate: torch.Tensor | None,  # [B, F, W], any lane and frame strides, as the next two
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    out: torch.Tensor | None,  # [B, N, W], written
    *,
    eps: float,
    rounding: str = "fused",
    norm: str = "rms",
) -> None:
    lanes, tokens, width = x.shape
    if lanes * tokens == 0 or (branch is None and out is None):
        return
    gate_frames, *gate_strides = layout(gate)
    frames, *scale_strides = layout(scale)
    _, *shift_strides = layout(shift)
    with tile.on(x):
        gate_norm_modulate_kernel[(lanes * tokens,)](
            *(x, branch, gate, scale, shift, out),
            *(tokens, gate_frames, frames),
            *(*gate_strides, *scale_strides, *shift_strides),
            eps,
            EAGER=rounding == "eager",
            NORM=norm,
            **plan(width),
        )
