"""VAEs in the layouts of LTX-Video's releases, narrow and shallow, with random weights."""

from __future__ import annotations

import functools

import torch

from rest_fast.config import ConvVAEConfig
from rest_fast.models.vae import TemporalVAE
from tests.kit.models import randomise

ENCODER = {"encoder_channels": (8, 16, 16, 16), "encoder_down": ("all",) * 3, "encoder_resample": "stride"}
LAYOUTS = {  # of the releases, narrow and shallow
    "0.9.0": ConvVAEConfig(
        latent_channels=6,
        **ENCODER,
        encoder_layers=(1, 1, 1, 2),
        decoder_channels=(16, 16, 8, 6),
        decoder_layers=(2, 1, 1, 1),
        decoder_widen=True,
        decoder_residual=False,
        causal_decoder=False,
    ),
    "0.9.1": ConvVAEConfig(
        latent_channels=6,
        **ENCODER,
        encoder_layers=(1, 1, 1, 2),
        decoder_channels=(64, 32, 16, 8),
        decoder_layers=(2, 1, 1, 1),
        decoder_noise=(False, True, True, True),
        causal_decoder=False,
        timestep_conditioning=True,
        decode_noise_scale=0.025,
    ),
    "0.9.5": ConvVAEConfig(
        latent_channels=6,
        encoder_channels=(8, 16, 32, 32, 32),
        encoder_layers=(1,) * 5,
        decoder_channels=(64, 32, 16, 8),
        decoder_layers=(1,) * 4,
        causal_decoder=False,
        timestep_conditioning=True,
        decode_noise_scale=0.025,
    ),
}


# Stages that differ in nothing but their frames: what they keep apart must not go by its shape.
LAYOUTS_AND_MORE = {
    **LAYOUTS,
    "equal widths": ConvVAEConfig(
        latent_channels=6,
        encoder_channels=(8, 16, 16, 16),
        encoder_layers=(1,) * 4,
        encoder_down=("all", "temporal", "temporal"),
        decoder_channels=(16, 16, 16, 8),
        decoder_layers=(1,) * 4,
        decoder_up=("temporal", "temporal", "all"),
        causal_decoder=False,
    ),
}


@functools.cache
def layout(name: str, causal: bool, **changes) -> TemporalVAE:
    """A float64 VAE in the layout of a release, with a causal decoder or a symmetric one; shared, frozen."""
    config = LAYOUTS_AND_MORE[name]
    config = ConvVAEConfig(**{**config.__dict__, "causal_decoder": causal, **changes})
    return randomise(TemporalVAE(config).double(), 5).requires_grad_(False)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).square().mean().sqrt() / want.std())
