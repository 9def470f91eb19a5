"""The whole decoder through the kernels, buffers in their borders: a stream equals the reference in float64."""

from __future__ import annotations

import torch

from rest_fast import ops
from rest_fast.config import ConvVAEConfig
from rest_fast.models.vae import TemporalVAE
from tests.kernels.kit import DEVICE, ON_GPU
from tests.kit.models import randomise


def test_a_stream_of_the_kernels():
    """With all that 0.9.1 has. On a GPU pieces also give the same bits however they are cut, as no tile depends on
    their length; the interpreter takes 11 s for that and leaves it to ``test_a_stream_cut_anywhere_is_the_same_bits``.
    """
    config = ConvVAEConfig(
        latent_channels=16,
        encoder_channels=(4,) * 4,
        encoder_layers=(1,) * 4,
        encoder_down=("all",) * 3,
        encoder_resample="stride",
        decoder_channels=(32, 16, 16, 16),
        decoder_layers=(1,) * 4,
        decoder_noise=(False, True, True, True),
        timestep_conditioning=True,
        decode_noise_scale=0.025,
        causal_decoder=True,
    )
    exact = randomise(TemporalVAE(config).double(), 3).requires_grad_(False)
    module = TemporalVAE(config)
    module.load_state_dict(exact.state_dict())
    module = module.to(DEVICE).requires_grad_(False).pack()
    z = torch.randn(1, 16, 2, 1, 1, generator=torch.Generator().manual_seed(1))

    def played(vae: TemporalVAE, z: torch.Tensor, plan: list[int]) -> torch.Tensor:
        stream = vae.stream(mode="causal", seed=2)
        return torch.cat([stream.decode(part) for part in z.split(plan, 2)], 2)

    with ops.use_backend("triton"):
        made = [played(module, z.to(DEVICE), plan) for plan in ([1, 1], *([[2]] if ON_GPU else []))]
    want = played(exact, z.double(), [2])
    assert made[0].shape == want.shape == (1, 3, 9, 32, 32) and torch.equal(made[0], made[-1])
    assert (made[0].cpu().double() - want).abs().max() < 2e-5 * want.std()
