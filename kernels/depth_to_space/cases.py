"""The upsamplers of the LTX-Video decoder at 512 x 512 (0.9.1 and 0.9.5 alike) and its patches: one latent, 8 frames.

More latents in a call, or a batch, are a larger grid and the same code.
"""

import torch

from rest_fast.kernels.depth_to_space import arguments
from rest_fast.kernels.depth_to_space.kernel import depth_to_space_kernel
from rest_fast.kernels.offline import Case, as_launched

UPSAMPLERS = ((4096, 1, 16), (2048, 2, 32), (1024, 4, 64))  # channels, frames, height and width
RESIDUAL = (1024, 1, 16)  # the input of the first, on its way past the convolution
LAST, PLANAR = torch.channels_last_3d, torch.contiguous_format


def case(
    shape: tuple[int, int, int],
    factors: tuple[int, int, int] = (2, 2, 2),
    ends: tuple[torch.memory_format, torch.memory_format] = (LAST, LAST),
    *,
    drop: int = 0,
    sideways: bool = False,
) -> Case:
    (c, t, size), (p1, p2, p3) = shape, factors
    sizes = (1, c // (p1 * p2 * p3), t * p1 - drop, size * p2, size * p3)
    x = torch.empty(1, c, t, size, size, dtype=torch.bfloat16, device="meta").to(memory_format=ends[0])
    out = torch.empty(sizes, dtype=torch.bfloat16, device="meta").to(memory_format=ends[1])
    if sideways:
        x, out = x.transpose(3, 4), out.transpose(3, 4)
    layout = " to ".join("channels last" if end == LAST else "planes" for end in dict.fromkeys(ends))
    more = (", first call" if drop else "") + (", sideways" if sideways else "")
    name = f"{c} x {t} x {size} x {size} by {p1} {p2} {p3}, {layout}{more}, 16-bit"
    return as_launched(name, depth_to_space_kernel, arguments(x, out, list(factors), drop))


CASES = [
    *(case(shape) for shape in UPSAMPLERS),
    case(RESIDUAL),
    *(case(shape, drop=1) for shape in (UPSAMPLERS[0], RESIDUAL)),
    *(case(shape, ends=(PLANAR, PLANAR)) for shape in UPSAMPLERS),
    case(UPSAMPLERS[0], ends=(PLANAR, PLANAR), drop=1),
    case(UPSAMPLERS[-1], ends=(LAST, PLANAR)),
    case(UPSAMPLERS[-1], ends=(PLANAR, LAST)),
    case((48, 8, 128), (1, 4, 4), (PLANAR, PLANAR), sideways=True),
    case((48, 8, 128), (1, 4, 4), (LAST, PLANAR), sideways=True),
    case((512, 1, 16), (2, 1, 1)),
    case((512, 1, 16), (1, 2, 2)),
    case((768, 1, 16), (2, 3, 2), (PLANAR, PLANAR)),
]
