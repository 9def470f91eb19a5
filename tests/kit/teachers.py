"""Narrow VAEs with random weights whose decoder is not causal, as LTX-Video's are."""

from __future__ import annotations

import dataclasses

from rest_fast.config import preset
from rest_fast.models.vae import TemporalVAE
from tests.kit.models import randomise

# everything that a release has: noise in latents and behind convolutions, timestep conditioning, residual upsamplers
RICH = {"timestep_conditioning": True, "decoder_noise": (True, False, True, False), "decode_noise_scale": 0.1}


def teacher_of(seed: int = 1, **changes) -> TemporalVAE:
    """A narrow VAE with random weights whose decoder is not causal, fp32."""
    config = dataclasses.replace(preset("toy").vae, causal_decoder=False, **changes)
    vae = TemporalVAE(config)
    randomise(vae, seed)
    return vae.requires_grad_(False).eval()
