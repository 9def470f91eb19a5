"""The first demo weights: drawn faces whose mouths follow loudness. One command, resumable stage by stage.

    python -m rest_fast.training.first_weights --work build/first --out rest_fast/assets/demo

Stages: ``data`` (clips), ``basis`` (linear space-time basis of the VAE and latents of all clips), ``dit`` (SpeechAE
encoder and DiT together, flow matching through the functional reference, streaming layout), ``post`` (the VAE's
post-net), ``pack``. The last two trainings are independent and may run at the same time.
"""

from __future__ import annotations

import argparse
import math
import time
import wave
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from rest_fast.config import TEMPORAL, ModelConfig, preset
from rest_fast.model import Model
from rest_fast.models.speech import FRAME
from rest_fast.models.vae import StreamState, to_tokens
from rest_fast.models.vae_basis import BasisDecoder, BasisEncoder, SpaceTimeBasis
from rest_fast.schedule import draw_cans, logit_normal_table
from rest_fast.training.drawn_faces import LEAD, TAIL, make_clips, portrait, speech_like

FRAMES = 97
EXAMPLE_SEED = 100_005
TEST_CLIPS = 24  # the last clips are never trained on
MOUTH = (slice(64, 128), slice(32, 96))  # rows and columns of the lower face at 128 x 128


class Clips:
    """Clips on disk, mapped: video uint8 [N, 97, H, W, 3], samples fp32 [N, LEAD + 97 x 640 + TAIL], mouth [N, 97]."""

    def __init__(self, work: Path, mode: str = "r", count: int = 0, size: int = 128):
        shapes = {
            "video": (np.uint8, (count, FRAMES, size, size, 3)),
            "mouth": (np.float32, (count, FRAMES)),
            "samples": (np.float32, (count, LEAD + FRAMES * FRAME + TAIL)),
        }
        if mode == "r":
            arrays = {name: np.load(work / f"{name}.npy", mmap_mode="r") for name in shapes}
        else:
            arrays = {
                name: np.lib.format.open_memmap(work / f"{name}.npy", "w+", dtype, shape)
                for name, (dtype, shape) in shapes.items()
            }
        self.video, self.samples, self.mouth = arrays["video"], arrays["samples"], arrays["mouth"]

    def pixels(self, clip: int, frames: slice) -> torch.Tensor:
        """fp32 [3, n, H, W] in -1..1."""
        return torch.from_numpy(self.video[clip, frames].copy()).permute(3, 0, 1, 2) / 127.5 - 1


def make_data(work: Path, count: int, workers: int, config: ModelConfig) -> None:
    clips = Clips(work, "w", count, config.height)
    for i, clip in enumerate(make_clips(range(count), workers, FRAMES, config.height)):
        clips.video[i], clips.samples[i], clips.mouth[i] = clip.video, clip.samples, clip.mouth
    for array in (clips.video, clips.samples, clips.mouth):
        array.flush()


