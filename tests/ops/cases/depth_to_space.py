"""Cases of ``depth_to_space``, for the tests of its kernels."""

from __future__ import annotations

import torch

FACTORS = [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 4, 4), (2, 3, 2), (3, 1, 2), (1, 2, 3), (1, 1, 1), (1, 8, 1)]


def numbered(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Bits that differ from element to element, NaN patterns among them."""
    size = torch.empty((), dtype=dtype).element_size()
    count = torch.Size(shape).numel()
    bits = (torch.arange(count * size) * 37 % 251).to(torch.uint8)
    return bits.view(dtype).view(shape) if size > 1 else bits.view(shape).to(dtype)
