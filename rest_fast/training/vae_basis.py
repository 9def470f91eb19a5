"""Trains the VAE of drawn faces: principal components for the basis, the mixer on coefficients, then all on pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rest_fast.config import TEMPORAL
from rest_fast.model import Model
from rest_fast.models.vae.basis import BasisDecoder, BasisEncoder, SpaceTimeBasis
from rest_fast.models.vae.state import REFERENCE, StreamState
from rest_fast.training import losses
from rest_fast.training.config import Stage, TrainingConfig
from rest_fast.training.distributed import World
from rest_fast.training.flow import LATENTS, autocast, pick, step_generator, token_weights
from rest_fast.training.shards import FRAMES, DataError, Shards

# Largest standard deviation of the noise that is added to latents, whose variance is about 1. Generated latents are not
# exact, and neighbouring positions contradict each other, which only the decoder can correct.
NOISE = 0.5
CALIBRATION = 200  # pieces from which the mixer's first scales are computed


def parts(model: Model) -> tuple[SpaceTimeBasis, BasisDecoder]:
    encoder, decoder = model.vae.encoder, model.vae.decoder
    assert isinstance(encoder, BasisEncoder) and isinstance(decoder, BasisDecoder)
    return encoder.basis, decoder


# -- the basis


def fit_or_load(model: Model, clips: Shards, config: TrainingConfig, path: Path, world: World) -> None:
    """Take the basis and the mixer's first scales from a file, or fit them and write that file."""
    basis, decoder = parts(model)
    held = {**{f"basis.{k}": v for k, v in basis.state_dict().items()}}
    held |= {"mixer.proj_in": decoder.mixer.proj_in.data, "mixer.reach": decoder.mixer.reach.data}
    if world.first and not path.is_file():
        fit_basis(basis, clips, config.vae.fit_clips, config.seed)
        calibrate_mixer(model, *calibration_pieces(model, clips, config))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in held.items()}, partial)
        partial.replace(path)
    world.barrier()
    for name, tensor in load_file(path).items():
        held[name].copy_(tensor)


