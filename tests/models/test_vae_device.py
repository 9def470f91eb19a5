"""The decoder of LTX-Video where it is to run: bfloat16 in place against float32, and pieces of any size the same bits.

On a GPU at the real widths and 512 x 512; without one as deep, a sixteenth as wide, at 64 x 64.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch

from rest_fast import ops
from rest_fast.config import ConvVAEConfig
from rest_fast.models.vae import TemporalVAE, to_uint8
from rest_fast.models.vae.state import StreamState, read_mode
from rest_fast.ops import triton_kernels

ON_GPU = torch.cuda.is_available() and not triton_kernels.interpreted()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SHRINK, SIDE = (1, 16) if ON_GPU else (16, 2)  # widths are divided; latent cells along a side
LAYERS = {"0.9.1": (8, 7, 6, 5), "0.9.5": (5, 5, 5, 5)}
NOISE = {"0.9.1": (False, True, True, True), "0.9.5": (False,) * 4}
PLAN = (4, 3)  # the reference and a chunk, and a chunk


@pytest.fixture(autouse=True)
def exact_products():
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@functools.lru_cache(maxsize=1)
def decoder(release: str, causal: bool) -> TemporalVAE:
    """float32, of weights that bfloat16 holds exactly; pictures near -1..1."""
    config = ConvVAEConfig(
        latent_channels=128 // SHRINK,
        encoder_channels=(4,) * 4,
        encoder_layers=(1,) * 4,
        encoder_down=("all",) * 3,
        encoder_resample="stride",
        decoder_channels=tuple(c // SHRINK for c in (1024, 512, 256, 128)),
        decoder_layers=LAYERS[release],
        decoder_noise=NOISE[release],
        causal_decoder=causal,
        timestep_conditioning=True,
    )
    with DEVICE:
        vae = TemporalVAE(config)
    generator = torch.Generator(DEVICE).manual_seed(0)
    with torch.no_grad():
        for p in vae.decoder.parameters():
            spread = 1 / math.sqrt(p[0].numel()) if p.ndim == 5 else 0.05
            p.copy_(p.normal_(generator=generator).mul_(spread).bfloat16())
        vae.decoder.conv_out.weight *= 0.5
    return vae.eval().requires_grad_(False)


def low(vae: TemporalVAE, dtype: torch.dtype = torch.bfloat16) -> TemporalVAE:
    """The same weights."""
    with DEVICE:
        copy = TemporalVAE(vae.config).to(dtype)
    copy.load_state_dict(vae.state_dict())
    return copy.eval().requires_grad_(False)


def latents(vae: TemporalVAE, count: int) -> torch.Tensor:
    shape = (1, vae.config.latent_channels, count, SIDE, SIDE)
    return torch.randn(shape, generator=torch.Generator(DEVICE).manual_seed(1), device=DEVICE).bfloat16().float()


def functional(vae: TemporalVAE, z: torch.Tensor, mode: str, plan: tuple[int, ...]) -> torch.Tensor:
    """Final frames of a stream through the differentiable pass; the latents ahead are decoded with each piece."""
    read = read_mode(mode, vae.causal)
    state, frames, at = StreamState(read.past), [], 0
    state.images = vae.decoder.images(z, 0)
    for count in plan:
        end = min(at + count, z.shape[2] - read.ahead)
        state.provisional = read.ahead
        made = vae.decoder(vae.denormalised(z[:, :, at : end + read.ahead], at, 0), state)
        frames.append(made[:, :, : made.shape[2] - 8 * read.ahead])
        state.started, at = True, end
    return torch.cat(frames, 2)


@pytest.mark.parametrize("release", LAYERS)
@pytest.mark.parametrize("mode", ["causal", "lookahead(1)"])
def test_bfloat16_in_place_is_float32_but_for_rounding(release, mode):
    vae = decoder(release, mode == "causal")
    ahead = 0 if mode == "causal" else 1
    z = latents(vae, sum(PLAN) + ahead)
    want = functional(vae, z, mode, PLAN)
    stream, pieces = low(vae).stream(mode=mode), z.split([PLAN[0] + ahead, *PLAN[1:]], 2)
    start = stream.snapshot()
    got = torch.cat([stream.decode(piece.bfloat16()) for piece in pieces], 2).float()
    assert got.shape == want.shape == (1, 3, 8 * sum(PLAN) - 7, 32 * SIDE, 32 * SIDE)
    assert 0.2 < want.std() < 1
    eager = functional(low(vae), z.bfloat16(), mode, PLAN).float()
    plain, fast = (float((x - want).norm() / want.norm()) for x in (eager, got))
    psnr = float(10 * torch.log10(4 / (got - want).square().mean()))
    # Two roundings a convolution (the stream, and what is normed), each 2^-9 / sqrt(3) of what it rounds: over 45 to 57
    # convolutions whose weights all matter alike some 0.012. The functional pass rounds more often.
    assert fast < 1.5e-2 and fast < 1.05 * plain, f"relative RMS {fast:.2g} in place, {plain:.2g} functional"
    assert psnr > 45, f"PSNR {psnr:.1f} dB"
    print(f"{release} {mode}: relative RMS {fast:.4f} in place, {plain:.4f} functional; PSNR {psnr:.1f} dB")
    stream.restore(start)
    pictures = torch.cat([stream.pictures(piece.bfloat16()) for piece in pieces], 1)
    levels = (pictures.int() - to_uint8(want).int()).abs()
    assert levels.float().mean() < 1 and levels.max() < 24


@pytest.mark.parametrize("release", LAYERS)
def test_float32_in_place_is_the_functional_pass(release):
    vae = decoder(release, True)
    z = latents(vae, sum(PLAN))
    want, stream = functional(vae, z, "causal", PLAN), vae.stream()
    got = torch.cat([stream.decode(piece) for piece in z.split(PLAN, 2)], 2)
    relative = float((got - want).norm() / want.norm())
    # the order of some 60 sums of up to 27 * 1024 fp32 products
    assert relative < 1e-5, f"relative RMS {relative:.2g}"


@pytest.mark.skipif(not ON_GPU, reason="Triton's kernels take a GPU; their interpreter is too slow for a whole decoder")
@pytest.mark.parametrize("release", LAYERS)
def test_any_pieces_same_bits(release):
    vae = low(decoder(release, True))
    z, first = latents(vae, 7).bfloat16(), None
    with ops.use_backend("triton"):
        for plan in ([7], [4, 3], [1, 3, 3], [1] * 7, [2, 5]):
            stream = vae.stream()
            got = torch.cat([stream.decode(piece) for piece in z.split(plan, 2)], 2)
            first = got if first is None else first
            assert torch.equal(got, first), f"{plan}: {float((got.float() - first.float()).abs().max()):.2g} off"
