"""A small VAE for drawn faces: a linear space-time basis per position, and a mixer and a post-net in its decoder.

A block of 8 frames x 32 x 32 pixels is projected frame by frame on ``spatial_rank`` components, and the 8 x rank
coefficients on ``latent_channels``; each position has its own bases, since a portrait's parts stay in place. The first
frame of a clip stands for a block of 8 copies. The bases are orthonormal, so the linear decoder is the transpose. A
block alone cannot avoid seams and steps at latent borders, nor show motion that the basis leaves out. Two networks
correct that. The mixer, a small transformer, corrects the coefficients, given those of all blocks of this latent and
of the one before. The post-net, a causal convolution, corrects the picture, and takes what stands still from the
reference photo itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.config import TEMPORAL, BasisVAEConfig
from rest_fast.models.linear import linear
from rest_fast.models.vae.family import Decoder
from rest_fast.models.vae.layers import CausalConv3d, Piece, ResBlock, depth_to_space, normed_silu, to_uint8
from rest_fast.models.vae.state import REFERENCE, StreamState
from rest_fast.ops import functional

MOVE = 12.0  # pixels that the reference can be moved at most, along either axis


class SpaceTimeBasis(nn.Module):
    """Orthonormal bases of blocks of pixels, for each of the P = h w positions."""

    def __init__(self, config: BasisVAEConfig, grid: tuple[int, int]):
        super().__init__()
        positions, pixels = grid[0] * grid[1], 3 * config.patch_size**2
        self.patch, self.grid, self.motion_weight = config.patch_size, grid, config.motion_weight
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
        x = functional.space_to_depth(video, (1, p, p)).unflatten(2, (-1, TEMPORAL))  # [B, pixels, n, 8, h, w]
        return x.flatten(4).permute(0, 2, 4, 3, 1)

    def pictures(self, blocks: torch.Tensor) -> torch.Tensor:
        """[B, n, P, 8, pixels] -> [B, 3, 8n, H, W]."""
        x = blocks.permute(0, 4, 1, 3, 2).flatten(2, 3).unflatten(-1, self.grid)
        return depth_to_space(x, (1, self.patch, self.patch))

    def coefficients(self, blocks: torch.Tensor) -> torch.Tensor:
        """[B, n, P, 8, pixels] -> frame by frame [B, n, P, 8, rank]."""
        return torch.einsum("bnpfx,pxr->bnpfr", blocks - self.mean[:, None], self.spatial)

    def project(self, blocks: torch.Tensor) -> torch.Tensor:
        """[B, n, P, 8, pixels] -> latents [B, C, n, h, w]."""
        frames = self.weigh_motion(self.coefficients(blocks))
        latent = torch.einsum("bnpk,pkc->bnpc", frames.flatten(3), self.temporal) / self.scale
        return latent.permute(0, 3, 1, 2).unflatten(-1, self.grid)

    def expand(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, n, h, w] -> coefficients [B, n, P, 8, rank]."""
        latent = latents.flatten(3).permute(0, 2, 3, 1) * self.scale
        frames = torch.einsum("bnpc,pkc->bnpk", latent, self.temporal).unflatten(-1, (TEMPORAL, -1))
        return self.weigh_motion(frames, -1)

    def synthesise(self, coefficients: torch.Tensor) -> torch.Tensor:
        """[B, n, P, 8, rank] -> blocks [B, n, P, 8, pixels]."""
        return torch.einsum("bnpfr,pxr->bnpfx", coefficients, self.spatial) + self.mean[:, None]

    def weigh_motion(self, frames: torch.Tensor, power: int = 1) -> torch.Tensor:
        """Scale the deviation from the mean over the 8 frames of [..., 8, rank]; power -1 is the inverse."""
        mean = frames.mean(-2, keepdim=True)
        return mean + self.motion_weight**power * (frames - mean)


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


class MixerLayer(nn.Module):
    """Pre-norm transformer layer whose tokens see those of their own latent and of the one before."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.path, self.heads = "", heads  # the path is set by name_memories
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[B, n, tokens, width] -> the same; the state keeps keys and values of the last latent."""
        q, kv = linear(self.qkv, self.norm_attention(x)).split([x.shape[-1], 2 * x.shape[-1]], -1)
        before = state.histories.get(self.path, kv[:, :1])  # at the start a latent is its own past
        past = torch.cat([before.to(kv.dtype), kv[:, :-1]], 1)
        state.histories[self.path] = kv[:, -1:] if kv.requires_grad else kv[:, -1:].clone()
        k, v = torch.cat([past, kv], 2).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(2, 3) for y in (q, k, v))
        x = x + linear(self.out, F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(3))
        return x + linear(self.down, linear(self.up, self.norm_mlp(x), gelu=True))


