"""``x0_renoise_step``: a step of a distilled flow that predicts the clean latents and mixes fresh noise in again.

    z_0 = z - t v,   z <- (1 - t_next) z_0 + t_next noise

with velocity ``v = eps - z_0``. A window of latents begins with those of the motion, which are clean and stay as they
are: how many tokens they take is given for each session, on the device, as are the noise levels. So sessions at
different steps, and those whose stream has just begun, share a launch. (SoulX-FlashHead, arXiv 2602.07449.)

There is one rounding mode: fp32 inside whatever the dtypes, and z rounded once, as the functional reference does.
"""

from __future__ import annotations

import torch

from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, Spec, expect, expect_float, expect_range

NAME = "x0_renoise_step"


def renoised(
    z: torch.Tensor,  # [S, N, C]
    velocity: torch.Tensor,  # [S, N, C]
    noise: torch.Tensor,  # [S, N, C]
    now: torch.Tensor,  # fp32 [S]: t, the noise level of z
    after: torch.Tensor,  # fp32 [S]: t_next
    held: torch.Tensor,  # int32 [S]: tokens at the start that stay
) -> torch.Tensor:
    """Functional reference: the next z, in the dtype of ``z``, computed in at least fp32. Differentiable."""
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    t, t_next = (level[:, None, None].to(wide) for level in (now, after))
    clean = z.to(wide) - t * velocity.to(wide)
    moved = (1 - t_next) * clean + t_next * noise.to(wide)
    stays = torch.arange(z.shape[1], device=z.device) < held[:, None]
    return torch.where(stays[:, :, None], z, moved.to(z.dtype))


def check(z, velocity, noise, now, after, held) -> Spec:
    expect_float(NAME, "z", z)
    expect(NAME, "z", z, (-1, -1, -1))
    expect_float(NAME, "velocity", velocity)
    expect(NAME, "velocity", velocity, tuple(z.shape), device=z.device)
    expect(NAME, "noise", noise, tuple(z.shape), dtype=z.dtype, device=z.device)
    for name, vector in (("now", now), ("after", after)):
        expect(NAME, name, vector, (z.shape[0],), dtype=torch.float32, device=z.device)
    expect(NAME, "held", held, (z.shape[0],), dtype=torch.int32, device=z.device)
    sessions, tokens, channels = z.shape
    dims = (("sessions", sessions), ("tokens", tokens), ("channels", channels), ("velocity", str(velocity.dtype)))
    return Spec(z.device.type, z.dtype, dims)


def ranges(z, velocity, noise, now, after, held) -> None:
    if z.shape[0]:
        expect_range(NAME, "held", held, 0, z.shape[1])


def reference(
    z: torch.Tensor,
    velocity: torch.Tensor,
    noise: torch.Tensor,
    now: torch.Tensor,
    after: torch.Tensor,
    held: torch.Tensor,
) -> None:
    """z <- (1 - after) (z - now velocity) + after noise, in place, for S sessions of N tokens, from token held on.

    Args:
        z: [S, N, C], floating. Written, but for the first ``held`` tokens of each session.
        velocity: [S, N, C], floating.
        noise: [S, N, C], of the dtype of z.
        now, after: float32 [S], noise levels before and behind the step.
        held: int32 [S] in 0..N.
    Raises: :class:`rest_fast.OpError` for other shapes, dtypes or devices, as every op.
    """
    z.copy_(renoised(z, velocity, noise, now, after, held))


def _arguments(z, velocity, noise, now, after, held) -> tuple:
    """Those that csrc/ops/x0_renoise_step.h lists: addresses, sizes, strides."""
    return (
        *(t.data_ptr() for t in (z, velocity, noise, now, after, held)),
        *z.shape,
        native.DTYPES[z.dtype],
        native.DTYPES[velocity.dtype],
    )


def _unfit(spec: Spec) -> str:
    wide = spec.get("velocity") == str(torch.float64)
    return "velocity dtype torch.float64 is not compiled in" if wide else ""


x0_renoise_step = Op(
    f"{NAME}(Tensor(a!) z, Tensor velocity, Tensor noise, Tensor now, Tensor after, Tensor held)",
    check=check,
    ranges=ranges,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, _unfit),
        native.cuda_backend(NAME, _arguments, _unfit),
    ),
)
