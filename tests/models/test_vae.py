"""The VAE against diffusers' LTX-Video and, of both kinds, against itself in pieces."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.config import ConvVAEConfig, preset
from rest_fast.models.dit import StreamingDiT
from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.ltx import patchify, unpatchify
from rest_fast.models.vae.state import StreamState
from tests.kit.models import basis_toy, exact_norms, latents, randomise, toy, toy_vae, video

# The depth of LTX-Video 0.9.5 (and of rest-512) at a sixteenth of its width
NARROW = ConvVAEConfig(latent_channels=12, encoder_channels=(8, 16, 32, 64, 128), decoder_channels=(64, 32, 16, 8))


# -- diffusers


def diffusers_name(name: str, config: ConvVAEConfig) -> str:
    """Our parameter name -> the one in ``AutoencoderKLLTXVideo``: blocks there are grouped by stage."""
    part, *rest = name.split(".")
    if rest[0] != "blocks":
        return f"{part}.{rest[0]}.conv.{rest[1]}"
    index, *last = int(rest[1]), *rest[2:]
    last = ".".join([*last[:-1], "conv", last[-1]])  # conv1.weight -> conv1.conv.weight
    layers = config.encoder_layers if part == "encoder" else config.decoder_layers
    stage = 0
    while True:
        if part == "decoder" and stage > 0:  # a stage begins with its upsampler
            if index == 0:
                return f"decoder.up_blocks.{stage - 1}.upsamplers.0.{last}"
            index -= 1
        if index < layers[stage]:
            break
        index -= layers[stage]
        if part == "encoder":  # and ends with its downsampler
            if index == 0:
                return f"encoder.down_blocks.{stage}.downsamplers.0.{last}"
            index -= 1
        stage += 1
    if part == "encoder":
        where = "mid_block" if stage == len(layers) - 1 else f"down_blocks.{stage}"
    else:
        where = "mid_block" if stage == 0 else f"up_blocks.{stage - 1}"
    return f"{part}.{where}.resnets.{index}.{last}"


def diffusers_vae(config: ConvVAEConfig):
    """LTX-Video 0.9.5's arguments (``get_vae_config`` of the conversion script), causal, without timesteps."""
    ltx = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_ltx")
    return ltx.AutoencoderKLLTXVideo(
        latent_channels=config.latent_channels,
        block_out_channels=config.encoder_channels,
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        decoder_block_out_channels=tuple(2 * c for c in reversed(config.decoder_channels[1:])),
        layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        spatio_temporal_scaling=(True,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        upsample_residual=(True,) * 3,
        upsample_factor=(2,) * 3,
        timestep_conditioning=False,
        decoder_causal=True,
    ).eval()


@pytest.fixture(scope="module")
def pair():
    """(ours, diffusers') with the same random weights, every parameter of both named by the mapping."""
    ours = TemporalVAE(toy(vae=NARROW))
    randomise(ours, 1)
    with torch.no_grad():
        ours.latents_mean.zero_()
        ours.latents_std.fill_(1)
    theirs = diffusers_vae(NARROW)
    state = {diffusers_name(n, NARROW): p.detach() for n, p in ours.named_parameters()}
    assert len(state) == len(list(ours.parameters()))
    state |= {n: b for n, b in theirs.named_buffers()}
    theirs.load_state_dict(state, strict=True)
    return ours.requires_grad_(False), theirs.requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 9, 25])
