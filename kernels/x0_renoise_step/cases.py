"""The launches of FlashHead (fp32 latents, velocities of the model's dtype), and of an fp32 model."""

from rest_fast.kernels.offline import Case
from rest_fast.kernels.x0_renoise_step import RUN, WARPS
from rest_fast.kernels.x0_renoise_step.kernel import x0_renoise_step_kernel


def case(name: str, latents: str, velocity: str) -> Case:
    kinds = [f"*{latents}", f"*{velocity}", f"*{latents}", "*fp32", "*fp32", "*i32", "i32", "i32"]
    names = ["z", "velocity", "noise", "now", "after", "held", "numel", "channels"]
    return Case(name, x0_renoise_step_kernel, dict(zip(names, kinds)), {"BLOCK": RUN}, num_warps=WARPS)


# The number of sessions is the size of the grid.
CASES = [
    case("flashhead, fp32 latents, bf16", "fp32", "bf16"),
    case("flashhead, fp32 latents, fp16", "fp32", "fp16"),
    case("flashhead, all fp32", "fp32", "fp32"),
]
