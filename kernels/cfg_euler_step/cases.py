"""The launches of rest-512 (fp32 latents, velocities of the model's dtype) and of the demo."""

from rest_fast.kernels.cfg_euler_step import RUN, WARPS
from rest_fast.kernels.cfg_euler_step.kernel import cfg_euler_step_kernel
from rest_fast.kernels.offline import Case


def case(name: str, latents: str, velocity: str) -> Case:
    kinds = [f"*{latents}", f"*{velocity}", f"*{velocity}", "*fp32", "*fp32", "i32"]
    names = ["z", "v_cond", "v_uncond", "guidance", "dt", "numel"]
    return Case(name, cfg_euler_step_kernel, dict(zip(names, kinds)), {"BLOCK": RUN}, num_warps=WARPS)


# The number of sessions is the size of the grid.
CASES = [
    case("rest-512, fp32 latents, bf16", "fp32", "bf16"),
    case("rest-512, fp32 latents, fp16", "fp32", "fp16"),
    case("rest-512, all bf16", "bf16", "bf16"),
    case("demo, all fp32", "fp32", "fp32"),
]