def test_encoder_equals_diffusers(pair, frames):
    ours, theirs = pair
    x = video(ours, frames, 2).float()
    want, got = theirs.encode(x).latent_dist, ours.encode(x)
    log_variance = ours.encoder(x, StreamState())[:, -1:].expand(-1, 12, -1, -1, -1)
    torch.testing.assert_close(log_variance, want.logvar, rtol=1e-4, atol=1e-4)
    want = want.mode()
    assert got.shape == want.shape == (2, 12, 1 + frames // 8, 2, 2)
    assert want.std() > 0.1
    # 45 convolutions in float32 in the same order of channels, but other layouts: some 1e-6 each of values near 1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_decoder_equals_diffusers(pair, count):
    ours, theirs = pair
    z = latents(ours, count, 2).float()
    want = theirs.decode(z).sample
    got = ours.decode(z)
    assert got.shape == want.shape == (2, 3, 8 * count - 7, 64, 64)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_float64_equals_diffusers(pair):
    """The same without the cover of float32: a wrong epsilon or a swapped pair of channels would show at 1e-8."""
    ours, theirs = (TemporalVAE(toy(vae=NARROW)), diffusers_vae(NARROW))
    ours.load_state_dict(pair[0].state_dict())
    theirs.load_state_dict(pair[1].state_dict())
    ours, theirs = ours.double().requires_grad_(False), theirs.double().requires_grad_(False)
    exact_norms(theirs)
    x, z = video(ours, 17), latents(ours, 3)
    torch.testing.assert_close(ours.encode(x), theirs.encode(x).latent_dist.mode(), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, rtol=1e-10, atol=1e-11)


def test_sizes_of_the_released_models():
    """LTX-Video 0.9.5's VAE without timestep embedders, and LTX-Video 2B inside our DiT (model.md, "Parts")."""
    config = preset("rest-512")
    with torch.device("meta"):
        module, dit = TemporalVAE(config), StreamingDiT(config)
    assert dit.proj_in.weight.is_meta

    def count(parameters):
        return sum(p.numel() for p in parameters)

    assert count(module.encoder.parameters()) == 694_098_881
    assert count(module.decoder.parameters()) == 528_380_720
    assert count(dit.parameters()) == 2_393_491_584
    assert count(p for n, p in dit.named_parameters() if ".audio." not in n) == 1_923_385_472


# -- pieces


plans = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", ["conv", "basis"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(plan=plans)
@example(plan=[1, 1, 1, 1, 1])
@example(plan=[1, 3, 3])  # what a session does
@example(plan=[4, 1])
def test_any_chunk_plan_decodes_the_same(kind, plan):
    module = toy_vae(kind)
    z = latents(module, sum(plan), 2, seed=len(plan))
    stream = module.stream()
    pieces = [stream.decode(part) for part in z.split(plan, 2)]
    assert [p.shape[2] for p in pieces] == [8 * plan[0] - 7, *(8 * n for n in plan[1:])]
    whole = module.decode(z)
    # the same sums, perhaps in another order: float64 roundings of values near 1
    torch.testing.assert_close(torch.cat(pieces, 2), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["conv", "basis"])
def test_snapshot_restore_reset(kind):
    """One latent at a time: going back to a state gives the same bits, also through tensors; reset is a new start."""
    module = toy_vae(kind)
    z = latents(module, 5).split(1, 2)
    stream = module.stream()
    start = stream.snapshot()
    first = [stream.decode(z[0]), stream.decode(z[1])]
    state = stream.snapshot()
    rest = [stream.decode(p) for p in z[2:]]
    stream.restore(state)
    assert all(torch.equal(stream.decode(p), want) for p, want in zip(z[2:], rest, strict=True))
    other = module.stream()
    other.restore(StreamState.from_tensors({k: v.clone() for k, v in state.to_tensors().items()}))
    assert all(torch.equal(other.decode(p), want) for p, want in zip(z[2:], rest, strict=True))
    for again in (stream.reset, lambda: stream.restore(start)):
        again()
        assert torch.equal(stream.decode(z[0]), first[0]) and torch.equal(stream.decode(z[1]), first[1])


@pytest.mark.parametrize("kind", ["conv", "basis"])
def test_streams_do_not_share_anything(kind):
    module = toy_vae(kind)
    a, b = latents(module, 3, seed=1).split(1, 2), latents(module, 3, seed=2).split(1, 2)
    alone = [[s.decode(p) for p in z] for s, z in ((module.stream(), a), (module.stream(), b))]
    one, two = module.stream(), module.stream()
    for i in range(3):
        assert torch.equal(one.decode(a[i]), alone[0][i]) and torch.equal(two.decode(b[i]), alone[1][i])


@pytest.mark.parametrize("kind", ["conv", "basis"])
def test_state_does_not_grow(kind):
    module = toy_vae(kind)
    stream, sizes = module.stream(), set()
    for part in latents(module, 6).split(1, 2):
        stream.decode(part)
        sizes.add(sum(t.numel() for t in stream.snapshot().to_tensors().values()))
    assert len(sizes) == 1


@pytest.mark.parametrize("kind", ["conv", "basis"])
def test_decoder_is_causal_and_remembers(kind):
    """Latent i changes its own 8 frames and later ones, never an earlier one."""
    module = toy_vae(kind)
    z = latents(module, 4)
    whole = module.decode(z)
    for i in range(4):
        other = z.clone()
        other[:, :, i] += 0.5
        changed = (module.decode(other) != whole).flatten(3).any(-1)[0].any(0)
        first = 0 if i == 0 else 8 * i - 7
        assert not changed[:first].any() and changed[first : 8 * i + 1].all()
        assert i == 3 or changed[8 * i + 1]


@pytest.mark.parametrize("kind", ["conv", "basis"])
def test_encoder_is_causal(kind):
    """Frames 8k-7..8k belong to latent k: a later frame changes no earlier latent, and does change its own."""
    module = toy_vae(kind)
    x = video(module, 25)
    whole = module.encode(x)
    assert whole.shape[2] == 4
    for frame in range(25):
        other = x.clone()
        other[:, :, frame] *= -0.5
        changed = (module.encode(other) != whole).flatten(3).any(-1)[0].any(0)
        latent = (frame + 7) // 8
        assert not changed[:latent].any() and changed[latent]
    prefix = module.encode(x[:, :, :9])
    torch.testing.assert_close(prefix, whole[:, :, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["conv", "basis"])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_frame_counts(kind, n):
    module = toy_vae(kind)
    z = module.encode(video(module, 1 + 8 * n))
    assert z.shape == latents(module, 1 + n).shape
    assert module.decode(z).shape == (1, 3, 1 + 8 * n, *module.size)


@pytest.mark.parametrize("kind", ["conv", "basis"])
def test_latents_are_normalised_by_the_statistics(kind):
    module = TemporalVAE(toy() if kind == "conv" else basis_toy()).double().requires_grad_(False)
    module.load_state_dict(toy_vae(kind).state_dict())
    mean, std = module.latents_mean.clone(), module.latents_std.clone()
    assert (std - 1).abs().max() > 0.1 and mean.abs().max() > 0.1
    x, z = video(module, 9), latents(module, 2)
    normalised, shown = module.encode(x), module.decode(z)
    module.latents_mean.zero_()
    module.latents_std.fill_(1)
    torch.testing.assert_close(normalised, (module.encode(x) - mean) / std, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shown, module.decode(z * std + mean), rtol=1e-12, atol=1e-12)


def test_patch_order():
    """Channel (c, column, row) of LTX-Video, row and column not swapped."""
    x = torch.arange(2 * 3 * 8 * 12.0).view(1, 2, 3, 8, 12)
    y = patchify(x, 4)
    assert y.shape == (1, 32, 3, 2, 3)
    for c, column, row in [(0, 0, 0), (1, 2, 3), (0, 3, 1)]:
        assert torch.equal(y[:, c * 16 + column * 4 + row], x[:, c, :, row::4, column::4])
    assert torch.equal(unpatchify(y, 4), x)


# -- the ops that run where no gradient is wanted


def in_dtype(kind: str, dtype: torch.dtype) -> TemporalVAE:
    """The shared module's weights in this dtype."""
    module = TemporalVAE(toy() if kind == "conv" else basis_toy()).to(dtype)
    module.load_state_dict(toy_vae(kind).state_dict())
    return module.requires_grad_(False)


@pytest.mark.parametrize("kind", ["conv", "basis"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wanted_gradient_does_not_change_the_result(kind, dtype):
    module = in_dtype(kind, dtype)
    z, x = latents(module, 3, 2).to(dtype), video(module, 9, 2).to(dtype)
    for function, source in ((module.decode, z), (module.encode, x)):
        wanted = function(source.clone().requires_grad_(True))
        plain = function(source)
        with torch.no_grad():
            assert torch.equal(function(source.clone().requires_grad_(True)), plain)
        assert wanted.requires_grad and not plain.requires_grad and plain.shape == wanted.shape
        if dtype == torch.float64:  # the op is the reference there
            assert torch.equal(plain, wanted.detach())
        # a dozen fp32 roundings of values near 1 in each of a score of norms
        torch.testing.assert_close(plain, wanted.detach(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind, needed", [("conv", "causal_conv3d"), ("basis", "linear|depth_to_space")])
def test_ops_run_where_no_gradient_is_wanted(kind, needed):
    module = in_dtype(kind, torch.float32)
    z = latents(module, 2).float()
    with ops.use_backend("no-such"):
        with pytest.raises(ops.OpError, match=f"({needed}): backend"):
            module.decode(z)
        module.decode(z.requires_grad_(True))
        with torch.no_grad(), pytest.raises(ops.OpError, match=f"({needed}): backend"):
            module.decode(z)


def test_unpatchify_keeps_rows_together():
    """However it is computed: pictures that lie in memory row by row, of the same bits."""
    x = torch.randn(2, 48, 2, 3, 5)
    got, want = unpatchify(x, 4), unpatchify(x.clone().requires_grad_(True), 4).detach()
    assert torch.equal(got, want) and got.is_contiguous()


# -- refusals


@pytest.mark.parametrize("kind", ["conv", "basis"])
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: x[:, :, :5], ("1 + 8n", "5")),
        (lambda x: x[:, :, :8], ("1 + 8n", "8")),
        (lambda x: x[:, :, :0], ("video", "expected")),
        (lambda x: x[..., :-1], ("video", "expected")),
        (lambda x: x[..., ::2, ::2], ("video", "expected")),
        (lambda x: x[:, :2], ("[B, 3,",)),
        (lambda x: x[:, :, 0], ("[B, 3,",)),
        (lambda x: (x * 127).to(torch.int16), ("expected torch.float64", "int16")),
        (lambda x: (x * 127 + 128).to(torch.uint8), ("expected torch.float64", "uint8")),
    ],
)
def test_encode_refuses(kind, change, words):
    module = toy_vae(kind)
    with pytest.raises(ValueError, match="".join(f"(?=.*{re.escape(w)})" for w in words)):
        module.encode(change(video(module, 9)))


@pytest.mark.parametrize("kind", ["conv", "basis"])
@pytest.mark.parametrize("change", [lambda z: z[:, 1:], lambda z: z[..., :1], lambda z: z[:, :, :0], lambda z: z[0]])
def test_decode_refuses(kind, change):
    module = toy_vae(kind)
    with pytest.raises(ValueError, match="latents: expected"):
        module.decode(change(latents(module, 2)))
    for dtype in (torch.int64, torch.float32):
        with pytest.raises(ValueError, match=f"latents: expected torch.float64 on cpu, got {dtype}"):
            module.decode(latents(module, 2).to(dtype))


@pytest.mark.parametrize("mode", ["lookahead", "lookahead(2)", "", "causal ", "Exact", 3])
def test_modes_that_a_causal_decoder_has_not(mode):
    module = toy_vae("conv")
    for call in (lambda: module.stream(mode=mode), lambda: module.decode(latents(module, 1), mode=mode)):
        with pytest.raises(ValueError, match=rf"mode: expected causal.*{re.escape(str(mode))}"):
            call()
    with pytest.raises(ValueError, match=r"mode: expected causal, got 'exact', which is decode\(\)'s"):
        module.stream(mode="exact")
