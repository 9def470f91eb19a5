"""Checkpoints side by side, by the same readers on the same people: which weights to ship, what a teacher can teach.

    python benchmarks/candidates.py --test build/demo/test --data build/demo/prepared \\
        --reader build/demo/reader.safetensors --out candidates.json shipped=demo ASD=build/demo/asd/asd
    python benchmarks/candidates.py --velocity --test build/demo/test teacher=RUN/teacher student=RUN/student

A checkpoint is whatever ``rest_fast.load`` takes; ``rest-fast train`` and ``ablation.py train`` leave one in the folder
of each stage. ``--velocity`` measures that error alone, which needs neither prepared clips nor a reader: over the
window of a stream, as a student has it, and over all frames at once, as a teacher has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import ablation
import numpy as np
import stored
import torch
from where import commit_info, environment

import rest_fast
from rest_fast.config import Layout
from rest_fast.evaluation.batched import measure_streams
from rest_fast.evaluation.readers import latents
from rest_fast.model import Model
from rest_fast.training.synthetic.clips import Clips

LANES = 8  # streams side by side
TITLES = {
    "opening_r": "opening r, pixels",
    "amplitude_over_gap": "amplitude / gap",
    "chunk_border_ratio": "chunk / latent border, pixels",
    "motion_chunk_ratio": "bend of the head at chunk borders",
    "frechet_latents": "Fréchet, latents",
    "frechet_changes": "Fréchet, changes",
    "velocity_error": "velocity error",
    "streaming": "velocity error, streaming",
    "teacher": "velocity error, all frames at once",
}


def measure(model: Model, held: ablation.Held, seed: int = 0) -> dict[str, float]:
    """Means over the clips as streams, and the distances and the velocity of ``ablation.measure_clips``."""
    talks, streams = ablation.talks_of(held.clips, held.count), []
    for first in range(0, len(talks), LANES):
        some = talks[first : first + LANES]
        seeds = [1000 * seed + first + i for i in range(len(some))]
        streams += measure_streams(model, some, held.reader, seeds=seeds, dtype=ablation.DECODER)
    rows = [dataclasses.asdict(s) for s in streams]
    found = {key: float(np.nanmean([row[key] for row in rows])) for key in TITLES if key in rows[0]}
    return found | ablation.measure_clips(model, held, seed)


@torch.no_grad()
def velocities(model: Model, clips: Clips, count: int) -> dict[str, float]:
    """The error of the velocity by layout, on the first clips as the model's own VAE has them."""
    truth = torch.stack([latents(model, clips.pixels(i)) for i in range(count)])
    return {
        layout: ablation.velocity_error(model, clips, truth, layout) for layout in get_args(Layout) if layout in TITLES
    }


def table(candidates: dict[str, dict[str, float]]) -> str:
    keys = [key for key in TITLES if any(key in row for row in candidates.values())]
    lines = [["weights", *(TITLES[key] for key in keys)]]
    lines += [[name, *(f"{row[key]:.3g}" for key in keys)] for name, row in candidates.items()]
    return stored.table(lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--test", type=Path, required=True, help="rest-fast synth --split test")
    parser.add_argument("--velocity", action="store_true", help="this error alone")
    parser.add_argument("--data", type=Path, help="prepared clips, for the axes of the distances")
    parser.add_argument("--reader", type=Path, help="fitted mouth reader (demo_report)")
    parser.add_argument("--vae", default="demo", help="checkpoint whose VAE made the latents of --data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="json")
    args = parser.parse_args(words)
    folders = dict(pair.split("=", 1) for pair in args.candidates if "=" in pair)
    if len(folders) < len(args.candidates):
        parser.error(f"candidates: expected NAME=CHECKPOINT, each name once, got {' '.join(args.candidates)}")
    if not args.velocity and (args.data is None or args.reader is None):
        parser.error("--data and --reader: expected both, or --velocity")
    torch.set_num_threads(args.threads)
    models = {name: rest_fast.load(folder, device="cpu") for name, folder in folders.items()}
    found: dict[str, Any] = {"clips": 0, "candidates": {}, "environment": environment(commit_info())}
    if args.velocity:
        clips = Clips(args.test)
        found["clips"] = min(ablation.CLIPS, len(clips))
        found["candidates"] = {name: velocities(model, clips, found["clips"]) for name, model in models.items()}
    else:
        held = ablation.Held.load(args.data, args.test, args.reader, args.vae)
        found["clips"] = held.count
        found["candidates"] = {name: measure(model, held) for name, model in models.items()}
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found["candidates"]))


if __name__ == "__main__":
    main()
