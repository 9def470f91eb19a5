"""The demo model's VAE: principal components for the basis, the mixer on coefficients, then everything on pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rest_fast.config import TEMPORAL
from rest_fast.model import Model
from rest_fast.models.vae import REFERENCE, StreamState, to_latents, to_tokens
from rest_fast.models.vae_basis import BasisDecoder, BasisEncoder, SpaceTimeBasis
from rest_fast.training.loop import Training
from rest_fast.training.synthetic.clips import FRAMES, Clips

LATENTS = 1 + (FRAMES - 1) // TEMPORAL  # of a clip
PIECE = 3  # latents in one training example of the decoder
NOISE = 0.5  # at most, standard deviation of what is added to latents (of variance about 1): generated ones are not
# exact, and neighbours contradict each other, which only the decoder can settle
MOUTH = (60, 108, 36, 92)  # of 128: rows and columns of the lower face, where errors count more


@torch.no_grad()
def fit_basis(basis: SpaceTimeBasis, clips: Clips, count: int = 700, seed: int = 0) -> None:
    """Principal components per position: of single frames, then of the 8 frames' coefficients."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    blocks = []
    for clip in rng.choice(len(clips), min(len(clips), count), replace=False):
        starts = rng.integers(0, FRAMES - TEMPORAL, 2)
        pieces = [clips.pixels(clip, slice(s, s + TEMPORAL)) for s in starts]
        still = clips.pixels(clip, slice(0, 1)).expand(-1, TEMPORAL, -1, -1)  # what stands for a first frame
        blocks.append(basis.blocks(torch.cat([*pieces, still], 1)[None])[0].half())
    x = torch.cat(blocks)  # [M, P, 8, pixels]
    rank, channels = basis.spatial.shape[2], basis.temporal.shape[2]
    for p in range(x.shape[1]):
        frames = x[:, p].float()
        basis.mean[p] = frames.flatten(0, 1).mean(0)
        centred = frames - basis.mean[p]
        _, _, v = torch.svd_lowrank(centred[:, :: TEMPORAL // 4].flatten(0, 1), q=rank + 16, niter=2)
        basis.spatial[p] = v[:, :rank]
        coefficients = basis.weigh_motion(centred @ basis.spatial[p]).flatten(1)
        values, vectors = torch.linalg.eigh(coefficients.T @ coefficients / len(coefficients))
        basis.temporal[p] = vectors.flip(1)[:, :channels]
        basis.scale[p] = values.flip(0)[:channels].clamp(min=1e-6).sqrt()
    spread = basis.scale.clone()
    basis.scale.copy_(spread**0.7)  # half way between whitening and raw
    basis.scale.mul_((spread / basis.scale).square().mean().sqrt())


@torch.no_grad()
def encode_all(model: Model, clips: Clips) -> torch.Tensor:
    """fp16 [N, 13 T, C] latents of all clips."""
    pieces = (to_tokens(model.vae.encode(clips.pixels(i)[None])).half() for i in range(len(clips)))
    return torch.cat(list(pieces))


@torch.no_grad()
def write_coefficients(basis: SpaceTimeBasis, clips: Clips, path: Path) -> None:
    """True coefficients of all clips, fp16 [N, 13, P, 8, rank]: what the mixer is to find."""
    positions, _, rank = basis.spatial.shape
    shape = (len(clips), LATENTS, positions, TEMPORAL, rank)
    out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for i in range(len(clips)):
        video = clips.pixels(i)
        video = torch.cat([video[:, :1].expand(-1, TEMPORAL - 1, -1, -1), video], 1)
        out[i] = basis.coefficients(basis.blocks(video[None]))[0].half().numpy()
    out.flush()


@torch.no_grad()
def calibrate_mixer(model: Model, latents: torch.Tensor, truth: NDArray[np.float16], count: int = 200) -> None:
    """Start the mixer with inputs of variance 1 and corrections of the size of the linear decoder's errors."""
    basis, decoder = parts(model)
    want = torch.from_numpy(truth[:count].astype(np.float32))
    got = basis.expand(to_latents(latents[:count].float(), model.config.grid))
    spread = want.std((0, 1, 3), correction=0)
    decoder.mixer.proj_in /= spread[..., None] + 0.05 * spread.mean()
    decoder.mixer.reach.copy_((want - got).square().mean((0, 1, 3)).sqrt()[:, None])


def train_mixer(
    model: Model,
    latents: torch.Tensor,
    truth: NDArray[np.float16],
    steps: int,
    work: Path,
    batch: int = 8,
    peak: float = 1e-3,
    seed: int = 3,
) -> int:
    """Squared error of coefficients (that of pixels, as the basis is orthonormal), and of their change in time."""
    basis, decoder = parts(model)
    training = Training(work / "mixer.safetensors", list(decoder.mixer.parameters()), peak, 0.01)
    pixels = basis.spatial.shape[1]
    weight = _mouth_blocks(model)[:, None, None]

    def loss(step: int) -> torch.Tensor:
        g, index, first = _pick(seed, step, len(latents), batch)
        want = torch.from_numpy(truth[index.numpy(), first : first + PIECE].astype(np.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            state = StreamState()
            state.started = True
            got = decoder.mixer(basis.expand(_noisy(model, latents, index, first, g)), state)
        error = got.float() - want
        changes = error.permute(0, 2, 1, 3, 4).flatten(2, 3).diff(dim=2)  # over latent borders too
        return ((weight * error.square()).sum(-1).mean() + (weight * changes.square()).sum(-1).mean()) / pixels

    training.run(loss, steps)
    training.finish()
    return training.step


def train_decoder(
    model: Model, clips: Clips, latents: torch.Tensor, steps: int, work: Path, peak: float = 2e-4, seed: int = 2
) -> int:
    """Mixer and post-net on pixels: L1, and L1 of differences along time, rows and columns; the mouth three times."""
    _, decoder = parts(model)
    training = Training(work / "decoder.safetensors", list(decoder.parameters()), peak)

    def loss(step: int) -> torch.Tensor:
        g, index, first = _pick(seed, step, len(latents), 2)
        want = torch.stack([_frames_of(clips, int(i), first) for i in index])
        state = StreamState()
        state.started = True  # all 8 frames of the first latent; those of a clip's first latent are copies
        state.histories[REFERENCE] = torch.stack([clips.pixels(int(i), slice(0, 1)) for i in index])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            picture, reference = decoder.linear(_noisy(model, latents, index, first, g), state)
            correction, gate, moved = decoder.post.parts(picture, reference, state)
        got = picture + correction + gate * (moved - picture)
        # where the gate is shut the field would learn nothing
        return pixel_loss(got.float(), want) + 0.5 * (moved.float() - want).abs().mean()

    training.run(loss, steps)
    training.finish()
    return training.step


def parts(model: Model) -> tuple[SpaceTimeBasis, BasisDecoder]:
    encoder, decoder = model.vae.encoder, model.vae.decoder
    assert isinstance(encoder, BasisEncoder) and isinstance(decoder, BasisDecoder)
    return encoder.basis, decoder


def _pick(seed: int, step: int, clips: int, batch: int) -> tuple[torch.Generator, torch.Tensor, int]:
    """What a step trains on: its generator, clips and first latent. The same after a resume."""
    g = torch.Generator().manual_seed(seed * 1_000_003 + step)
    index = torch.randint(clips, (batch,), generator=g)
    return g, index, int(torch.randint(LATENTS - PIECE + 1, (1,), generator=g))


def _noisy(model: Model, latents: torch.Tensor, index: torch.Tensor, first: int, g: torch.Generator) -> torch.Tensor:
    tokens = model.config.tokens
    piece = latents[index, first * tokens : (first + PIECE) * tokens].float()
    level = NOISE * torch.rand(len(index), 1, 1, generator=g)
    return to_latents(piece + level * torch.randn(piece.shape, generator=g), model.config.grid)


def _mouth_blocks(model: Model) -> torch.Tensor:
    """[P] with mean 1: the two blocks of the lower face count three times."""
    rows, columns = model.config.grid
    weight = torch.ones(rows, columns)
    weight[rows // 2, columns // 4 : -(columns // 4) or None] = 3
    return weight.flatten() / weight.mean()


def _frames_of(clips: Clips, clip: int, first: int) -> torch.Tensor:
    """The frames that a piece stands for; a clip's first latent stands for 8 copies of frame 0."""
    low = 1 + TEMPORAL * (first - 1)
    frames = clips.pixels(clip, slice(max(low, 0), low + PIECE * TEMPORAL))
    return torch.cat([frames[:, :1].expand(-1, max(0, -low), -1, -1), frames], 1)


def pixel_loss(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Scalar of square videos [B, 3, n, size, size]."""
    error = got - want
    top, bottom, left, right = (side * want.shape[-1] // 128 for side in MOUTH)
    loss = error.abs().mean() + 2 * error[..., top:bottom, left:right].abs().mean()
    for axis in (2, 3, 4):
        loss = loss + error.diff(dim=axis).abs().mean()
    return loss
