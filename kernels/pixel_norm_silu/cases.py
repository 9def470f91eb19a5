"""The norms of the LTX-Video decoder at 512 x 512 (0.9.1 and 0.9.5 alike): one latent, 8 frames, at each stage.

More latents in a call, or a batch, are a larger grid and the same code.
"""

import torch

from rest_fast.kernels.offline import TYPES, Case, as_launched
from rest_fast.kernels.pixel_norm_silu import arguments
from rest_fast.kernels.pixel_norm_silu.kernel import pixel_norm_silu_kernel

STAGES = ((1024, 1, 16), (512, 2, 32), (256, 4, 64), (128, 8, 128))  # channels, frames, height and width
LAST, PLANAR = torch.channels_last_3d, torch.contiguous_format
HISTORY = 2  # frames in front of a convolution's input, in the same buffer


def case(
    stage: tuple[int, int, int],
    ends: tuple[torch.memory_format, torch.memory_format],
    dtype: torch.dtype = torch.bfloat16,
    modulated: bool = True,
    halo: int = 0,
) -> Case:
    """``halo``: rows and columns that the convolution's input has around each picture."""
    c, t, size = stage
    x = torch.empty(1, c, t, size, size, dtype=dtype, device="meta").to(memory_format=ends[0])
    around = (1, c, HISTORY + t, size + 2 * halo, size + 2 * halo)
    buffer = torch.empty(around, dtype=dtype, device="meta").to(memory_format=ends[1])
    out = buffer[:, :, HISTORY:, halo : halo + size, halo : halo + size]
    vector = torch.empty(c, dtype=dtype, device="meta") if modulated else None
    layout = " to ".join("channels last" if end == LAST else "planes" for end in dict.fromkeys(ends))
    more = ("" if modulated else ", no modulation") + (f", halo of {halo}" if halo else "")
    name = f"{c} x {t} x {size} x {size}, {layout}, {TYPES[dtype][1:]}{more}"
    return as_launched(name, pixel_norm_silu_kernel, arguments(x, vector, vector, out, 1e-8))


CASES = [
    *(case(stage, (LAST, LAST)) for stage in STAGES),
    *(case(stage, (PLANAR, PLANAR)) for stage in STAGES),
    case(STAGES[0], (PLANAR, LAST)),
    case(STAGES[-1], (LAST, PLANAR)),
    case(STAGES[-1], (LAST, LAST), modulated=False),
    case(STAGES[-1], (LAST, LAST), torch.float16),
    case(STAGES[-1], (LAST, LAST), torch.float32),
    case(STAGES[-1], (LAST, LAST), halo=1),
    case((8192, 1, 16), (LAST, LAST)),
]
