"""The paper's ablations in miniature: what the sink, the context, the distillation and its terms are worth.

    python benchmarks/ablation.py train --data build/demo/prepared --work build/ablation --seeds 0 1 2
    python benchmarks/ablation.py measure --data build/demo/prepared --work build/ablation --test build/demo/test \\
        --reader build/demo/reader.safetensors
    python benchmarks/ablation_report.py --figure docs/ablation.png && python benchmarks/tables.py

``--config`` takes another model's latents (a preset, or a JSON file of training), ``--variants`` a part of the runs.
Every run is resumable, and its measurements are stored when it ends. Shared: the data and the VAE by all; the speech
encoder and the teacher by one seed; the student by those variants that differ in the distillation alone. Policies of
inference need no training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rest_fast
from rest_fast import checkpoint
from rest_fast.config import Layout
from rest_fast.evaluation.batched import measure_streams, stream_latents
from rest_fast.evaluation.demo_report import machine
from rest_fast.evaluation.distances import frechet_distance
from rest_fast.evaluation.readers import PixelReader, latents
from rest_fast.evaluation.streams import Talk
from rest_fast.model import Model
from rest_fast.models.vae import to_tokens
from rest_fast.processor import decoder_dtype
from rest_fast.training import chain
from rest_fast.training.config import TrainingConfig, read_config
from rest_fast.training.flow import clip_codes
from rest_fast.training.reports import read_log
from rest_fast.training.shards import Shards
from rest_fast.training.synthetic.clips import FRAMES, LEAD, Clips
from rest_fast.units import FRAME

log = logging.getLogger("rest_fast.ablation")

SHARED = ("speech", "teacher")
SECONDS, TALKS, CLIPS = 60, 4, 24  # streams of a seed, of held-out people, voices and sentences; clips of such people
DECODER = decoder_dtype() or torch.float32  # opening r and colours of both agree to 0.002 and 0.01 levels
RANK, FITTED = 32, 400  # principal axes of latents, and training clips that they come from
LEVELS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  # timesteps at which the velocity is compared


@dataclass(frozen=True)
class Variant:
    """What differs from ``full``: in the model of student and ASD, in the distillation, or at inference."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)  # retrains student and ASD
    asd: dict[str, Any] = field(default_factory=dict)  # retrains ASD from the student of ``full``
    inference: dict[str, Any] = field(default_factory=dict)  # retrains nothing


VARIANTS = (
    Variant("full"),
    Variant("without sink", model={"stream__sink": False}),
    Variant("without context", model={"stream__context_chunks": 0}),
    Variant("without ASD", asd={"contrastive": 0.0, "smooth": 0.0}),
    Variant("without contrastive", asd={"contrastive": 0.0}),
    Variant("without smooth", asd={"smooth": 0.0}),
    Variant("absolute positions", model={"stream__positions": "absolute"}),
    Variant("context clean", inference={"stream__context": "clean"}),
    Variant("context per_step", inference={"stream__context": "per_step"}),
)


def schedule(seed: int, source: str = "drawn", changes: Sequence[str] = ()) -> TrainingConfig:
    """A training with a smaller DiT and short stages, the same for all variants."""
    config = read_config(source, changes).replace(
        model__dit__layers=4, model__dit__heads=2, seed=seed, save_every=250, report_every=50
    )
    stages: dict[str, dict[str, Any]] = {
        "speech": {"steps": 600},
        "teacher": {"steps": 1500, "rate": 1.5e-3},
        "student": {"steps": 700, "rate": 1e-3},
        "asd": {"steps": 500, "rate": 5e-4},
    }
    return config.replace(**{f"{stage}__{k}": v for stage, values in stages.items() for k, v in values.items()})


def train(data: Path, work: Path, config: TrainingConfig, vae: str, variants: Sequence[Variant]) -> None:
    """All trainings of one seed, in the order in which they need each other; what is done already is left."""
    seed = config.seed
    shared, full = work / f"seed_{seed}" / "shared", work / f"seed_{seed}" / "full"
    for stage in SHARED:
        chain.run(stage, config, data, shared, vae=vae, resume=True, device="cpu")
    for variant in variants:
        if variant.inference:
            continue
        folder = work / f"seed_{seed}" / variant.name.replace(" ", "_")
        changes = {f"model__{k}": v for k, v in variant.model.items()} | {
            f"asd__{k}": v for k, v in variant.asd.items()
        }
        _take(shared, folder, SHARED)
        if variant.asd:
            _take(full, folder, ("student",))
        for stage in ("student", "asd"):
            start = time.time()
            chain.run(stage, config.replace(**changes), data, folder, vae=vae, resume=True, device="cpu")
            log.info("seed %d, %s, %s: %.0f s", seed, variant.name, stage, time.time() - start)


