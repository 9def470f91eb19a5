"""Distils a causal decoder from one that is not causal, such as all that LTX-Video has released.

The student has the teacher's layers, but sees two past frames where the teacher sees one past and one later frame. It
decodes a clip in pieces of random length, carrying its memory from piece to piece, and learns to show what the teacher
shows of the whole clip. The encoder and the statistics of the latents stay, so both decoders take the same latents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from rest_fast import checkpoint
from rest_fast.config import TEMPORAL, ConvVAEConfig, ModelConfig
from rest_fast.errors import CausalDecoderError as CausalDecoderError
from rest_fast.model import find_checkpoint
from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.layers import CausalConv3d
from rest_fast.models.vae.state import StreamState
from rest_fast.training import losses
from rest_fast.training.config import TrainingConfig
from rest_fast.training.distributed import World
from rest_fast.training.flow import autocast, pick, stage_seed, step_generator
from rest_fast.training.loop import Trainer
from rest_fast.training.reports import LOG, read_log
from rest_fast.training.shards import FRAMES, DataError, Shards
from rest_fast.training.stages import CAUSAL_DECODER

log = logging.getLogger("rest_fast.training")

TEACHER = "teacher.sha256"  # in the stage's folder: which VAE it began with


def read_teacher(source: str | Path) -> TemporalVAE:
    """The VAE of a folder, as ``rest-fast convert ltx-vae`` writes it, or of a whole checkpoint; on the CPU, fp32.

    Raises: CausalDecoderError for a VAE whose decoder is causal already; :class:`rest_fast.checkpoint.CheckpointError`.
    """
    folder = find_checkpoint(source)
    config = checkpoint.read_vae_config(folder)
    vae = config.vae if isinstance(config, ModelConfig) else config
    where = f"{folder / checkpoint.CONFIG}: expected a convolutional VAE whose decoder is not causal"
    if not isinstance(vae, ConvVAEConfig):
        raise CausalDecoderError(f"{where}, got one of kind {vae.kind}, whose decoder is causal already")
    if vae.causal_decoder:
        raise CausalDecoderError(f"{where} (causal_decoder false), got one whose decoder is causal already")
    return TemporalVAE.from_pretrained(folder)


def check(teacher: TemporalVAE, config: TrainingConfig, clips: Shards, world: World) -> None:
    """Check before hours of work all that can be checked. The training's ``model`` plays no part."""
    clips.require("video")
    size, cell = (clips.manifest.height, clips.manifest.width), teacher.config.spatial
    if teacher.size not in (None, size) or size[0] % cell or size[1] % cell:
        want = f"{teacher.size[0]} x {teacher.size[1]}" if teacher.size else f"rows and columns divisible by {cell}"
        raise DataError(f"{clips.folder}: expected clips of {want} for this VAE, got {size[0]} x {size[1]}")
    held_out(clips)
    world.rows(config.causal_decoder.batch, config.causal_decoder.accumulate)


def held_out(clips: Shards) -> tuple[Shards, int, int]:
    """Shards and index of a clip that is measured and never trained on, and how many of ``clips`` are trained on.

    That clip is the first one of the split ``validation``, or else the last of ``clips``.
    """
    if any(entry.get("split") == "validation" for entry in clips.manifest.shards):
        return Shards(clips.folder, "validation"), 0, len(clips)
    if len(clips) < 2:
        raise DataError(f"{clips.folder}: expected a split validation or at least 2 clips, one to measure on, got 1")
    return clips, len(clips) - 1, len(clips) - 1


# -- how the student begins


def causal_copy(teacher: TemporalVAE, start: str) -> TemporalVAE:
    """The same VAE with a causal decoder of its own; encoder and statistics are the teacher's, not copies.

    Args:
        start: ``unchanged`` keeps the decoder's weights, so that each convolution shows the frame before the one it
            is to show. ``folded`` adds the weights for the frame to come to those for the present one
            (:func:`merge_future_taps`).
    """
    config = dataclasses.replace(cast(ConvVAEConfig, teacher.config), causal_decoder=True)
    student = TemporalVAE(config).to(teacher.latents_mean)
    student.decoder.load_state_dict(teacher.decoder.state_dict())
    student.encoder = teacher.encoder
    student.latents_mean, student.latents_std = teacher.latents_mean, teacher.latents_std
    if start == "folded":
        merge_future_taps(student.decoder)
    return student.requires_grad_(False).eval()


@torch.no_grad()
def merge_future_taps(decoder: nn.Module) -> None:
    """Turn symmetric taps (w0, w1, w2) of frames t-1, t, t+1 into causal (0, w0, w1 + w2) of t-2, t-1, t, in place.

    Where the input stands still, each convolution gives what it gave before.
    """
    for conv in decoder.modules():
        if isinstance(conv, CausalConv3d):
            before, now, after = conv.weight.unbind(2)
            conv.weight.copy_(torch.stack([torch.zeros_like(before), before, now + after], 2))


