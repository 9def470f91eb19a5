"""The steps of a sampler: elementwise passes over latents ``z``, in place, with numbers of each session."""

from __future__ import annotations

import torch

from tests.ops import calls
from tests.ops.cases import cfg_euler_step, x0_renoise_step

STEPS = {"cfg_euler_step": cfg_euler_step, "x0_renoise_step": x0_renoise_step}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def moving(name: str, **sizes: tuple[int, ...]) -> calls.Call:
    """A valid call in which no token stays."""
    return calls.VALID[name](**sizes, **({"held": (0, 0, 0)} if name == "x0_renoise_step" else {}))


def numbers(call: calls.Call) -> list[str]:
    """The arguments that a step computes with: all but counts."""
    return [name for name, value in call.items() if value.is_floating_point()]


def placed(x: torch.Tensor, offset: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(x, what lies before and behind it, all 77): a copy that begins ``offset`` numbers into its memory."""
    memory = torch.full((x.numel() + 8,), 77.0, dtype=x.dtype, device=x.device)
    middle = memory[offset : offset + x.numel()]
    return middle.view(x.shape).copy_(x), (memory[:offset], memory[offset + x.numel() :])
