"""The demo model's VAE: a linear space-time basis per latent position, and a causal post-net behind its decoder.

A block of 8 frames x 32 x 32 pixels is projected frame by frame on ``spatial_rank`` components, and the 8 x rank
coefficients on ``latent_channels``; each position has its own bases, since a portrait's parts stay in place. The first
frame of a clip stands for a block of 8 copies. The bases are orthonormal, so the decoder is the transpose; what blocks
cannot share (seams, steps at latent borders) the post-net repairs.
"""

from __future__ import annotations

import torch
from torch import nn

from rest_fast.config import TEMPORAL, BasisVAEConfig
from rest_fast.models.vae import CausalConv3d, ResBlock, StreamState
from rest_fast.ops import functional as ops


class SpaceTimeBasis(nn.Module):
    """Orthonormal bases per position P = h w: what one block of pixels keeps."""

    def __init__(self, config: BasisVAEConfig, grid: tuple[int, int]):
        super().__init__()
        positions, pixels = grid[0] * grid[1], 3 * config.patch_size**2
        self.patch, self.grid = config.patch_size, grid
        rank, channels = config.spatial_rank, config.latent_channels
        self.mean = nn.Parameter(torch.zeros(positions, pixels))
        spatial = torch.linalg.qr(torch.randn(positions, pixels, rank))[0]
        temporal = torch.linalg.qr(torch.randn(positions, TEMPORAL * rank, channels))[0]
        self.spatial = nn.Parameter(spatial.contiguous())  # [P, pixels, rank]
        self.temporal = nn.Parameter(temporal.contiguous())  # [P, 8 rank, channels]
        self.scale = nn.Parameter(torch.ones(positions, channels))  # coefficient = latent x scale

    def blocks(self, video: torch.Tensor) -> torch.Tensor:
        """[B, 3, 8n, H, W] -> [B, n, P, 8, pixels]."""
        p = self.patch
        x = ops.fold_channels(video, (1, p, p)).unflatten(2, (-1, TEMPORAL))  # [B, pixels, n, 8, h, w]
        return x.flatten(4).permute(0, 2, 4, 3, 1)

    def pictures(self, blocks: torch.Tensor) -> torch.Tensor:
        """[B, n, P, 8, pixels] -> [B, 3, 8n, H, W]."""
        x = blocks.permute(0, 4, 1, 3, 2).flatten(2, 3).unflatten(-1, self.grid)
        return ops.unfold_channels(x, (1, self.patch, self.patch))

    def project(self, blocks: torch.Tensor) -> torch.Tensor:
        """[B, n, P, 8, pixels] -> latents [B, C, n, h, w]."""
        frames = torch.einsum("bnpfx,pxr->bnpfr", blocks - self.mean[:, None], self.spatial)
        latent = torch.einsum("bnpk,pkc->bnpc", frames.flatten(3), self.temporal) / self.scale
        return latent.permute(0, 3, 1, 2).unflatten(-1, self.grid)

    def expand(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, n, h, w] -> [B, n, P, 8, pixels]."""
        latent = latents.flatten(3).permute(0, 2, 3, 1) * self.scale
        frames = torch.einsum("bnpc,pkc->bnpk", latent, self.temporal).unflatten(-1, (TEMPORAL, -1))
        return torch.einsum("bnpfr,pxr->bnpfx", frames, self.spatial) + self.mean[:, None]


class BasisEncoder(nn.Module):
    """[B, 3, 1 + 8n, H, W] -> [B, C, 1 + n, h, w]."""

    def __init__(self, basis: SpaceTimeBasis):
        super().__init__()
        self.basis = basis

    def forward(self, video: torch.Tensor, state: StreamState) -> torch.Tensor:
        if not state.started:
            first = video[:, :, :1].expand(-1, -1, TEMPORAL - 1, -1, -1)
            video = torch.cat([first, video], 2)
        return self.basis.project(self.basis.blocks(video))


class PostNet(nn.Module):
    """Causal convolutional repair of the basis picture; knows where it is through a table of positions."""

    def __init__(self, config: BasisVAEConfig, size: tuple[int, int]):
        super().__init__()
        t, h, w = self.fold = config.post_patch
        folded, channels = 3 * t * h * w, config.post_channels
        self.eps = config.post_norm_eps
        self.conv_in = CausalConv3d(folded, channels)
        self.position = nn.Parameter(torch.zeros(channels, 1, size[0] // h, size[1] // w))
        self.blocks = nn.ModuleList(ResBlock(channels, self.eps) for _ in range(config.post_blocks))
        self.conv_out = CausalConv3d(channels, folded)
        nn.init.zeros_(self.conv_out.weight)  # starts as the identity
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, picture: torch.Tensor, state: StreamState) -> torch.Tensor:
        x = self.conv_in(ops.fold_channels(picture, self.fold), state) + self.position
        for block in self.blocks:
            x = block(x, state)
        delta = self.conv_out(ops.normed_silu(x, eps=self.eps), state)
        return picture + ops.unfold_channels(delta, self.fold)


class BasisDecoder(nn.Module):
    """[B, C, n, h, w] -> [B, 3, 8n (- 7 at the start), H, W]."""

    def __init__(self, config: BasisVAEConfig, basis: SpaceTimeBasis, grid: tuple[int, int]):
        super().__init__()
        # held in a tuple: the weights are the encoder's, and belong in a checkpoint once
        self._basis = (basis,)
        self.post = PostNet(config, (grid[0] * config.patch_size, grid[1] * config.patch_size))

    def forward(self, latents: torch.Tensor, state: StreamState) -> torch.Tensor:
        (basis,) = self._basis
        picture = self.post(basis.pictures(basis.expand(latents)), state)
        return picture if state.started else picture[:, :, TEMPORAL - 1 :]
