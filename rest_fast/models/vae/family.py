"""The interface of a family of VAEs: an encoder and a decoder in a file of their own.

A new family is such a file, a configuration with a ``kind`` of its own in :mod:`rest_fast.config`, and a line in
:data:`rest_fast.models.vae.codec.FAMILIES`. Nothing that encodes, decodes or streams asks which family it has.

An encoder is a causal module ``encoder(video, state)``: [B, 3, T, H, W] -> [B, C or more, n, h, w], where the first C
channels are the mean. A decoder is a :class:`Decoder`. What either remembers between pieces lies in the
:class:`~rest_fast.models.vae.state.StreamState`, under the path of the module that remembers it.
"""

from __future__ import annotations

import torch
from torch import nn

from rest_fast.models.vae.layers import CausalConv3d, Piece
from rest_fast.models.vae.state import StreamState


class Decoder(nn.Module):
    """Latents [B, C, n, h, w] -> video [B, 3, 8n, H, W], at the start of a stream without its first 7 frames."""

    causal = True  # whether decoding in pieces equals decoding the whole clip
    takes_photo = False  # whether it reads the true first frame, which then is the history ``REFERENCE``
    noise_share = 0.0  # share of noise that is mixed into normalised latents before it reads them
    mixed = False  # whether its convolutions may have another dtype than its float32 weights
    dtype: torch.dtype | None = None  # of the convolutions in new streams; None: that of the weights

    def forward(self, z: torch.Tensor, state: StreamState) -> torch.Tensor:
        """The functional reference, differentiable."""
        raise NotImplementedError

    def run(self, z: torch.Tensor, piece: Piece, *, pictures: bool) -> torch.Tensor:
        """The same in place: new video, or pictures uint8 [B, T, H, W, 3]."""
        raise NotImplementedError

    def photo_features(self, z: torch.Tensor, photo: torch.Tensor) -> dict[str, torch.Tensor]:
        """Histories of a stream that follow from its photo [B, 3, H, W] and the photo's latent [B, C, 1, h, w] alone.

        A stream that is given them makes the same pictures, and begins sooner.
        """
        return {}

    def images(self, z: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        """The injected noise [B, H, W] of each convolution that has some, by module path: one image per stream."""
        return {}

    def pack(self) -> None:
        """Derive from frozen weights what :meth:`run` reads, so that the first decode need not do it."""
        for conv in self.convolutions():
            conv.ordered(self.dtype or conv.weight.dtype)

    def convolutions(self) -> list[CausalConv3d]:
        return [module for module in self.modules() if isinstance(module, CausalConv3d)]
