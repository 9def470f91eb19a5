"""What the three stages of the DiT share: random draws of a step, batches of clips, and the networks trained."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rest_fast.config import TEMPORAL, Layout, ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.model import Model
from rest_fast.models.clip_attention import Context
from rest_fast.streaming.schedule import draw_cans, logit_normal_table
from rest_fast.training import losses
from rest_fast.training.config import Corruption, TrainingConfig
from rest_fast.training.shards import FRAMES, Shards

LATENTS = 1 + (FRAMES - 1) // TEMPORAL


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage, so that two stages of a training do not see the same noise on the same clips."""
    return _hashed(seed, stage)


def step_generator(seed: int, step: int, row: int = -1) -> torch.Generator:
    """The generator of a step, or of its clip ``row``: the same after a resume and in any number of processes."""
    return torch.Generator().manual_seed(_hashed(seed, step, row))


def _hashed(*key: int | str) -> int:
    """A hash of 32 bits, all that the CPU's generator uses; those of neighbouring keys are unrelated."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big")


def pick(clips: int, batch: int, seed: int, step: int) -> list[int]:
    """The clips of a step: every epoch goes through all of them once, in an order of its own."""
    picked: list[int] = []
    first = step * batch
    while len(picked) < batch:
        epoch, at = divmod(first + len(picked), clips)
        order = torch.randperm(clips, generator=torch.Generator().manual_seed(_hashed(seed, "epoch", epoch)))
        picked += order[at : at + batch - len(picked)].tolist()
    return picked


def autocast(config: TrainingConfig, device: torch.device) -> Any:
    """The precision of the computation; weights stay fp32."""
    if config.precision == "fp32":
        return contextlib.nullcontext()
    # No cache of cast weights: a pass with gradients would use those that a pass without gradients has left there.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


@dataclass
class Batch:
    """B clips of F latent frames with T tokens: what a step of teacher, student or both trains on."""

    z0: torch.Tensor  # fp32 [B, F T, C] clean latents, frame 0 the reference
    noise: torch.Tensor  # fp32 [B, F T, C]
    t: torch.Tensor  # fp32 [B, F] timesteps, frame 0 at 0
    features: torch.Tensor  # fp32 [B, 8 (F - 1), positions, channels]
    keep_reference: torch.Tensor  # fp32 [B], 0 or 1
    keep_audio: torch.Tensor  # fp32 [B], 0 or 1
    roll: torch.Tensor  # fp32 [B], one uniform number for the whole step; it decides on ``self_rollout``

    def noised(self) -> torch.Tensor:
        """z_t = (1 - t) z0 + t noise, [B, F T, C]; the reference is clean, or zero if it is dropped."""
        tokens = self.z0.shape[1] // self.t.shape[1]
        t = self.t.repeat_interleave(tokens, 1)[..., None]
        z = (1 - t) * self.z0 + t * self.noise
        z[:, :tokens] *= self.keep_reference[:, None, None]
        return z

    def to(self, device: torch.device) -> Batch:
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


class FlowData:
    """Batches of a prepared folder for one configuration. What a step draws does not depend on the processes."""

    def __init__(self, config: TrainingConfig, clips: Shards, latents: Shards, batch: int, seed: int | None = None):
        clips.require("features")
        latents.require("latents")
        clips.require_speech(config.model.speech)
        if len(clips) != len(latents):
            raise ArgumentError(f"{latents.folder}: expected latents of {len(clips)} clips, got {len(latents)}")
        self.config, self.clips, self.latents, self.batch = config, clips, latents, batch
        self.seed = config.seed if seed is None else seed
        sampling = config.model.sampling
        self.table = logit_normal_table(sampling.train_mu, sampling.train_sigma)

    def __call__(self, step: int, rows: range) -> Batch:
        config, stream = self.config, self.config.model.stream
        picked = pick(len(self.clips), self.batch, self.seed, step)
        index = [picked[row] for row in rows]
        g = step_generator(self.seed, step)
        keep_reference, keep_audio = draw_dropouts(config.corruption, self.batch, g)
        chunks = (LATENTS - 1) // stream.chunk
        t = draw_cans(self.table, self.batch, chunks, stream.chunk, g, config.corruption.synchronous)
        roll = torch.rand(1, generator=g).expand(self.batch)
        z0 = self.latents.read("latents", index).float()
        # one generator per clip, so that a process draws noise for its own clips only
        sources = [step_generator(self.seed, step, row) for row in rows]
        noise = torch.stack([torch.randn(z0.shape[1:], generator=source) for source in sources])
        here = slice(rows.start, rows.stop)
        features = self.clips.read("features", index).float()
        return Batch(z0, noise, t[here], features, keep_reference[here], keep_audio[here], roll[here])


def draw_dropouts(what: Corruption, batch: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(keep reference, keep audio) as 0/1 [B]."""
    u = torch.rand(batch, generator=g)
    both = u < what.both
    reference = (u >= what.both) & (u < what.both + what.reference)
    audio = (u >= what.both + what.reference) & (u < what.both + what.reference + what.audio)
    return (~(both | reference)).float(), (~(both | audio)).float()


