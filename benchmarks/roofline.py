"""The least time that a call can take on this machine: its bytes at the rate of a copy, its FLOP at that of a GEMM.

Both rates are measured in the run that uses them, since no data sheet knows what else the machine is doing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks import graphs
from rest_fast.models.linear import linear

TRIES = 5


@dataclass(frozen=True)
class Work:
    """What no implementation can avoid: every input read once, every output written once, every product formed."""

    bytes: int
    flop: int = 0


@dataclass(frozen=True)
class Roof:
    """Rates of a device: bytes read plus written per second, FLOP per second of a large matrix product."""

    copy: float
    gemm: float

    def least_us(self, work: Work) -> float:
        return 1e6 * max(work.bytes / self.copy, work.flop / self.gemm)

    def share(self, work: Work, median_us: float) -> float:
        """0..1, of the better of both limits; above 1 where the data were in a cache."""
        return round(self.least_us(work) / median_us, 3)

    def about(self) -> dict[str, float]:
        """For the stored result."""
        return {"copy_gb_per_s": round(self.copy / 1e9, 1), "gemm_gflop_per_s": round(self.gemm / 1e9, 1)}


def measure(device: torch.device, dtype: torch.dtype, *, megabytes: int = 256, side: int | None = None) -> Roof:
    """Best of several rounds of large copies, and of products of square matrices in this dtype, by PyTorch's library
    and by oneDNN: on AMD processors the former takes twice as long (docs/measured_facts.md), and would be no roof."""
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    n = side or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    layer = torch.nn.Linear(n, n, bias=False, device=device, dtype=dtype).requires_grad_(False)
    copied, _ = graphs.interleaved({"copy": lambda i: target.copy_(source)}, 1, rounds=TRIES)
    products = {"mm": lambda i: torch.mm(a, b, out=out), "linear": lambda i: linear(layer, a)}
    multiplied, _ = graphs.interleaved(products, 1, rounds=TRIES)
    copy, gemm = (1e-6 * min(us for found in times.values() for us in found) for times in (copied, multiplied))
    return Roof(2 * source.numel() / copy, 2 * n**3 / gemm)