@torch.no_grad()
def fit_basis(basis: SpaceTimeBasis, clips: Clips, train: int, seed: int = 0) -> None:
    """Principal components per position: of single frames, then of the 8 frames' coefficients."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    blocks = []
    for clip in rng.choice(train, min(train, 600), replace=False):
        starts = rng.integers(0, FRAMES - TEMPORAL, 2)
        pieces = [clips.pixels(clip, slice(s, s + TEMPORAL)) for s in starts]
        still = clips.pixels(clip, slice(0, 1)).expand(-1, TEMPORAL, -1, -1)  # what stands for a first frame
        blocks.append(basis.blocks(torch.cat([*pieces, still], 1)[None])[0])  # [3, P, 8, pixels]
    x = torch.cat(blocks).half()  # [M, P, 8, pixels]
    for p in range(x.shape[1]):
        frames = x[:, p].float()
        basis.mean[p] = frames.flatten(0, 1).mean(0)
        centred = frames - basis.mean[p]
        every = centred[:, :: TEMPORAL // 4].flatten(0, 1)
        _, _, v = torch.svd_lowrank(every, q=basis.spatial.shape[2] + 16, niter=3)
        basis.spatial[p] = v[:, : basis.spatial.shape[2]]
        coefficients = (centred @ basis.spatial[p]).flatten(1)
        values, vectors = torch.linalg.eigh(coefficients.T @ coefficients / len(coefficients))
        channels = basis.temporal.shape[2]
        basis.temporal[p] = vectors.flip(1)[:, :channels]
        basis.scale[p] = values.flip(0)[:channels].clamp(min=1e-6).sqrt()
    spread = basis.scale.clone()
    basis.scale.copy_(spread**0.7)  # half way between whitening and raw
    basis.scale.mul_((spread / basis.scale).square().mean().sqrt())


@torch.no_grad()
def encode_all(model: Model, clips: Clips) -> torch.Tensor:
    """fp32 [N, 13 T, C] latents of all clips."""
    return torch.cat(
        [to_tokens(model.vae.encode(clips.pixels(i, slice(0, FRAMES))[None])) for i in range(len(clips.video))]
    )


class Ema:
    """Running average of parameters."""

    def __init__(self, parameters: list[nn.Parameter], decay: float = 0.998):
        self.parameters, self.decay = parameters, decay
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        for p, a in zip(self.parameters, self.average, strict=True):
            p.data, a.data = a.data.clone(), p.data.clone()


class Progress:
    """Resumable state of one training in one safetensors file: parameters, AdamW's moments, more if given."""

    def __init__(
        self,
        path: Path,
        parameters: list[nn.Parameter],
        optimiser: torch.optim.Optimizer,
        more: dict[str, torch.Tensor] | None = None,
        every: int = 200,
    ):
        self.path, self.every, self.optimiser = path, every, optimiser
        self.tensors = dict(more or {})
        for i, p in enumerate(parameters):
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            optimiser.state[p] = {"step": torch.tensor(0.0), **moments}
            self.tensors |= {f"{name}.{i}": t for name, t in moments.items()}
            self.tensors[f"parameter.{i}"] = p.data

    @torch.no_grad()
    def load(self) -> int:
        if not self.path.is_file():
            return 0
        saved = load_file(self.path)
        for name, tensor in self.tensors.items():
            tensor.copy_(saved[name])
        for state in self.optimiser.state.values():
            state["step"].fill_(float(saved["step"]))
        return int(saved["step"])

    def save(self, step: int) -> None:
        partial = self.path.with_suffix(".partial")
        save_file({**self.tensors, "step": torch.tensor(step)}, partial)
        partial.rename(self.path)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, constant to 40 %, cosine to a fiftieth."""
    if step < 100:
        return peak * (step + 1) / 100
    past = max(0.0, (step / steps - 0.4) / 0.6)
    return peak * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(past, 1))))


def train_dit(
    model: Model,
    clips: Clips,
    latents: torch.Tensor,
    train: int,
    steps: int,
    work: Path,
    batch: int = 8,
    peak: float = 1e-3,
    seed: int = 1,
) -> None:
    """SpeechAE encoder and DiT, flow matching with CANS noise; an auxiliary head reads the mouth off the codes."""
    config, dit = model.config, model.dit
    speech = config.speech
    head = nn.Linear(speech.tokens * speech.width, TEMPORAL)
    parameters = [*dit.parameters(), *model.speech.parameters(), *head.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    ema = Ema(parameters)
    averages = {f"ema.{i}": a for i, a in enumerate(ema.average)}
    progress = Progress(work / "dit.safetensors", parameters, optimiser, averages)
    table = logit_normal_table(config.sampling.train_mu, config.sampling.train_sigma)
    mouth_tokens = _mouth_weight(config)
    begin, start, shown = progress.load(), time.time(), []
    for step in range(begin, steps):
        g = torch.Generator().manual_seed(seed * 1_000_003 + step)  # the same batch after a resume
        index = torch.randint(train, (batch,), generator=g)
        loss, flow = _dit_loss(model, head, clips, latents, index, table, mouth_tokens, g)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        ema.update(step)
        shown.append(flow)
        if (step + 1) % progress.every == 0 or step + 1 == steps:
            progress.save(step + 1)
            print(f"dit {step + 1}/{steps} v-mse {np.mean(shown):.4f} {(time.time() - start) / 60:.1f} min", flush=True)
            shown = []
    ema.swap()


def _dit_loss(
    model: Model,
    head: nn.Module,
    clips: Clips,
    latents: torch.Tensor,
    index: torch.Tensor,
    table: torch.Tensor,
    weight: torch.Tensor,
    g: torch.Generator,
) -> tuple[torch.Tensor, float]:
    config, tokens, batch = model.config, model.config.tokens, len(index)
    chunk = config.stream.chunk
    frames = latents.shape[1] // tokens
    keep_ref, keep_audio = _dropouts(batch, g)
    codes = clip_codes(model, clips, index)
    aux = F.mse_loss(
        head(codes.flatten(2)), torch.from_numpy(clips.mouth[index.numpy(), 1:].copy()).unflatten(1, (-1, TEMPORAL))
    )
    codes = torch.cat([torch.zeros_like(codes[:, :1]), codes * keep_audio[:, None, None, None]], 1)
    z0 = latents[index]
    t = draw_cans(table, batch, (frames - 1) // chunk, chunk, g)
    noise = torch.randn(z0.shape, generator=g)
    tt = t.repeat_interleave(tokens, 1)[..., None]
    z = (1 - tt) * z0 + tt * noise
    z[:, :tokens] *= keep_ref[:, None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        v = model.dit(z, t, codes, "streaming").float()
    error = ((v - (noise - z0))[:, tokens:].square().mean(-1) * weight.repeat(frames - 1)).mean()
    return error + 0.1 * aux, error.item()


def clip_codes(model: Model, clips: Clips, index: torch.Tensor) -> torch.Tensor:
    """Codes [B, 12, A, Wa] of frames 1..96; frame 0 and what lies before it is the zero vector."""
    features = model.features
    a = LEAD + FRAME - features.back
    b = LEAD + FRAMES * FRAME + features.ahead
    samples = torch.from_numpy(clips.samples[index.numpy(), a:b].copy())
    windows = features(samples)
    return model.speech(torch.cat([torch.zeros_like(windows[:, :TEMPORAL]), windows], 1))


def _dropouts(batch: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(keep reference, keep audio) as 0/1 [B]: both dropped 0.1, each alone 0.05."""
    u = torch.rand(batch, generator=g)
    return (~((u < 0.1) | ((u >= 0.1) & (u < 0.15)))).float(), (~((u < 0.1) | ((u >= 0.15) & (u < 0.2)))).float()


