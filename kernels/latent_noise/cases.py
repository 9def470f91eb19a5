"""The latents of rest-512 and of the demo, and a count that is no multiple of anything."""

from rest_fast.kernels.latent_noise import BLOCKS, WARPS
from rest_fast.kernels.latent_noise.kernel import latent_noise_kernel
from rest_fast.kernels.offline import Case

ARGUMENTS = {"out": "*fp32", "words": "*i32", "count": "i32"}


def case(name: str, aligned: tuple[str, ...] | None = None) -> Case:
    narrow = "a program reads five words, each by itself"
    constants = {"BLOCKS": BLOCKS}
    return Case(name, latent_noise_kernel, ARGUMENTS, constants, num_warps=WARPS, aligned=aligned, narrow=narrow)


# The numbers of frames and of programs are the size of the grid.
CASES = [case("rest-512 and demo"), case("any count", ("out", "words"))]