@torch.no_grad()
def fit_basis(basis: SpaceTimeBasis, clips: Shards, count: int, seed: int = 0) -> None:
    """Principal components per position: of single frames, then of the 8 frames' coefficients."""
    rank, channels = basis.spatial.shape[2], basis.temporal.shape[2]
    each = 3 * TEMPORAL // (TEMPORAL // 4)  # frames of a clip that the spatial fit uses
    if each * min(len(clips), count) < rank + 16:
        need = -(-(rank + 16) // each)
        raise DataError(f"{clips.folder}: expected at least {need} clips for {rank} components, got {len(clips)}")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    blocks = []
    for clip in rng.choice(len(clips), min(len(clips), count), replace=False).tolist():
        starts = rng.integers(0, FRAMES - TEMPORAL, 2).tolist()
        pieces = [clips.pixels(clip, slice(s, s + TEMPORAL)) for s in starts]
        still = clips.pixels(clip, slice(0, 1)).expand(-1, TEMPORAL, -1, -1)  # as the first frame of a clip is encoded
        blocks.append(basis.blocks(torch.cat([*pieces, still], 1)[None])[0].half())
    x = torch.cat(blocks)  # [M, P, 8, pixels]
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
def calibration_pieces(model: Model, clips: Shards, config: TrainingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients [M, n, P, 8, rank] of random pieces: as the linear decoder restores them, and the true ones."""
    basis, _ = parts(model)
    data = PieceData(clips, config, CALIBRATION)
    truth = torch.cat([basis.coefficients(basis.blocks(data(0, range(i, i + 1)).frames)) for i in range(CALIBRATION)])
    return basis.expand(_latents(basis, truth)), truth


@torch.no_grad()
def calibrate_mixer(model: Model, got: torch.Tensor, want: torch.Tensor) -> None:
    """Start the mixer with inputs of variance 1 and corrections of the size of the linear decoder's errors."""
    _, decoder = parts(model)
    spread = want.std((0, 1, 3), correction=0)
    decoder.mixer.proj_in /= spread[..., None] + 0.05 * spread.mean()
    decoder.mixer.reach.copy_((want - got).square().mean((0, 1, 3)).sqrt()[:, None])


def _latents(basis: SpaceTimeBasis, coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients [B, n, P, 8, rank] -> latents [B, C, n, h, w]; as ``project``, which begins with pixels."""
    latent = torch.einsum("bnpk,pkc->bnpc", basis.weigh_motion(coefficients).flatten(3), basis.temporal) / basis.scale
    return latent.permute(0, 3, 1, 2).unflatten(-1, basis.grid)


# -- what the two trainings see


@dataclass
class PieceBatch:
    """``frames`` fp32 [B, 3, 8 n, H, W] of some latents, ``photo`` [B, 3, 1, H, W] of their clips, both in -1..1, and
    ``noise`` [B, C, n, h, w] that the latents get."""

    frames: torch.Tensor
    photo: torch.Tensor
    noise: torch.Tensor

    def to(self, device: torch.device) -> PieceBatch:
        return PieceBatch(*(t.to(device, non_blocking=True) for t in (self.frames, self.photo, self.noise)))


class PieceData:
    """Pieces of ``config.vae.pieces`` latents that begin at any latent of a clip."""

    def __init__(self, clips: Shards, config: TrainingConfig, batch: int | None = None):
        self.clips, self.config, self.batch = clips, config, batch or config.vae.batch
        self.pieces = min(config.vae.pieces, LATENTS)

    def of(self, stage: Stage) -> PieceData:
        return PieceData(self.clips, self.config, stage.batch)

    def __call__(self, step: int, rows: range) -> PieceBatch:
        seed, model = self.config.seed, self.config.model
        g = step_generator(seed, step)
        index = pick(len(self.clips), self.batch, seed, step)
        first = torch.randint(LATENTS - self.pieces + 1, (self.batch,), generator=g).tolist()
        level = NOISE * torch.rand(self.batch, generator=g)
        frames = torch.stack([frames_of(self.clips, index[row], first[row], self.pieces) for row in rows])
        photo = torch.stack([self.clips.pixels(index[row], slice(0, 1)) for row in rows])
        shape = (model.vae.latent_channels, self.pieces, *model.grid)
        sources = [step_generator(seed, step, row) for row in rows]
        noise = torch.stack([level[row] * torch.randn(shape, generator=s) for row, s in zip(rows, sources)])
        return PieceBatch(frames, photo, noise)


def frames_of(clips: Shards, clip: int, first: int, pieces: int) -> torch.Tensor:
    """The frames of a piece of latents; a clip's first latent stands for 8 copies of frame 0."""
    low = 1 + TEMPORAL * (first - 1)
    frames = clips.pixels(clip, slice(max(low, 0), low + pieces * TEMPORAL))
    return torch.cat([frames[:, :1].expand(-1, max(0, -low), -1, -1), frames], 1)


class MixerStage(nn.Module):
    """Squared error of coefficients, which is that of pixels in an orthonormal basis, and of their change in time."""

    weight: torch.Tensor

    def __init__(self, model: Model, config: TrainingConfig):
        super().__init__()
        self.basis, self.decoder = parts(model)
        self.config, self.pixels = config, self.basis.spatial.shape[1]
        rows, _ = model.config.grid
        weight = token_weights(model.config, 3.0).view(model.config.grid).clone()
        weight[rows // 2 + 1 :] = weight[0, 0]  # the lips lie in a single row of blocks
        self.register_buffer("weight", (weight / weight.mean()).view(-1, 1, 1), persistent=False)

    def forward(self, batch: PieceBatch) -> dict[str, torch.Tensor]:
        want = self.basis.coefficients(self.basis.blocks(batch.frames))
        state = StreamState()
        state.started = True
        with autocast(self.config, want.device):
            got = self.decoder.mixer(self.basis.expand(_latents(self.basis, want) + batch.noise), state)
        error = got.float() - want
        changes = error.permute(0, 2, 1, 3, 4).flatten(2, 3).diff(dim=2)  # across the borders of latents, too
        terms = {"coefficients": error, "changes": changes}
        sums = {k: (self.weight * e.square()).sum(-1).mean() / self.pixels for k, e in terms.items()}
        return {"loss": sums["coefficients"] + sums["changes"], **sums}


class PixelStage(nn.Module):
    """Mixer and post-net on pixels."""

    def __init__(self, model: Model, config: TrainingConfig):
        super().__init__()
        self.basis, self.decoder = parts(model)
        self.config = config

    def forward(self, batch: PieceBatch) -> dict[str, torch.Tensor]:
        latents = self.basis.project(self.basis.blocks(batch.frames)) + batch.noise
        state = StreamState()
        state.started = True  # so that all 8 frames of the first latent count; of a clip's first latent they are copies
        state.histories[REFERENCE] = batch.photo
        with autocast(self.config, latents.device):
            picture, reference = self.decoder.linear(latents, state)
            correction, gate, moved = self.decoder.post.parts(picture, reference, state)
        got = picture + correction + gate * (moved - picture)
        terms = {
            "pixels": losses.pixel_loss(got.float(), batch.frames),
            # without this term the field learns nothing where the gate is closed
            "moved": (moved.float() - batch.frames).abs().mean(),
        }
        return {"loss": terms["pixels"] + 0.5 * terms["moved"], **terms}
