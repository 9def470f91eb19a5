"""Temporal VAE: 8 video frames and a square of pixels to one latent cell.

A clip of 1 + 8n frames gives 1 + n latents: the first frame stands alone (paper section 3.1). Three families share one
interface (:mod:`~rest_fast.models.vae.family`): LTX-Video's (:mod:`~rest_fast.models.vae.ltx`), the demo model's, which
moves a photo (:mod:`~rest_fast.models.vae.motion`), and a small one for drawn faces
(:mod:`~rest_fast.models.vae.basis`). If a decoder is causal, decoding in pieces equals decoding the whole clip. The
released LTX-Video decoders are not causal; their streams look ahead (docs/vae.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from rest_fast import checkpoint
from rest_fast.config import ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.vae.codec import Codec
from rest_fast.models.vae.layers import DecodeWorkspace
from rest_fast.models.vae.layers import to_uint8 as to_uint8
from rest_fast.models.vae.state import Mode, read_mode
from rest_fast.models.vae.streams import DecodeStream, EncodeStream


def to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, n, h, w] -> [B, n h w, C]."""
    return latents.flatten(2).transpose(1, 2)


def to_latents(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[B, n h w, C] -> [B, C, n, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, (-1, *grid))


class TemporalVAE(Codec):
    """The VAE of a checkpoint: whole clips, and streams of pieces."""

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

    @property
    def causal(self) -> bool:
        """Whether decoding in pieces equals decoding the whole clip."""
        return self.decoder.causal

    def pack(self) -> TemporalVAE:
        """Reorder frozen weights as they are read and derive constants from them, so that no first decode has to.

        The weights may still change later.
        """
        for module in self.modules():
            weight = getattr(module, "weight", None)
            if hasattr(module, "path") and isinstance(weight, torch.nn.Parameter):
                order = weight.data.contiguous(memory_format=torch.channels_last_3d)
                weight.data = order  # the same numbers at other addresses, and no second copy
        self.decoder.pack()
        return self

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Posterior mean, normalised: video [B, 3, 1 + 8n, H, W] in -1..1 -> [B, C, 1 + n, h, w]."""
        return EncodeStream(self).encode(video)

    def posterior(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean [B, C, 1 + n, h, w] and deviation, normalised, of a clip's latents; of LTX-Video's family alone.

        The encoder gives one log-variance [B, 1, 1 + n, h, w] for all channels, which counts between -30 and 20.
        """
        if self.config.kind != "conv":
            raise ArgumentError(f"posterior: expected a VAE of kind conv, got {self.config.kind}")
        channels = self.config.latent_channels
        mean, log_variance = EncodeStream(self).moments(video).split([channels, 1], 1)
        deviation = (log_variance.clamp(-30, 20) / 2).exp()
        return (mean - self.latents_mean) / self.latents_std, deviation / self.latents_std

    def decode(
        self, latents: torch.Tensor, *, mode: str | None = "exact", reference: torch.Tensor | None = None, seed: int = 0
    ) -> torch.Tensor:
        """A clip: latents [B, C, 1 + n, h, w] -> video [B, 3, 1 + 8n, H, W], about -1..1.

        ``exact`` decodes the whole clip at once. Other modes give what :meth:`stream` would: lookahead decodes the
        reference with 3 new latents, then 3 new latents in each call, as a session does.
        """
        stream = self._stream(read_mode(mode, self.causal, whole=True), reference, seed)
        if stream.mode.name != "lookahead":
            return stream.decode(latents)
        self.check_latents(latents)
        later = latents[:, :, 4:]
        pieces = [latents[:, :, :4], *(later.split(3, 2) if later.shape[2] else ())]
        return torch.cat([*(stream.decode(piece) for piece in pieces), stream.flush()], 2)

    def stream(
        self,
        *,
        mode: str | None = None,
        reference: torch.Tensor | None = None,
        seed: int = 0,
        workspace: DecodeWorkspace | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
    ) -> DecodeStream:
        """A decoder with memory, for latents that come piece by piece; see :class:`DecodeStream`.

        Args:
            mode: ``causal`` or, for a decoder that is not, ``lookahead(L)`` with L latents of delay; None for the one
                that fits the checkpoint, with L = 1. Never switched silently.
            reference: the true first frame [B, 3, 1, H, W] in -1..1. The decoder of kind motion
                makes every frame of it; that of kind basis takes what stands still from it, or from the first latent
                without it; LTX-Video's does not use it.
            seed: of the decoder's own noise (LTX-Video 0.9.1 and later).
            workspace: scratch that streams which decode in turn may share.
            features: of the reference, from :meth:`photo_features`; without them the stream makes them itself.
        """
        return self._stream(read_mode(mode, self.causal), reference, seed, workspace, features)

    @torch.no_grad()
    def photo_features(self, latents: torch.Tensor, reference: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the decoder needs to know of a photo [B, 3, 1, H, W], whose latent is [B, C, 1, h, w], once a face."""
        self.check_latents(latents)
        self.check_video(reference, "reference")
        return self.decoder.photo_features(self.denormalised(latents, 0, 0), reference[:, :, 0])

    def _stream(
        self,
        mode: Mode,
        reference: torch.Tensor | None,
        seed: int,
        workspace: DecodeWorkspace | None = None,
        features: Mapping[str, torch.Tensor] | None = None,
    ) -> DecodeStream:
        if reference is not None:
            self.check_video(reference, "reference")
            if reference.shape[2] != 1:
                raise ArgumentError(f"stream: reference: expected 1 frame, got {reference.shape[2]}")
        kept = reference if self.decoder.takes_photo else None
        return DecodeStream(self, mode, kept, seed, workspace, features)

    def convolve_in(self, dtype: torch.dtype | None) -> TemporalVAE:
        """Set the dtype in which an fp32 decoder of kind basis or motion convolves without gradients; None: fp32, too.

        Open streams keep their dtype.

        Raises: ValueError for LTX-Video's, which computes in the dtype of its weights throughout.
        """
        if not self.decoder.mixed:
            raise ArgumentError(
                f"convolve_in: expected a decoder of kind basis or motion, got {self.config.kind} (load it in {dtype})"
            )
        self.decoder.dtype = dtype
        return self

    def encode_stream(self) -> EncodeStream:
        """An encoder with memory, for video that comes piece by piece."""
        return EncodeStream(self)