def _mouth_weight(config: ModelConfig) -> torch.Tensor:
    """[T] with mean 1: tokens of the lower face count three times."""
    rows, columns = config.grid
    weight = torch.ones(rows, columns)
    weight[rows // 2 :, columns // 4 : -(columns // 4) or None] = 3
    return weight.flatten() / weight.mean()


def train_post(
    model: Model,
    clips: Clips,
    latents: torch.Tensor,
    train: int,
    steps: int,
    work: Path,
    batch: int = 2,
    peak: float = 2e-4,
    seed: int = 2,
) -> None:
    """L1 on pixels and on their spatial and temporal differences, lower face three times; three latents a piece."""
    decoder = model.vae.decoder
    assert isinstance(decoder, BasisDecoder)
    parameters = list(decoder.post.parameters())
    for p in parameters:
        p.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.0)
    progress = Progress(work / "post.safetensors", parameters, optimiser)
    begin, start, shown = progress.load(), time.time(), []
    grid, tokens = model.config.grid, model.config.tokens
    for step in range(begin, steps):
        g = torch.Generator().manual_seed(seed * 1_000_003 + step)
        index = torch.randint(train, (batch,), generator=g)
        first = int(torch.randint(11, (1,), generator=g))
        piece = latents[index, first * tokens : (first + 3) * tokens]
        z = piece.transpose(1, 2).unflatten(2, (3, *grid))
        want = torch.stack([_frames_of(clips, int(i), first) for i in index])
        state = StreamState()
        state.started = True  # all 8 frames of the first latent; those of a clip's first latent are copies
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = decoder(z, state).float()
        loss = _pixel_loss(got, want)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        shown.append(loss.item())
        if (step + 1) % progress.every == 0 or step + 1 == steps:
            progress.save(step + 1)
            print(f"post {step + 1}/{steps} loss {np.mean(shown):.4f} {(time.time() - start) / 60:.1f} min", flush=True)
            shown = []


def _frames_of(clips: Clips, clip: int, first: int) -> torch.Tensor:
    """The 24 frames that three latents stand for; a clip's first latent stands for 8 copies of frame 0."""
    low = 1 + TEMPORAL * (first - 1)
    frames = clips.pixels(clip, slice(max(low, 0), low + 3 * TEMPORAL))
    return torch.cat([frames[:, :1].expand(-1, max(0, -low), -1, -1), frames], 1)


def _pixel_loss(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    error = got - want
    rows, columns = MOUTH
    loss = error.abs().mean() + 2 * error[..., rows, columns].abs().mean()
    for axis in (2, 3, 4):
        loss = loss + error.diff(dim=axis).abs().mean()
    return loss


def write_examples(out: Path) -> None:
    """The shipped portrait (an identity never trained on) and 8 s of synthetic speech."""
    Image.fromarray(portrait(EXAMPLE_SEED, 512)).save(out / "portrait.png", optimize=True)
    samples = speech_like(np.random.default_rng(EXAMPLE_SEED), 8.0)
    with wave.open(str(out / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for clips and training state")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--stage", choices=["all", "data", "basis", "dit", "post", "pack"], default="all")
    parser.add_argument("--clips", type=int, default=1200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--dit-steps", type=int, default=8000)
    parser.add_argument("--post-steps", type=int, default=6000)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    run(args)


def run(args: argparse.Namespace) -> None:
    stages = ["data", "basis", "dit", "post", "pack"] if args.stage == "all" else [args.stage]
    torch.manual_seed(0)
    model = Model(preset("demo")).requires_grad_(False)
    encoder = model.vae.encoder
    assert isinstance(encoder, BasisEncoder)
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    if "data" in stages and not (work / "data.done").exists():
        make_data(work, args.clips, args.workers, model.config)
        (work / "data.done").touch()
    if stages == ["data"]:
        return
    clips = Clips(work)
    train = len(clips.video) - TEST_CLIPS
    if "basis" in stages and not (work / "basis.safetensors").exists():
        fit_basis(encoder.basis, clips, train)
        latents = encode_all(model, clips)
        save_file({"latents": latents, **encoder.basis.state_dict()}, work / "basis.safetensors")
    saved = load_file(work / "basis.safetensors")
    latents = saved.pop("latents")
    encoder.basis.load_state_dict(saved)
    if "dit" in stages:
        train_dit(model, clips, latents, train, args.dit_steps, work)
    if "post" in stages:
        train_post(model, clips, latents, train, args.post_steps, work)
    if "pack" in stages:
        train_dit(model, clips, latents, train, 0, work)  # loads what was trained
        train_post(model, clips, latents, train, 0, work)
        model.save(args.out)
        write_examples(args.out)


if __name__ == "__main__":
    main()
