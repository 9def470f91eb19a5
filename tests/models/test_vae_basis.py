"""The basis VAE against linear algebra, its mixer against one dense, masked attention; and what a reference is for."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.basis import Mixer, SpaceTimeBasis, move
from rest_fast.models.vae.state import StreamState
from tests.kit.models import F64, basis_toy, latents, toy_vae, video


@pytest.fixture(scope="module")
def basis() -> SpaceTimeBasis:
    return toy_vae("basis").encoder.basis


@pytest.fixture(scope="module")
def mixer() -> Mixer:
    return toy_vae("basis").decoder.mixer


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def linear(basis: SpaceTimeBasis, blocks: torch.Tensor) -> torch.Tensor:
    """What is left of blocks that were encoded and decoded without mixer and post-net."""
    return basis.synthesise(basis.expand(basis.project(blocks)))


def idle(module: TemporalVAE) -> TemporalVAE:
    """With mixer and post-net as the identity: no correction, and nothing of the reference."""
    post, (correction, gate, _) = module.decoder.post, module.decoder.post.out_channels
    for tensor in (module.decoder.mixer.proj_out, post.conv_out.weight, post.conv_out.bias):
        tensor.zero_()
    post.conv_out.bias[correction : correction + gate] = -1e4
    return module


def copy(**changes) -> TemporalVAE:
    """The shared module's weights under a changed VAE configuration, to be altered."""
    module = TemporalVAE(basis_toy().replace(**changes)).double()
    module.load_state_dict(toy_vae("basis").state_dict(), strict=False)
    return module.requires_grad_(False)


# -- the basis


def heavier(blocks: torch.Tensor, weight: float) -> torch.Tensor:
    """[..., 8, pixels] with what differs from the mean over the 8 frames made ``weight`` times as large."""
    still = blocks.sum(-2, keepdim=True) / 8
    return still + weight * (blocks - still)


