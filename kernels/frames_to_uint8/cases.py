"""Frames of 512 x 512, as many as a latent (8) gives; more frames are a larger grid and the same code."""

import torch

from rest_fast.kernels.frames_to_uint8 import arguments
from rest_fast.kernels.frames_to_uint8.kernel import frames_to_uint8_kernel
from rest_fast.kernels.offline import TYPES, Case, as_launched


def case(dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format, narrow: str = "") -> Case:
    x = torch.empty(1, 3, 8, 512, 512, dtype=dtype, device="meta").to(memory_format=layout)
    out = torch.empty(1, 8, 512, 512, 3, dtype=torch.uint8, device="meta")
    name = f"3 x 8 x 512 x 512, {'channels last' if narrow else 'planes'}, {TYPES[dtype][1:]}"
    return as_launched(name, frames_to_uint8_kernel, arguments(x, out), narrow=narrow)


CASES = [
    case(torch.bfloat16),
    case(torch.float16),
    case(torch.float32),
    case(torch.bfloat16, torch.channels_last_3d, "three channels of a pixel make no 16 bytes"),
]
