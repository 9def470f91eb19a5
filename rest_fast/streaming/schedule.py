"""Noise levels: the sampler's sigmas, and CANS, the chunk-wise asynchronous noise of training (paper section 3.4)."""

from __future__ import annotations

import math

import torch

TABLE = 1000  # timesteps of the CANS table


def sigmas(steps: int, shift_mu: float) -> torch.Tensor:
    """fp64 [steps + 1], from 1 down to 0: uniform u, shifted to s u / (1 + (s - 1) u) with s = exp(shift_mu)."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    s = math.exp(shift_mu)
    return s * u / (1 + (s - 1) * u)


def logit_normal_table(mu: float, sigma: float, size: int = TABLE) -> torch.Tensor:
    """fp64 [size], ascending: the quantiles (i + 1/2) / size of the shifted logit-normal distribution."""
    quantile = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    return torch.sigmoid(mu + sigma * torch.special.ndtri(quantile))


def draw_cans(
    table: torch.Tensor,
    batch: int,
    chunks: int,
    chunk: int,
    generator: torch.Generator | None = None,
    synchronous: float = 0.5,
) -> torch.Tensor:
    """Timesteps of a training batch, fp32 [batch, 1 + chunks x chunk]; frame 0, the reference, at 0.

    Chunk i of n draws from the i-th n-th of the table, so t_1 < t_2 < ...; with probability ``synchronous`` ("motion
    prior dropout") all chunks of a clip share one t from the whole table.
    """
    size = table.shape[0]
    uniform = torch.rand(batch, chunks, generator=generator, dtype=torch.float64)
    part = (torch.arange(chunks, dtype=torch.float64) + uniform) / chunks
    shared = torch.rand(batch, 1, generator=generator, dtype=torch.float64).expand(-1, chunks)
    together = torch.rand(batch, 1, generator=generator) < synchronous
    index = (torch.where(together, shared, part) * size).long().clamp(max=size - 1)
    t = table[index].repeat_interleave(chunk, 1)
    return torch.cat([torch.zeros(batch, 1, dtype=t.dtype), t], 1).float()
