"""``cfg_euler_step``: joint guidance and the Euler update of the rectified flow.

    v = v_u + g (v_c - v_u),   z <- z + (t_next - t) v

with velocity ``v = eps - z_0``, so that z_t = (1 - t) z_0 + t eps (paper section 3.1). Guidance and step size are given
for each session, on the device, so the sessions of one launch may be at different steps.

There is one rounding mode: fp32 inside whatever the dtypes, and z rounded once, as the functional reference does.
"""

from __future__ import annotations

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, Spec, expect, expect_float

NAME = "cfg_euler_step"


def guided_euler(
    z: torch.Tensor,  # [S, N, C]
    v_cond: torch.Tensor,  # [S, N, C]
    v_uncond: torch.Tensor,  # [S, N, C]
    guidance: torch.Tensor,  # fp32 [S]
    dt: torch.Tensor,  # fp32 [S]: t_next - t, negative
) -> torch.Tensor:
    """Functional reference: the next z, in the dtype of ``z``, computed in at least fp32. Differentiable."""
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    v_c, v_u = v_cond.to(wide), v_uncond.to(wide)
    v = v_u + guidance[:, None, None].to(wide) * (v_c - v_u)
    return (z.to(wide) + dt[:, None, None].to(wide) * v).to(z.dtype)


def check(z, v_cond, v_uncond, guidance, dt) -> Spec:
    expect_float(NAME, "z", z)
    expect(NAME, "z", z, (-1, -1, -1))
    expect_float(NAME, "v_cond", v_cond)
    expect(NAME, "v_cond", v_cond, tuple(z.shape), device=z.device)
    expect(NAME, "v_uncond", v_uncond, tuple(z.shape), dtype=v_cond.dtype, device=z.device)
    for name, vector in (("guidance", guidance), ("dt", dt)):
        expect(NAME, name, vector, (z.shape[0],), dtype=torch.float32, device=z.device)
    sessions, tokens, channels = z.shape
    dims = (("sessions", sessions), ("numel", tokens * channels), ("velocity", str(v_cond.dtype)))
    return Spec(z.device.type, z.dtype, dims)


def reference(
    z: torch.Tensor, v_cond: torch.Tensor, v_uncond: torch.Tensor, guidance: torch.Tensor, dt: torch.Tensor
) -> None:
    """z <- z + dt (v_uncond + guidance (v_cond - v_uncond)), in place, for S sessions of N tokens.

    Args:
        z: [S, N, C], floating. Written.
        v_cond, v_uncond: [S, N, C], floating, of one dtype.
        guidance, dt: float32 [S].
    Raises: :class:`rest_fast.OpError` for other shapes, dtypes or devices, as every op.
    """
    z.copy_(guided_euler(z, v_cond, v_uncond, guidance, dt))


def _arguments(z, v_cond, v_uncond, guidance, dt) -> tuple:
    """Those that csrc/ops/cfg_euler_step.h lists: addresses, sizes, strides."""
    return (
        *(t.data_ptr() for t in (z, v_cond, v_uncond, guidance, dt)),
        z.shape[0],
        z.shape[1] * z.shape[2],
        native.DTYPES[z.dtype],
        native.DTYPES[v_cond.dtype],
    )


def _unfit(spec: Spec) -> str:
    wide = spec.get("velocity") == str(torch.float64)
    return "velocity dtype torch.float64 is not compiled in" if wide else ""


cfg_euler_step = Op(
    f"{NAME}(Tensor(a!) z, Tensor v_cond, Tensor v_uncond, Tensor guidance, Tensor dt)",
    check=check,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, _unfit, measured="ops_cpu.json"),
        native.cuda_backend(NAME, _arguments, _unfit),
    ),
)