# -- the batches


@dataclass
class DecoderBatch:
    """B clips, and how the step decodes them."""

    frames: torch.Tensor  # fp32 [B, 3, 1 + 8 n, H, W] in -1..1
    seeds: list[int]  # for each clip, of all its noise
    plan: list[int]  # lengths, in latents, of the pieces that all clips are decoded in

    def to(self, device: torch.device) -> DecoderBatch:
        return DecoderBatch(self.frames.to(device, non_blocking=True), self.seeds, self.plan)


class DecoderData:
    """Stretches that begin anywhere in the first ``count`` clips; to the decoder each is the start of a clip."""

    def __init__(self, clips: Shards, count: int, config: TrainingConfig):
        self.clips, self.count, self.stage = clips, count, config.causal_decoder
        self.seed = stage_seed(config.seed, CAUSAL_DECODER)
        self.frames = 1 + TEMPORAL * (self.stage.latents - 1)

    def __call__(self, step: int, rows: range) -> DecoderBatch:
        g, batch = step_generator(self.seed, step), self.stage.batch
        index = pick(self.count, batch, self.seed, step)
        first = torch.randint(FRAMES - self.frames + 1, (batch,), generator=g).tolist()
        plan = draw_plan(self.stage.latents, self.stage.piece, g)
        pixels = [self.clips.pixels(index[row], slice(first[row], first[row] + self.frames)) for row in rows]
        return DecoderBatch(torch.stack(pixels), [self.seed * 1_000_003 + step * batch + row for row in rows], plan)


def draw_plan(latents: int, longest: int, g: torch.Generator) -> list[int]:
    """Random lengths of 1 to ``longest`` whose sum is ``latents``."""
    plan: list[int] = []
    while (left := latents - sum(plan)) > 0:
        plan.append(int(torch.randint(1, min(longest, left) + 1, (), generator=g)))
    return plan


# -- the stage


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients have been computed already; backward passes them on."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, gradients: list[torch.Tensor], *_: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        return None, None, *(slope * gradient for gradient in ctx.gradients)