def _take(source: Path, folder: Path, stages: tuple[str, ...]) -> None:
    """Results of stages from another folder, as if this one had trained them."""
    for stage in stages:
        target = folder / stage
        if not (target / checkpoint.WEIGHTS).is_file():
            target.mkdir(parents=True, exist_ok=True)
            for name in (checkpoint.CONFIG, checkpoint.WEIGHTS):
                shutil.copyfile(source / stage / name, target / name)


def folder_of(work: Path, seed: int, variant: Variant) -> Path:
    """The checkpoint of a variant."""
    trained = "full" if variant.inference else variant.name.replace(" ", "_")
    return work / f"seed_{seed}" / trained / "asd"


def load(work: Path, seed: int, variant: Variant) -> Model:
    """The trained model of a variant."""
    folder = folder_of(work, seed, variant)
    config = checkpoint.read_config(folder).replace(**variant.inference)
    model = Model(config)
    checkpoint.read_weights(model, folder)
    return model.eval().requires_grad_(False)


# -- measurements


@dataclass
class Held:
    """What all models are measured on: people, voices and words of the split `test`."""

    clips: Clips
    count: int  # of clips that are looked at
    truth: torch.Tensor  # fp32 [count, 12, T C] latents of the clips behind their references
    axes: torch.Tensor  # [T C, RANK] principal axes of training latents
    reader: PixelReader

    @classmethod
    @torch.no_grad()
    def load(cls, data: Path, test: Path, reader: Path, vae: str) -> Held:
        model, clips = rest_fast.load(vae, device="cpu"), Clips(test)
        if clips.about["split"] != "test":
            raise ValueError(f"{test}: expected clips of the split test, got {clips.about['split']!r}")
        train = Shards(data, "train")
        train.require_encoder(model)
        known = train.read("latents", range(0, len(train), max(1, len(train) // FITTED)))
        known = known.float().unflatten(1, (-1, model.config.tokens))[:, 1:].flatten(2).flatten(0, 1)
        axes = torch.svd_lowrank(known - known.mean(0), q=RANK, niter=4)[2]
        count = min(CLIPS, len(clips))
        truth = torch.stack([latents(model, clips.pixels(i)) for i in range(count)])
        return cls(clips, count, truth, axes, PixelReader.load(reader))


def measure(model: Model, held: Held, seed: int) -> dict[str, Any]:
    """All numbers of one model: of long streams, and of clips against the truth."""
    side = model.config.height
    talks = [Talk.random(TALKS * seed + n, SECONDS, size=side) for n in range(TALKS)]  # a seed has its own people
    seeds = [1000 * seed + n for n in range(TALKS)]
    streams = measure_streams(model, talks, held.reader, seeds=seeds, dtype=DECODER)
    return {"streams": [dataclasses.asdict(s) for s in streams], "clips": measure_clips(model, held, seed)}


@torch.no_grad()
def measure_clips(model: Model, held: Held, seed: int) -> dict[str, float]:
    """Fréchet distances of generated latents and of their changes in time to those of the true clips: what FID and FVD
    are to pixels; and the error of the velocity on the true clips, noised."""
    talks = talks_of(held.clips, held.count)
    seeds = [1000 * seed + 500 + i for i in range(len(talks))]
    made = torch.cat([stream_latents(model, talks[i : i + 8], seeds=seeds[i : i + 8]) for i in range(0, len(talks), 8)])
    flat = [x.flatten(2) @ held.axes for x in (made, held.truth)]
    looks, moves = ([frame(x).flatten(0, 1).numpy() for x in flat] for frame in (lambda x: x, lambda x: x.diff(dim=1)))
    return {
        "frechet_latents": frechet_distance(*looks),
        "frechet_changes": frechet_distance(*moves),
        "velocity_error": velocity_error(model, held.clips, held.truth),
    }


def talks_of(clips: Clips, count: int) -> list[Talk]:
    """The first clips as people who talk."""
    return [Talk(np.asarray(clips.video[i, 0]), clips.sound(i), clips.gap(i)[1:]) for i in range(count)]


@torch.no_grad()
def velocity_error(model: Model, clips: Clips, truth: torch.Tensor, layout: Layout = "streaming") -> float:
    """Mean squared error of the velocity over :data:`LEVELS`, with everything known and nothing dropped, on the first
    clips, whose latents behind the reference are ``truth`` [count, 12, T C]."""
    count, tokens = len(truth), model.config.tokens
    samples = torch.from_numpy(clips.samples[:count, LEAD + FRAME - model.features.back :].copy())
    features = model.features(samples[:, : model.features.back + (FRAMES - 1) * FRAME + model.features.ahead])
    codes = clip_codes(model.speech, features)
    codes = torch.cat([torch.zeros_like(codes[:, :1]), codes], 1)
    photos = torch.stack([latents_of_photo(model, clips, i) for i in range(count)])
    z0 = torch.cat([photos, truth.unflatten(2, (tokens, -1)).flatten(1, 2)], 1)
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for level in LEVELS:
        t = torch.full((len(z0), z0.shape[1] // tokens), level)
        t[:, 0] = 0
        tt = t.repeat_interleave(tokens, 1)[..., None]
        v = model.dit((1 - tt) * z0 + tt * noise, t, codes, layout)
        errors.append((v - (noise - z0))[:, tokens:].square().mean())
    return float(torch.stack(errors).mean())


def latents_of_photo(model: Model, clips: Clips, clip: int) -> torch.Tensor:
    """[T, C] of frame 0."""
    return to_tokens(model.vae.encode(clips.pixels(clip, slice(0, 1))[None]))[0]


def measure_all(work: Path, results: Path, held: Held, seeds: list[int], variants: Sequence[Variant]) -> None:
    """Every trained variant that has not been measured yet; a file for each."""
    results.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for variant in variants:
            path = results / f"seed_{seed}.{variant.name.replace(' ', '_')}.json"
            if path.exists() or not (folder_of(work, seed, variant) / checkpoint.WEIGHTS).is_file():
                continue
            start = time.time()
            about: dict[str, Any] = {"variant": variant.name, "seed": seed, "talks": TALKS, "clips": held.count}
            about |= {"training": lengths(work, seed, variant), "versions": {"torch": torch.__version__}}
            about |= {"machine": machine(), "measured_at": commit()}
            numbers = measure(load(work, seed, variant), held, seed)
            about["seconds"] = round(time.time() - start)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(about | numbers, indent=1) + "\n")
            partial.replace(path)
            log.info("measured seed %d, %s: %d s", seed, variant.name, about["seconds"])


def commit() -> str:
    """Of the sources that measure, where they are a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def lengths(work: Path, seed: int, variant: Variant) -> dict[str, Any]:
    """Steps and seconds of the stages behind a variant, from their logs."""
    found = {}
    for stage in (*SHARED, "student", "asd"):
        folder = work / f"seed_{seed}" / "shared" if stage in SHARED else folder_of(work, seed, variant).parent
        lines = read_log(folder / stage) or read_log(work / f"seed_{seed}" / "full" / stage)
        if lines:
            last = lines[-1]
            found[stage] = {"steps": last["step"], "seconds": round(last["step"] * last["step_seconds"])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training, measuring = commands.add_parser("train"), commands.add_parser("measure")
    for command in (training, measuring):
        command.add_argument("--data", type=Path, required=True, help="prepared clips with features, latents, labels")
        command.add_argument("--vae", required=True, help="checkpoint whose VAE made the latents (docs/ablation.md)")
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        command.add_argument("--variants", nargs="+", choices=[v.name for v in VARIANTS], help="all unless given")
        command.add_argument("--threads", type=int, default=1)
    training.add_argument("--config", default="drawn", help="preset of a training, or its JSON file")
    training.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="changes, as of rest-fast train")
    measuring.add_argument("--test", type=Path, required=True, help="rest-fast synth --split test")
    measuring.add_argument("--reader", type=Path, required=True, help="fitted mouth reader (demo_report)")
    measuring.add_argument("--results", type=Path, default=Path("benchmarks/results/ablation"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    variants = [v for v in VARIANTS if not args.variants or v.name in args.variants]
    if args.command == "train":
        for seed in args.seeds:
            train(args.data, args.work, schedule(seed, args.config, args.set), args.vae, variants)
    else:
        held = Held.load(args.data, args.test, args.reader, args.vae)
        measure_all(args.work, args.results, held, args.seeds, variants)


if __name__ == "__main__":
    main()
