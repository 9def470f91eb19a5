"""Temporal VAE: 8 video frames and 32x32 pixels to one latent cell.

A clip of 1 + 8n frames gives 1 + n latents: the first frame stands alone (paper section 3.1). Two families behind one
interface: LTX-Video's (:mod:`~rest_fast.models.vae_conv`) and the small one of the demo model
(:mod:`~rest_fast.models.vae_basis`). A decode is ``causal`` where the decoder is: then piece by piece equals the whole.
The released LTX-Video decoders are not; their stream looks ahead (docs/vae.md).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rest_fast import checkpoint, noise
from rest_fast.config import BasisVAEConfig, ConvVAEConfig, ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.decode_stream import DecodeStream, EncodeStream
from rest_fast.models.vae_basis import BasisDecoder, BasisEncoder, SpaceTimeBasis
from rest_fast.models.vae_conv import ConvDecoder, ConvEncoder, ResBlock, StridedConv
from rest_fast.models.vae_stream import CausalConv3d, Mode, Workspace, name_memories, read_mode
from rest_fast.models.vae_stream import to_uint8 as to_uint8


def to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, n, h, w] -> [B, n h w, C]."""
    return latents.flatten(2).transpose(1, 2)


def to_latents(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[B, n h w, C] -> [B, C, n, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, (-1, *grid))


class TemporalVAE(nn.Module):
    """Encoder, decoder and latent statistics of a checkpoint. Latents are normalised by the statistics.

    From the configuration of a model pictures have its size; from that of a VAE alone any whole number of cells.
    """

    latents_mean: torch.Tensor
    latents_std: torch.Tensor

    def __init__(self, config: ModelConfig | ConvVAEConfig):
        super().__init__()
        vae = config.vae if isinstance(config, ModelConfig) else config
        self.config, self.size = vae, (config.height, config.width) if isinstance(config, ModelConfig) else None
        if isinstance(vae, BasisVAEConfig):
            assert isinstance(config, ModelConfig), "a basis belongs to a picture size"
            basis = SpaceTimeBasis(vae, config.grid)
            self.encoder: nn.Module = BasisEncoder(basis)
            self.decoder: nn.Module = BasisDecoder(vae, basis, config.grid)
        else:
            self.encoder, self.decoder = ConvEncoder(vae), ConvDecoder(vae)
        self.causal = not isinstance(vae, ConvVAEConfig) or vae.causal_decoder
        column = (vae.latent_channels, 1, 1, 1)
        self.register_buffer("latents_mean", torch.zeros(column))
        self.register_buffer("latents_std", torch.ones(column))
        name_memories(self)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> TemporalVAE:
        """The VAE of a folder: one that ``rest-fast convert ltx-vae`` wrote, or that of a whole model's checkpoint.

        Raises: :class:`rest_fast.checkpoint.CheckpointError`.
        """
        config = checkpoint.read_vae_config(folder)
        with checkpoint.Unfilled():
            vae = cls(config)
        checkpoint.read_weights(vae, folder, "vae." if isinstance(config, ModelConfig) else "")
        return vae.to(device, dtype).eval().requires_grad_(False).pack()

    def pack(self) -> TemporalVAE:
        """Weights of convolutions in the order in which they are read, constants derived: not to be done by a first
        decode. For frozen weights; changing them later is allowed."""
        for module in self.modules():
            if isinstance(module, CausalConv3d | StridedConv):
                order = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
                module.weight.data = order  # the same numbers at other addresses, and no second copy
        if isinstance(self.decoder, ConvDecoder):
            self.decoder.folded()
            self.decoder.pixel_order()
        for module in self.decoder.modules():
            if isinstance(module, CausalConv3d) and module is not getattr(self.decoder, "conv_out", None):
                post = getattr(self.decoder, "post", None)
                module.ordered(getattr(post, "dtype", None) or module.weight.dtype)
        return self

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Posterior mean, normalised: video [B, 3, 1 + 8n, H, W] in -1..1 -> [B, C, 1 + n, H / 32, W / 32]."""
        return EncodeStream(self).encode(video)

    def decode(
        self, latents: torch.Tensor, *, mode: str | None = "exact", reference: torch.Tensor | None = None, seed: int = 0
    ) -> torch.Tensor:
        """A clip: latents [B, C, 1 + n, h, w] -> video [B, 3, 1 + 8n, H, W], about -1..1.

        ``exact`` is the whole clip at once. Other modes show what :meth:`stream` would give for it: lookahead in calls
        of [reference, 3 new], then of 3 new latents, the plan of a session.
        """
        stream = self._stream(read_mode(mode, self.causal, whole=True), reference, seed)
        if stream.mode.name != "lookahead":
            return stream.decode(latents)
        self._check(latents, "latents", self.config.latent_channels)
        later = latents[:, :, 4:]
        pieces = [latents[:, :, :4], *(later.split(3, 2) if later.shape[2] else ())]
        return torch.cat([*(stream.decode(piece) for piece in pieces), stream.flush()], 2)

    def stream(
        self,
        *,
        mode: str | None = None,
        reference: torch.Tensor | None = None,
        seed: int = 0,
        workspace: Workspace | None = None,
    ) -> DecodeStream:
        """A decoder with memory, for latents that come piece by piece; see :class:`DecodeStream`.

        Args:
            mode: ``causal`` or, for a decoder that is not, ``lookahead(L)`` with L latents of delay; None for the one
                that fits the checkpoint, with L = 1. Never switched silently.
            reference: the true first frame [B, 3, 1, H, W] in -1..1: the demo's decoder takes what stands still from
                it, LTX-Video's has no use for it. Without it the first latent has to do.
            seed: of the decoder's own noise (LTX-Video 0.9.1 and later).
            workspace: scratch to share among streams that decode in turn.
        """
        return self._stream(read_mode(mode, self.causal), reference, seed, workspace)

    def _stream(
        self, mode: Mode, reference: torch.Tensor | None, seed: int, workspace: Workspace | None = None
    ) -> DecodeStream:
        if reference is not None:
            self._check_video(reference, "reference")
            if reference.shape[2] != 1:
                raise ArgumentError(f"stream: reference: expected 1 frame, got {reference.shape[2]}")
        kept = reference if isinstance(self.config, BasisVAEConfig) else None
        return DecodeStream(self, mode, kept, seed, workspace)

    def convolve_in(self, dtype: torch.dtype | None) -> TemporalVAE:
        """In which dtype the demo's decoder, in fp32 otherwise, convolves while no gradient is wanted; None: fp32, too.

        Streams that are open keep theirs.

        Raises: ValueError for LTX-Video's, which computes in the dtype of its weights throughout.
        """
        if not isinstance(self.decoder, BasisDecoder):
            raise ArgumentError(
                f"convolve_in: expected a decoder of kind basis, got {self.config.kind} (load it in {dtype})"
            )
        self.decoder.post.dtype = dtype
        return self

    def encode_stream(self) -> EncodeStream:
        """An encoder with memory, for video that comes piece by piece."""
        return EncodeStream(self)

    def denormalised(self, latents: torch.Tensor, index: int, seed: int) -> torch.Tensor:
        """What the decoder reads: noise mixed in where the checkpoint says so, then mean and deviation undone.

        In this order, as LTX-Video does it. The noise of a latent is a function of the seed and its place in the
        stream, so that neither pieces nor neighbours change it.
        """
        share = getattr(self.config, "decode_noise_scale", 0.0)
        if share:
            (_, c, n, h, w), purpose = latents.shape, noise.DECODER
            drawn = [noise.normal(seed, index + i, c * h * w, purpose, latents.device) for i in range(n)]
            latents = (1 - share) * latents + share * torch.stack(drawn).view(n, c, h, w).movedim(0, 1).to(latents)
        return latents * self.latents_std + self.latents_mean

    def images(self, latents: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        """Injected noise [B, H, W] of each convolution that has some: one image per stream, by module path."""
        found: dict[str, torch.Tensor] = {}
        blocks = getattr(self.decoder, "blocks", [])
        (b, _, _, h, w), spread = latents.shape, 1
        for block in blocks:
            if not isinstance(block, ResBlock):
                spread *= block.stride[1]
            elif block.noise1 is not None:
                size = (h * spread, w * spread)
                for conv in (block.conv1, block.conv2):
                    drawn = noise.normal(seed, len(found), size[0] * size[1], noise.TEXTURE, latents.device)
                    found[conv.path] = drawn.view(1, *size).repeat(b, 1, 1).to(latents.dtype)
        return found

    def _check_video(self, video: torch.Tensor, name: str) -> None:
        self._check(video, name, 3, self.size)
        cell, (h, w) = self.config.spatial, video.shape[3:]
        if h % cell or w % cell:
            raise ArgumentError(f"vae: {name}: expected rows and columns divisible by {cell}, got {h} x {w}")

    def _check(self, x: torch.Tensor, name: str, channels: int, size: tuple[int, int] | None = None) -> None:
        if size is None and self.size is not None:
            size = (self.size[0] // self.config.spatial, self.size[1] // self.config.spatial)
        if not isinstance(x, torch.Tensor):
            raise ArgumentError(f"vae: {name}: expected a tensor, got {type(x).__name__}")
        fits = x.ndim == 5 and x.shape[1] == channels and min(x.shape) > 0
        if not fits or (size is not None and tuple(x.shape[3:]) != size):
            rows, columns = size or ("H", "W")
            raise ArgumentError(f"vae: {name}: expected [B, {channels}, T, {rows}, {columns}], got {list(x.shape)}")
        own = self.latents_mean
        if (x.dtype, x.device) != (own.dtype, own.device):
            raise ArgumentError(f"vae: {name}: expected {own.dtype} on {own.device}, got {x.dtype} on {x.device}")