class CausalDecoder(nn.Module):
    """Distillation of the causal decoder: ``forward(batch)`` gives the losses by name, ``loss`` is minimised.

    The gradients of a piece are computed before the next piece begins, and none reaches the piece before. So memory is
    that of the longest piece, however long the clip is. All frames count, including the first one.
    """

    def __init__(self, teacher: TemporalVAE, config: TrainingConfig):
        super().__init__()
        self.teacher, self.config = teacher.requires_grad_(False), config
        self.student = causal_copy(teacher, config.causal_decoder.start)
        self.student.decoder.requires_grad_(True)

    def forward(self, batch: DecoderBatch) -> dict[str, torch.Tensor]:
        truth, weight = batch.frames, self.config.causal_decoder.truth
        z, images = self.latents(batch)
        with torch.no_grad():  # in fp32, so that the targets are not rounded
            shown = self.teacher.decoder(z, StreamState(1, images=images))
        state, total, at = StreamState(2, images=images), truth.shape[2], 0
        parameters = list(self.student.decoder.parameters())
        gradients: list[torch.Tensor] = []
        sums = truth.new_zeros(2)
        before: list[torch.Tensor | None] = [None, None]
        for piece in z.split(batch.plan, 2):
            with autocast(self.config, z.device):
                made = self.student.decoder(piece, state).float()
            here = slice(at, at := at + made.shape[2])
            errors = [made - wanted[:, :, here] for wanted in (shown, truth)]
            parts = torch.stack([piece_loss(error, last, total) for error, last in zip(errors, before, strict=True)])
            if torch.is_grad_enabled():
                found = torch.autograd.grad(parts[0] + weight * parts[1], parameters)
                if gradients:
                    torch._foreach_add_(gradients, found)
                else:
                    gradients = [gradient.clone() for gradient in found]  # cloned, since two may share memory
            sums += parts.detach()
            before = [error[:, :, -1:].detach() for error in errors]
            state.histories = {path: history.detach().clone() for path, history in state.histories.items()}
            state.started = True
        loss = sums[0] + weight * sums[1]
        if gradients:
            loss = _WithGradients.apply(loss, gradients, *parameters)
        return {"loss": loss, "teacher": sums[0], "truth": sums[1]}

    @torch.no_grad()
    def latents(self, batch: DecoderBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The latents that both decoders read [B, C, 1 + n, h, w], and their noise images [B, H, W] by path."""
        vae, latents, images = self.teacher, [], []
        moments = vae.encoder(batch.frames, StreamState())
        for clip, seed in zip(moments.split(1), batch.seeds, strict=True):
            z, log_variance = clip.split([vae.config.latent_channels, 1], 1)
            if self.config.causal_decoder.sampled:
                noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
                z = z + (0.5 * log_variance).exp() * noise.to(z)
            latents.append(vae.denormalised((z - vae.latents_mean) / vae.latents_std, 0, seed))
            images.append(vae.decoder.images(z, seed))
        return torch.cat(latents), {path: torch.cat([one[path] for one in images]) for path in images[0]}


def piece_loss(error: torch.Tensor, before: torch.Tensor | None, frames: int) -> torch.Tensor:
    """The share of a piece in :func:`rest_fast.training.losses.pixel_loss` of its whole clip.

    Args:
        error: got - wanted, [B, 3, n, H, W].
        before: the error of the frame before the piece; None at the start of the clip.
        frames: number of frames of the whole clip.
    """
    height, width = error.shape[-2:]
    top, bottom, left, right = (side * n // 128 for side, n in zip(losses.MOUTH, (height, height, width, width)))
    still = error.abs().mean() + 2 * error[..., top:bottom, left:right].abs().mean()
    for axis in (3, 4):
        still = still + error.diff(dim=axis).abs().mean()
    joined = error if before is None else torch.cat([before, error], 2)
    each = error[:, :, 0].numel() * (frames - 1)
    return still * (error.shape[2] / frames) + joined.diff(dim=2).abs().sum() / each


# -- measuring the student


@torch.no_grad()
def measure(stage: CausalDecoder, frames: torch.Tensor) -> dict[str, float]:
    """PSNR in dB for a clip [3, 1 + 8 n, H, W]: between student and teacher over all frames, at the first and at the
    worst frame, and between each of them and the clip."""
    teacher, student = stage.teacher, stage.student
    truth = frames[None].to(teacher.latents_mean.device)
    z = teacher.encode(truth)
    wanted, got = (vae.decode(z, mode="exact").clamp(-1, 1) for vae in (teacher, student))
    apart = (got - wanted).square()
    single = apart.mean((0, 1, 3, 4))
    errors = {
        "psnr": apart.mean(),
        "psnr_first": single[0],
        "psnr_worst": single.max(),
        "psnr_truth": (got - truth).square().mean(),
        "psnr_teacher_truth": (wanted - truth).square().mean(),
    }
    return {name: 10 * math.log10(4 / max(float(error), 1e-12)) for name, error in errors.items()}


class Watch:
    """Logs :func:`measure` of the held-out clip before the first step, after the last and every ``sample_every`` steps.

    It measures the running averages of the weights.
    """

    def __init__(self, stage: CausalDecoder, clips: Shards, index: int, folder: Path, world: World):
        self.stage, self.folder, self.world = stage, folder, world
        self.frames = clips.pixels(index, slice(0, 1 + TEMPORAL * (stage.config.causal_decoder.latents - 1)))

    def __call__(self, step: int) -> None:
        done = any(line["step"] == step and "psnr" in line for line in read_log(self.folder))
        if not self.world.first or done:
            return
        values = measure(self.stage, self.frames)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({"step": step, **{name: float(f"{v:.6g}") for name, v in values.items()}}) + "\n")
        words = "causal decoder to the teacher's {psnr:.2f} dB ({psnr_first:.2f} at the first frame)"
        log.info("%s: step %d: %s", CAUSAL_DECODER, step, words.format(**values))


# -- training


def train(teacher: TemporalVAE, config: TrainingConfig, clips: Shards, folder: Path, world: World) -> None:
    """Train, or resume from a state in ``folder``; leaves a VAE there for :meth:`TemporalVAE.from_pretrained`."""
    stage = CausalDecoder(teacher, config)
    trainer = Trainer(stage, config.causal_decoder, config, folder, world)
    shards, index, count = held_out(clips)
    watch = Watch(stage, shards, index, folder, world)
    if trainer.resume() == 0:
        watch(0)
    trainer.run(DecoderData(clips, count, config), watch)
    watch(config.causal_decoder.steps)
    if world.first:
        save(stage.student, folder)
        shutil.rmtree(folder / "state", ignore_errors=True)
    world.barrier()


def claim(teacher: TemporalVAE, folder: Path, world: World) -> None:
    """Write down which VAE this stage begins with; refuse to resume with another one."""
    digest = hashlib.sha256(repr(teacher.config).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    path = folder / TEACHER
    if path.is_file() and path.read_text() != digest.hexdigest():
        raise CausalDecoderError(
            f"{folder}: expected the VAE that it began with, got another one; choose another --out"
        )
    world.barrier()
    if world.first:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(digest.hexdigest())


def save(vae: TemporalVAE, folder: Path) -> None:
    """Write a VAE alone, in fp32."""
    checkpoint.write(vae.state_dict(), cast(ConvVAEConfig, vae.config), folder)
