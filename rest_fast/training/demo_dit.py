"""The demo model's SpeechAE encoder and DiT, together: plain flow matching in the streaming layout, CANS noise."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.config import TEMPORAL, ModelConfig
from rest_fast.model import Model
from rest_fast.models.speech import FRAME
from rest_fast.schedule import draw_cans, logit_normal_table
from rest_fast.training.loop import Training
from rest_fast.training.synthetic.clips import FRAMES, LEAD, Clips
from rest_fast.training.synthetic.portraits import MOTION
from rest_fast.training.synthetic.visemes import MOUTH

LIPS = [MOTION.index(name) for name in MOUTH]


def train_dit(
    model: Model,
    clips: Clips,
    latents: torch.Tensor,
    steps: int,
    work: Path,
    batch: int = 8,
    peak: float = 1e-3,
    seed: int = 1,
) -> int:
    """Velocity error, and a tenth of that of a linear head which reads the lips off the codes: it replaces the
    pre-training of the SpeechAE, and is not kept."""
    config, dit = model.config, model.dit
    torch.manual_seed(seed)
    head = nn.Linear(config.speech.tokens * config.speech.width, TEMPORAL * len(LIPS))
    parameters = [*dit.parameters(), *model.speech.parameters(), *head.parameters()]
    training = Training(work / "dit.safetensors", parameters, peak, 0.01)
    table = logit_normal_table(config.sampling.train_mu, config.sampling.train_sigma)
    weight = mouth_tokens(config)

    def loss(step: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(seed * 1_000_003 + step)
        index = torch.randint(len(latents), (batch,), generator=g)
        codes = clip_codes(model, clips, index)
        lips = torch.from_numpy(clips.motion[index.numpy(), 1:][..., LIPS].copy())
        read = head(codes.flatten(2)).unflatten(2, (TEMPORAL, -1)).flatten(1, 2)
        return flow_loss(model, latents[index].float(), codes, table, weight, g) + 0.1 * F.mse_loss(read, lips)

    training.run(loss, steps)
    training.finish()
    return training.step


def flow_loss(
    model: Model, z0: torch.Tensor, codes: torch.Tensor, table: torch.Tensor, weight: torch.Tensor, g: torch.Generator
) -> torch.Tensor:
    """Mean squared error of the velocity ``noise - z0`` of clean latents z0 [B, F T, C] at CANS timesteps; frame 0 is
    the reference and does not count. Codes [B, F - 1, A, Wa]; ``weight`` [T] of the tokens, mean 1."""
    tokens, chunk = model.config.tokens, model.config.stream.chunk
    frames = z0.shape[1] // tokens
    keep_ref, keep_audio = _dropouts(len(z0), g)
    codes = torch.cat([torch.zeros_like(codes[:, :1]), codes * keep_audio[:, None, None, None]], 1)
    t = draw_cans(table, len(z0), (frames - 1) // chunk, chunk, g)
    noise = torch.randn(z0.shape, generator=g)
    tt = t.repeat_interleave(tokens, 1)[..., None]
    z = (1 - tt) * z0 + tt * noise
    z[:, :tokens] *= keep_ref[:, None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = model.dit(z, t, codes, "streaming").float()
    error = (v - (noise - z0))[:, tokens:].square().mean(-1)
    return (error * weight.repeat(frames - 1)).mean()


def clip_codes(model: Model, clips: Clips, index: torch.Tensor) -> torch.Tensor:
    """Codes [B, 12, A, Wa] of frames 1..96; frame 0 and what lies before it is the zero vector."""
    features = model.features
    first, last = LEAD + FRAME - features.back, LEAD + FRAMES * FRAME + features.ahead
    windows = features(torch.from_numpy(clips.samples[index.numpy(), first:last].copy()))
    return model.speech(torch.cat([torch.zeros_like(windows[:, :TEMPORAL]), windows], 1))


def mouth_tokens(config: ModelConfig) -> torch.Tensor:
    """[T] with mean 1: tokens of the lower face count three times."""
    rows, columns = config.grid
    weight = torch.ones(rows, columns)
    weight[rows // 2 :, columns // 4 : -(columns // 4) or None] = 3
    return weight.flatten() / weight.mean()


def _dropouts(batch: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(keep reference, keep audio) as 0/1 [B]: both dropped 0.1, each alone 0.05."""
    u = torch.rand(batch, generator=g)
    return (~((u < 0.1) | ((u >= 0.1) & (u < 0.15)))).float(), (~((u < 0.1) | ((u >= 0.15) & (u < 0.2)))).float()