class Network(nn.Module):
    """The two parts of a model that these stages train together: SpeechAE encoder and DiT."""

    def __init__(self, model: Model):
        super().__init__()
        self.speech, self.dit = model.speech, model.dit

    def forward(self, batch: Batch, layout: Layout, context: Context | None = None) -> torch.Tensor:
        """Velocities of all frames, fp32 [B, F T, C]."""
        return self.velocity(batch.noised(), batch, layout, context)

    def velocity(self, z: torch.Tensor, batch: Batch, layout: Layout, context: Context | None = None) -> torch.Tensor:
        codes = clip_codes(self.speech, batch.features) * batch.keep_audio[:, None, None, None]
        codes = torch.cat([torch.zeros_like(codes[:, :1]), codes], 1)  # frame 0 has the null code
        velocity: torch.Tensor = self.dit(z, batch.t, codes, layout, context)
        return velocity.float()


def clip_codes(speech: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Codes [B, F - 1, A, Wa] of the features of frames 1..96; frame 0 and those before it count as zero vectors."""
    codes: torch.Tensor = speech(torch.cat([torch.zeros_like(features[:, :TEMPORAL]), features], 1))
    return codes


def flow_loss(v: torch.Tensor, batch: Batch, weight: torch.Tensor) -> torch.Tensor:
    """L_FM of velocities [B, F T, C]; ``weight`` [T] of the tokens, with mean 1."""
    v, z0, noise = (x.unflatten(1, (-1, len(weight)))[:, 1:] for x in (v, batch.z0, batch.noise))
    return losses.flow_matching(v, z0, noise, weight)


def frames_after_reference(v: torch.Tensor, tokens: int) -> torch.Tensor:
    """Velocities [B, F T, C] -> those of the frames after the reference, flattened: [B, F - 1, T C]."""
    return v.unflatten(1, (-1, tokens))[:, 1:].flatten(2)


def token_weights(config: ModelConfig, mouth: float) -> torch.Tensor:
    """[T] with mean 1: tokens of the lower face count ``mouth`` times."""
    rows, columns = config.grid
    weight = torch.ones(rows, columns)
    weight[rows // 2 :, columns // 4 : -(columns // 4) or None] = mouth
    return weight.flatten() / weight.mean()


class FlowStage(nn.Module):
    """Base of the stages of the DiT: ``forward(batch)`` gives the losses by name, ``loss`` is what is minimised."""

    token_weight: torch.Tensor

    def __init__(self, model: Model, config: TrainingConfig):
        super().__init__()
        self.network = Network(model)
        self.config, self.tokens = config, model.config.tokens
        self.register_buffer("token_weight", token_weights(model.config, config.corruption.mouth), persistent=False)
        model.dit.checkpointing = config.checkpointing

    def blocks(self) -> list[nn.Module]:
        return list(self.network.dit.blocks)

    def autocast(self) -> Any:
        return autocast(self.config, self.token_weight.device)
