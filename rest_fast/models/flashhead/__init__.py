"""SoulX-FlashHead Lite: a talking head of 1.4 B parameters with public weights, beside REST (docs/flashhead.md).

A chunk of 3 new latents is generated with the 2 before it, which are encoded from the last 9 frames shown: 5 latents of
the LTX-Video VAE, 33 frames, of which 24 are new. Nothing else passes from chunk to chunk.
"""

from __future__ import annotations

import torch

from rest_fast.config.flashhead import FlashHeadConfig
from rest_fast.models.flashhead.colour import match_colours
from rest_fast.models.flashhead.dit import FlashHeadDiT
from rest_fast.models.flashhead.wav2vec import Wav2Vec
from rest_fast.models.network import Network
from rest_fast.models.vae import TemporalVAE, to_latents, to_tokens


class FlashHead(Network):
    """VAE, wav2vec 2.0 and DiT of one configuration."""

    dit: FlashHeadDiT
    exact = ("speech.",)

    def __init__(self, config: FlashHeadConfig, *, threads: int | None = None):
        super().__init__(threads)
        self.config: FlashHeadConfig = config
        self.vae, self.speech, self.dit = TemporalVAE(config.vae), Wav2Vec(config.speech), FlashHeadDiT(config)

    @property
    def wide(self) -> torch.dtype:
        """Of latents and frames between networks: float32, or float64 where the weights are."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def encode(self, video: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Latents [1, N, C] of frames [1, 3, 1 + 8n, H, W], drawn from the posterior with this noise [1, N, C]."""
        mean, deviation = self.vae.posterior(video.to(self.dtype))
        found = to_tokens(mean).to(self.wide)
        if self.config.stream.posterior == "sample":
            found = found + to_tokens(deviation).to(self.wide) * noise
        return found

    def reference(self, photo: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The photo [1, 3, 1, H, W] as a film of a whole window -> latents [1, F T, C]; noise of the same shape."""
        return self.encode(photo.expand(-1, -1, self.config.stream.frames, -1, -1), noise)

    @torch.no_grad()
    def hear(self, sound: torch.Tensor) -> torch.Tensor:
        """Sound of the last seconds at 16 kHz, fp32 [1, samples], that ends with the window -> audio tokens
        [1, F, A, W]."""
        heard: torch.Tensor = self.dit.audio(self.speech(sound))
        return heard

    @torch.no_grad()
    def frames(self, z: torch.Tensor, photo: torch.Tensor) -> torch.Tensor:
        """A window of latents [1, F T, C] -> its frames [1, 3, 1 + 8 (F - 1), H, W] with the colours of the photo."""
        video = self.vae.decode(to_latents(z.to(self.dtype), self.config.grid)).to(self.wide)
        return match_colours(video, photo.to(self.wide), self.config.stream.colour)