class Mixer(nn.Module):
    """Corrects the coefficients of all blocks together; each frame of each block is a token."""

    def __init__(self, config: BasisVAEConfig, positions: int):
        super().__init__()
        rank, width = config.spatial_rank, config.mixer_width
        self.proj_in = nn.Parameter(torch.randn(positions, rank, width) * rank**-0.5)
        self.position = nn.Parameter(torch.randn(positions, TEMPORAL, width) * 0.1)
        self.layers = nn.ModuleList(MixerLayer(width, config.mixer_heads) for _ in range(config.mixer_layers))
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Parameter(torch.zeros(positions, width, rank))  # starts as the identity
        self.reach = nn.Parameter(torch.ones(positions, 1, rank))  # scale of each coefficient's correction

    def forward(self, coefficients: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[B, n, P, 8, rank] -> the same."""
        x = torch.einsum("bnpfr,prw->bnpfw", coefficients, self.proj_in) + self.position
        shape = x.shape
        x = x.flatten(2, 3)
        for layer in self.layers:
            x = layer(x, state)
        x = self.norm(x).reshape(shape)
        return coefficients + self.reach * torch.einsum("bnpfw,pwr->bnpfr", x, self.proj_out)


class PostNet(nn.Module):
    """A causal convolutional network that corrects the basis picture; a table tells it the position of each pixel.

    It also sees the reference picture. A gate blends that in, pixel by pixel, moved by a smooth field, so that what
    stands still or only moves stays sharp.
    """

    def __init__(self, config: BasisVAEConfig, size: tuple[int, int]):
        super().__init__()
        t, h, w = self.patch = config.post_patch
        pixels, channels = 3 * t * h * w, config.post_channels
        self.eps = config.post_norm_eps
        self.dtype: torch.dtype | None = None  # of the convolutions in ``step`` in new streams; None: that of pictures
        self.conv_in = CausalConv3d(pixels + 3 * h * w, channels)
        self.position = nn.Parameter(torch.zeros(channels, 1, size[0] // h, size[1] // w))
        self.blocks = nn.ModuleList(ResBlock(channels, eps=self.eps) for _ in range(config.post_blocks))
        self.out_channels = pixels, t * h * w, 2 * t  # correction, gate, field
        self.conv_out = CausalConv3d(channels, sum(self.out_channels))
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)
        nn.init.constant_(self.conv_out.bias[pixels : pixels + t * h * w], -4)  # starts close to the identity

    def forward(self, picture: torch.Tensor, reference: torch.Tensor, state: StreamState) -> torch.Tensor:
        """Basis picture [B, 3, 8n, H, W] and reference [B, 3, 1, H, W] -> picture."""
        correction, gate, moved = self.parts(picture, reference, state)
        return picture + correction + gate * (moved - picture)

    def parts(
        self, picture: torch.Tensor, reference: torch.Tensor, state: StreamState
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Correction [B, 3, 8n, H, W], gate [B, 1, 8n, H, W] in 0..1 and moved reference [B, 3, 8n, H, W]."""
        _, h, w = self.patch
        patches = functional.space_to_depth(picture, self.patch)
        still = functional.space_to_depth(reference, (1, h, w)).expand(-1, -1, patches.shape[2], -1, -1)
        x = self.conv_in(torch.cat([patches, still], 1), state) + self.position
        for block in self.blocks:
            x = block(x, state)
        return self._split(self.conv_out(normed_silu(x, eps=self.eps), state), picture, reference)

    def step(self, picture: torch.Tensor, reference: torch.Tensor, piece: Piece) -> torch.Tensor:
        """The same in place."""
        (t, h, w), (b, _, frames, height, width) = self.patch, picture.shape
        like = picture.new_empty(0, dtype=piece.dtype if picture.dtype == torch.float32 else None)
        grid, channels = (frames // t, height // h, width // w), self.conv_in.weight.shape[0]
        source = piece.buffer("post patches", (b, self.conv_in.weight.shape[1], *grid), like)
        patches, still = source.frames.split([self.out_channels[0], 3 * h * w], 1)
        parts = picture.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))
        patches.unflatten(1, (3, t, h, w)).copy_(parts.permute(0, 1, 3, 5, 7, 2, 4, 6))
        still.copy_(functional.space_to_depth(reference, (1, h, w)).expand_as(still))
        x = piece.work.plain("post stream", (b, channels, *grid), like)
        ready = piece.buffer("post ready", (b, channels, *grid), like)
        results = {"out": x, "normed": ready.frames}
        self.conv_in.step(source, piece, residual=self.position.to(like.dtype).expand_as(x), eps=self.eps, **results)
        for block in self.blocks:
            block.step(ready, piece, x=x, **results)
        y = piece.work.plain("post out", (b, sum(self.out_channels), *grid), like)
        self.conv_out.step(ready, piece, out=y)
        y = y.to(picture.dtype)
        correction, gate, moved = self._split(y, picture, reference)
        return picture + correction + gate * (moved - picture)

    def _split(
        self, y: torch.Tensor, picture: torch.Tensor, reference: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        t = self.patch[0]
        correction, gate, field = y.split(self.out_channels, 1)
        field = MOVE * depth_to_space(field, (t, 1, 1)).tanh()
        return (
            depth_to_space(correction, self.patch),
            depth_to_space(gate, self.patch).sigmoid(),
            move(reference, field).to(picture.dtype),
        )


def move(reference: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Reference [B, 3, 1, H, W] seen through fields [B, 2, T, h, w] of (x, y) in pixels: fp32 [B, 3, T, H, W]."""
    (batch, _, _, height, width), frames = reference.shape, field.shape[2]
    field = field.float().transpose(1, 2).flatten(0, 1)
    dx, dy = F.interpolate(field, (height, width), mode="bilinear", align_corners=False).unbind(1)
    columns, rows = (torch.arange(n, dtype=torch.float32, device=field.device) for n in (width, height))
    x, y = (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1  # pixel centres in -1..1
    grid = torch.stack([x + dx * (2 / width), y[:, None] + dy * (2 / height)], -1)
    source = reference[:, :, 0].float().repeat_interleave(frames, 0)
    return (
        F.grid_sample(source, grid, padding_mode="border", align_corners=False)
        .unflatten(0, (batch, -1))
        .transpose(1, 2)
    )


class BasisDecoder(Decoder):
    """[B, C, n, h, w] -> [B, 3, 8n (- 7 at the start), H, W]."""

    takes_photo = mixed = True

    def __init__(self, config: BasisVAEConfig, basis: SpaceTimeBasis, grid: tuple[int, int]):
        super().__init__()
        # in a tuple, so that the weights, which are the encoder's, are in a checkpoint only once
        self._basis = (basis,)
        self.mixer = Mixer(config, grid[0] * grid[1])
        self.post = PostNet(config, (grid[0] * config.patch_size, grid[1] * config.patch_size))

    def forward(self, latents: torch.Tensor, state: StreamState) -> torch.Tensor:
        picture, reference = self.linear(latents, state)
        picture = self.post(picture, reference, state)
        return picture if state.started else picture[:, :, TEMPORAL - 1 :]

    def step(self, latents: torch.Tensor, piece: Piece) -> torch.Tensor:
        """The same in place, without gradients."""
        picture, reference = self.linear(latents, piece.state)
        picture = self.post.step(picture, reference, piece)
        return picture[:, :, TEMPORAL - 1 :] if piece.first else picture

    def run(self, z: torch.Tensor, piece: Piece, *, pictures: bool) -> torch.Tensor:
        video = self.step(z, piece)
        return to_uint8(video) if pictures else video

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the post-net's convolutions."""
        return self.post.dtype

    @dtype.setter
    def dtype(self, dtype: torch.dtype | None) -> None:
        self.post.dtype = dtype

    def linear(self, latents: torch.Tensor, state: StreamState) -> tuple[torch.Tensor, torch.Tensor]:
        """The post-net's inputs: basis picture [B, 3, 8n, H, W] and reference [B, 3, 1, H, W]."""
        (basis,) = self._basis
        picture = basis.pictures(basis.synthesise(self.mixer(basis.expand(latents), state)))
        # Without the true first frame, the picture decoded from the first latent is the reference.
        reference = state.histories.setdefault(REFERENCE, picture[:, :, TEMPORAL - 1 : TEMPORAL].clone())
        return picture, reference.to(picture.dtype).expand(len(picture), -1, -1, -1, -1)


def build(config: BasisVAEConfig, grid: tuple[int, int] | None) -> tuple[nn.Module, Decoder]:
    assert grid is not None, "a basis belongs to a picture size"
    basis = SpaceTimeBasis(config, grid)
    return BasisEncoder(basis), BasisDecoder(config, basis, grid)