@pytest.mark.parametrize("weight", [0.5, 1.0, 1.5])
def test_projection_is_weighted_least_squares(weight):
    """numpy's solution over all latents of one position, with motion made heavier on both sides."""
    basis = copy(vae__motion_weight=weight).encoder.basis
    blocks = noise(1, 1, 4, 8, 3 * 256)
    got, mean = linear(basis, blocks)[0, 0], basis.mean[:, None]
    for p in range(4):
        # a column for each latent channel: the block that it adds to the mean
        columns = torch.einsum("frc,xr->fxc", basis.temporal[p].unflatten(0, (8, -1)), basis.spatial[p])
        columns = heavier(columns.movedim(-1, 0), 1 / weight)  # [C, 8, pixels]
        matrix, target = heavier(columns, weight).flatten(1).T, heavier(blocks[0, 0, p] - mean[p], weight).flatten()
        solution = np.linalg.lstsq(matrix.numpy(), target.numpy(), rcond=None)[0]
        want = mean[p] + torch.einsum("cfx,c->fx", columns, torch.from_numpy(solution))
        torch.testing.assert_close(got[p], want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_projection_is_orthogonal_in_its_norm(weight):
    """Applied twice it does nothing more; what it leaves out is orthogonal to all that it can say. With weight 1 the
    norm is the plain one."""
    basis = copy(vae__motion_weight=weight).encoder.basis
    blocks, mean = noise(2, 3, 4, 8, 3 * 256), basis.mean[:, None]
    once = linear(basis, blocks)
    torch.testing.assert_close(linear(basis, once), once, rtol=1e-12, atol=1e-12)
    said = heavier(basis.synthesise(basis.expand(noise(2, 6, 3, 2, 2, seed=1))) - mean, weight)
    left, whole = heavier(blocks - once, weight), heavier(blocks - mean, weight)
    # sums of 6144 products of numbers near 1 and near 0.03
    assert (said * left).sum((-1, -2)).abs().max() < 1e-11
    pythagoras = left.square().sum() + heavier(once - mean, weight).square().sum()
    assert pythagoras.item() == pytest.approx(whole.square().sum().item(), rel=1e-12)


def test_weight_one_is_the_plain_projection():
    """Two orthogonal projections one after the other, by pseudo-inverses."""
    basis = copy(vae__motion_weight=1.0).encoder.basis
    blocks = noise(1, 2, 4, 8, 3 * 256)
    frames = (blocks - basis.mean[:, None]) @ torch.linalg.pinv(basis.spatial).mT
    kept = frames.flatten(3)[..., None, :] @ torch.linalg.pinv(basis.temporal).mT @ basis.temporal.mT
    want = kept[..., 0, :].unflatten(-1, (8, -1)) @ basis.spatial.mT + basis.mean[:, None]
    torch.testing.assert_close(linear(basis, blocks), want, rtol=1e-11, atol=1e-12)


def test_motion_weight_moves_errors_from_motion_to_stillness():
    """Fewer errors in what changes are paid for with more in the mean: what the weight is for."""
    blocks = noise(1, 8, 4, 8, 3 * 256)
    still, moving = [], []
    for weight in (0.5, 1.0, 2.0, 4.0):
        basis = copy(vae__motion_weight=weight).encoder.basis
        error = blocks - linear(basis, blocks)
        still.append(error.mean(-2).square().sum().item())
        moving.append((error - error.mean(-2, keepdim=True)).square().sum().item())
    assert still == sorted(still) and moving == sorted(moving, reverse=True)
    assert still[0] < still[-1] and moving[-1] < moving[0]


def test_basis_starts_orthonormal():
    """Fresh bases, before any training."""
    fresh = TemporalVAE(basis_toy()).encoder.basis
    for b in (fresh.spatial.double(), fresh.temporal.double()):
        eye = torch.eye(b.shape[-1], dtype=F64).expand(4, -1, -1)
        torch.testing.assert_close(b.mT @ b, eye, rtol=0, atol=1e-5)  # float32 QR of 768 rows


def test_blocks_and_pictures(basis):
    x = video(toy_vae("basis"), 16, 2)
    blocks = basis.blocks(x)
    assert blocks.shape == (2, 2, 4, 8, 3 * 256)
    assert torch.equal(basis.pictures(blocks), x)
    # position 1 is the upper right block; a block of pixels holds (c, row, column)
    assert torch.equal(blocks[1, 1, 1, 3].view(3, 16, 16), x[1, :, 11, :16, 16:])
    assert torch.equal(blocks[0, 0, 2, 7].view(3, 16, 16), x[0, :, 7, 16:, :16])


def test_latents_of_a_decoded_clip_are_the_latents():
    """By the basis alone: decode, then encode, for all but the first latent of 8 copies."""
    module = idle(copy())
    z = latents(module, 4)
    again = module.encode(module.decode(z))
    torch.testing.assert_close(again[:, :, 1:], z[:, :, 1:], rtol=1e-11, atol=1e-11)
    still = video(module, 1)  # the first frame of a clip stands for 8 copies of itself
    copies = still.expand(-1, -1, 9, -1, -1)
    torch.testing.assert_close(module.encode(copies)[:, :, 1], module.encode(still)[:, :, 0], rtol=1e-12, atol=1e-12)


# -- the mixer


def dense_mixer(mixer: Mixer, coefficients: torch.Tensor) -> torch.Tensor:
    """All tokens of all latents [B, n, P, 8, rank] in one attention; a token sees its own latent and the one before.

    At its start a stream takes the first latent for its own past. Twice the same keys and values double numerator and
    denominator of the softmax alike, so there this is attention to the latent alone, and needs no special case.
    """
    batch, count, positions, frames, _ = coefficients.shape
    latent = torch.arange(count).repeat_interleave(positions * frames)
    gap = latent[:, None] - latent[None]
    seen = (gap == 0) | (gap == 1)

    def norm(x: torch.Tensor, layer: torch.nn.LayerNorm) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias

    x = torch.stack([coefficients[:, :, p] @ mixer.proj_in[p] + mixer.position[p] for p in range(positions)], 2)
    x = x.reshape(batch, -1, x.shape[-1])
    for layer in mixer.layers:
        q, k, v = layer.qkv(norm(x, layer.norm_attention)).chunk(3, -1)
        heads = []
        for qh, kh, vh in zip(*(y.chunk(layer.heads, -1) for y in (q, k, v)), strict=True):
            score = (qh @ kh.mT / math.sqrt(qh.shape[-1])).masked_fill(~seen, -math.inf)
            heads.append(score.softmax(-1) @ vh)
        x = x + layer.out(torch.cat(heads, -1))
        x = x + layer.down(F.gelu(layer.up(norm(x, layer.norm_mlp)), approximate="tanh"))
    x = norm(x, mixer.norm).view(batch, count, positions, frames, -1)
    moved = torch.stack([x[:, :, p] @ mixer.proj_out[p] * mixer.reach[p] for p in range(positions)], 2)
    return coefficients + moved


@pytest.mark.parametrize("count", [1, 2, 5])
def test_mixer_is_one_masked_attention(mixer, count):
    coefficients = noise(2, count, 4, 8, 5, seed=count)
    want = dense_mixer(mixer, coefficients)
    assert (want - coefficients).std() > 0.05  # it matters
    torch.testing.assert_close(mixer(coefficients, StreamState()), want, rtol=1e-11, atol=1e-12)


def test_mixer_reaches_back_one_latent_a_layer(mixer):
    """Latent i moves itself and the next ones, as many as there are layers, in every block and frame; no others."""
    coefficients = noise(1, 6, 4, 8, 5)
    whole = mixer(coefficients, StreamState())
    for i in range(6):
        other = coefficients.clone()
        other[:, i, 2, 5] += 1
        changed = (mixer(other, StreamState()) != whole).any(-1)[0]
        reach = range(i, min(i + len(mixer.layers), 5) + 1)
        for j in range(6):
            assert changed[j].all() if j in reach else not changed[j].any()


def test_mixer_in_pieces(mixer):
    """The state carries what is seen: any cut gives the whole, and a state put back goes on as if never left."""
    coefficients = noise(2, 6, 4, 8, 5)
    whole = mixer(coefficients, StreamState())
    for cuts in ([1] * 6, [1, 3, 2], [4, 2]):
        state = StreamState()
        pieces = [mixer(part, state) for part in coefficients.split(cuts, 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-12, atol=1e-13)
    state = StreamState()
    mixer(coefficients[:, :2], state)
    saved = state.snapshot()
    first = mixer(coefficients[:, 2:4], state)
    mixer(noise(2, 3, 4, 8, 5, seed=9), saved.snapshot())  # another future of the same past
    assert torch.equal(mixer(coefficients[:, 2:4], saved), first)


@torch.no_grad()
def test_memory_of_the_mixer_is_that_of_one_latent(mixer):
    sizes = {}
    for count in (3, 30):
        state = StreamState()
        for part in noise(2, count, 4, 8, 5).split(3, 1):
            mixer(part, state)
        sizes[count] = {name: (t.shape, t.untyped_storage().nbytes()) for name, t in state.histories.items()}
    assert sizes[3] == sizes[30]
    assert set(sizes[3]) == {f"decoder.mixer.layers.{i}" for i in range(len(mixer.layers))}
    for shape, held in sizes[3].values():
        assert shape == (2, 1, 4 * 8, 2 * 12) and held == math.prod(shape) * 8  # keys and values, no hidden rest


def test_fresh_mixer_is_the_identity():
    mixer = TemporalVAE(basis_toy()).decoder.mixer
    coefficients = torch.randn(1, 3, 4, 8, 5)
    assert torch.equal(mixer(coefficients, StreamState()), coefficients)


def test_without_layers_every_token_is_alone():
    """What is left is a correction of each frame of each block by itself."""
    mixer = copy(vae__mixer_layers=0).decoder.mixer
    coefficients = noise(1, 3, 4, 8, 5)
    other = coefficients.clone()
    other[0, 1, 2, 3] += 1
    changed = (mixer(other, state := StreamState()) != mixer(coefficients, StreamState())).any(-1)
    assert changed.nonzero().tolist() == [[0, 1, 2, 3]] and not state.histories


def test_mixer_corrects_what_is_shown():
    """The toy's mixer matters to a whole decoded clip, so that tests of streams are tests of it."""
    module, without = toy_vae("basis"), copy()
    without.decoder.mixer.proj_out.zero_()
    z = latents(module, 3)
    assert (module.decode(z) - without.decode(z)).std() > 0.01


# -- the post-net and the reference


def test_moved_by_whole_pixels():
    """A field says where each pixel looks: x to the right, y downwards; beyond the border the border goes on."""
    g = torch.Generator().manual_seed(0)
    reference = torch.rand(2, 3, 1, 8, 12, generator=g)
    field = torch.zeros(2, 2, 3, 2, 3)  # of three frames, one vector for 4 x 4 pixels
    field[0, 0, 1], field[0, 1, 1] = 2, -3
    field[1, :, 2] = 100
    got = move(reference, field)
    assert got.shape == (2, 3, 3, 8, 12)
    want = reference.repeat(1, 1, 3, 1, 1)
    rows, columns = (torch.arange(8) - 3).clamp(min=0), (torch.arange(12) + 2).clamp(max=11)
    want[0, :, 1] = reference[0, :, 0, rows][:, :, columns]
    want[1, :, 2] = reference[1, :, 0, -1:, -1:]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_fresh_post_net_shows_the_picture_and_a_trace_of_the_reference():
    module = TemporalVAE(basis_toy()).requires_grad_(False)
    picture, reference = torch.rand(1, 3, 16, 32, 32), torch.rand(1, 3, 1, 32, 32)
    trace = 1 / (1 + math.exp(4))
    got = module.decoder.post(picture, reference, StreamState())
    torch.testing.assert_close(got, (1 - trace) * picture + trace * reference, rtol=0, atol=1e-6)


def test_an_open_gate_shows_the_reference():
    module = idle(copy())
    correction, gate, _ = module.decoder.post.out_channels
    module.decoder.post.conv_out.bias[correction : correction + gate] = 1e4
    photo, z = video(module, 1), latents(module, 3)
    assert torch.allclose(module.decode(z, reference=photo), photo.expand(-1, -1, 17, -1, -1), atol=1e-5)
    first, other = module.decode(z), z.clone()
    other[:, :, 1:] *= -1
    assert torch.allclose(first, first[:, :, :1], atol=1e-5)  # without a photo the first latent has to do,
    assert torch.allclose(module.decode(other), first, atol=1e-12)  # and no later one


def test_reference_in_pieces():
    """A stream shows the photo that it was opened with, after any cut, and after a reset."""
    module = toy_vae("basis")
    photos, z = video(module, 1, 2, seed=5), latents(module, 5, 2)
    whole = module.decode(z, reference=photos)
    assert (whole - module.decode(z)).std() > 0.01  # it matters
    stream = module.stream(reference=photos)
    for cuts in ([1] * 5, [2, 3]):
        pieces = [stream.decode(part) for part in z.split(cuts, 2)]
        torch.testing.assert_close(torch.cat(pieces, 2), whole, rtol=1e-12, atol=1e-12)
        stream.reset()
    alone = module.decode(z[1:], reference=photos[1:])
    torch.testing.assert_close(alone, whole[1:], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="reference: expected"):
        module.stream(reference=photos[..., 1:])


def test_a_stream_that_only_has_its_photo_has_not_started():
    """Saved and restored before its first latent, it gives one frame for it, as any stream does."""
    module = toy_vae("basis")
    photo, z = video(module, 1), latents(module, 1)
    stream = module.stream(reference=photo)
    want = module.stream(reference=photo).decode(z)
    stream.restore(StreamState.from_tensors(stream.snapshot().to_tensors()))
    assert torch.equal(stream.decode(z), want) and want.shape[2] == 1
    with pytest.raises(ValueError, match="expected 1 frame, got 2"):
        module.stream(reference=photo.expand(-1, -1, 2, -1, -1))


def test_convolutions_in_bfloat16():
    """No further from float64 than twice what eager PyTorch is, all of whose post-net is in that dtype."""
    module = TemporalVAE(basis_toy())
    module.load_state_dict(toy_vae("basis").state_dict())
    module.requires_grad_(False)
    z, photo = latents(module, 4).float(), video(module, 1).float()
    exact = toy_vae("basis").decode(z.double(), reference=photo.double())
    state = StreamState()
    state.histories["reference"] = photo
    picture, reference = module.decoder.linear(z * module.latents_std + module.latents_mean, state)
    eager = deepcopy(module.decoder.post).to(torch.bfloat16)
    eager = eager(picture.bfloat16(), reference.bfloat16(), StreamState())[:, :, 7:]
    plain = module.decode(z, reference=photo)
    stream = module.convolve_in(torch.bfloat16).stream(reference=photo)
    got = torch.cat([stream.decode(part) for part in z.split([1, 3], 2)], 2)
    error = [float((x.double() - exact).square().mean().sqrt()) for x in (got, eager, plain)]
    assert got.dtype == torch.float32 and error[2] < 0.1 * error[0] < 0.2 * error[1], error
    assert torch.equal(module.convolve_in(None).decode(z, reference=photo), plain)
