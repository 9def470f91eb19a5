"""Trains the two halves of the motion VAE on pairs of drawn heads, each on its own, and puts them together.

    python -m rest_fast.training.motion_vae pairs --pairs build/heads --count 6000
    python -m rest_fast.training.motion_vae decoder --pairs build/heads --out build/motion
    python -m rest_fast.training.motion_vae encoder --pairs build/heads --clips build/demo/train --out build/motion
    python -m rest_fast.training.motion_vae join --out build/motion

A call that was stopped goes on where it was. ``join`` writes ``OUT/vae.safetensors``, which :func:`load` reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from rest_fast import checkpoint
from rest_fast.config import ModelConfig, MotionVAEConfig, preset
from rest_fast.models.vae import TemporalVAE
from rest_fast.training.config import Stage, TrainingConfig
from rest_fast.training.distributed import World
from rest_fast.training.loop import Trainer
from rest_fast.training.motion_decoder import MotionDecoderStage
from rest_fast.training.motion_encoder import MotionEncoderStage, PictureBatches
from rest_fast.training.motion_pairs import PairBatches
from rest_fast.training.synthetic.clips import Clips
from rest_fast.training.synthetic.heads.pairs import PairsFolder, write_pairs

SIDE = 256  # pixels of the pictures that are shown
COMMON: dict[str, Any] = {"accumulate": 1, "warmup": 50, "constant": 0.5, "weight_decay": 0.01, "ema": 0.998}
STAGES = {
    "decoder": Stage(steps=12_000, rate=8e-4, batch=4, **COMMON),
    "encoder": Stage(steps=6_000, rate=1e-3, batch=6, **COMMON),
}


def motion_model(side: int = SIDE) -> ModelConfig:
    """The demo's transformer around a motion VAE."""
    vae = MotionVAEConfig(patch_size=side // 4)
    return preset("demo").replace(vae=vae, height=side, width=side, dit__positionwise_io=False)


def train(part: str, pairs: Path, out: Path, clips: Path | None = None, **changes: Any) -> None:
    """Train ``decoder`` or ``encoder`` and write ``OUT/PART.safetensors``."""
    stage = dataclasses.replace(STAGES[part], **changes)
    config = TrainingConfig(motion_model(), report_every=50, save_every=250)
    torch.manual_seed(config.seed)
    vae = TemporalVAE(config.model).requires_grad_(False)
    people = PairBatches(PairsFolder(pairs), stage.batch, config.seed, textures=textures())
    if part == "decoder":
        decoder = MotionDecoderStage(vae.decoder, vae.encoder.frame_channels, config)
        trainer, batches = Trainer(decoder, stage, config, out / part, World()), people
    else:
        encoder = MotionEncoderStage(vae.encoder, config)
        drawn = PictureBatches(people, None if clips is None else Clips(clips))
        trainer, batches = Trainer(encoder, stage, config, out / part, World()), drawn  # type: ignore[assignment]
    trainer.resume()
    trainer.run(batches)
    write(getattr(vae, part), out / f"{part}.safetensors")


def write(module: torch.nn.Module, path: Path) -> None:
    """Weights in half the bytes."""
    save_file({name: value.half().contiguous() for name, value in module.state_dict().items()}, path)


def join(out: Path) -> Path:
    """One file of both halves."""
    parts = {part: load_file(out / f"{part}.safetensors") for part in STAGES}
    path = out / "vae.safetensors"
    save_file({f"{part}.{name}": value for part, half in parts.items() for name, value in half.items()}, path)
    return path


def load(path: Path, side: int = SIDE) -> TemporalVAE:
    """The motion VAE of a file of :func:`join`, for pictures of ``side`` pixels."""
    with checkpoint.Unfilled():
        vae = TemporalVAE(motion_model(side))
    found = {name: value.float() for name, value in load_file(path).items()}
    vae.load_state_dict(found | {"latents_mean": torch.zeros(64, 1, 1, 1), "latents_std": torch.ones(64, 1, 1, 1)})
    return vae.eval().requires_grad_(False)


def textures() -> list[NDArray]:
    """Photographs of surfaces that scikit-image ships (extra ``evaluate``), none of them of a person."""
    from skimage import data

    found = [
        getattr(data, name)() for name in ("coffee", "rocket", "chelsea", "brick", "grass", "gravel", "colorwheel")
    ]
    return [picture if picture.ndim == 3 else picture[..., None].repeat(3, 2) for picture in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["pairs", *STAGES, "join"])
    parser.add_argument("--pairs", type=Path, help="folder of pairs of heads")
    parser.add_argument("--count", type=int, default=6000, help="people, for pairs")
    parser.add_argument("--workers", type=int, default=0, help="processes, for pairs; 0: one for each core")
    parser.add_argument("--clips", type=Path, help="folder of drawn clips, for the encoder")
    parser.add_argument("--out", type=Path, help="folder of what is trained")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    for name in {"pairs": ("pairs",), "join": ("out",)}.get(args.part, ("pairs", "out")):
        if getattr(args, name) is None:
            parser.error(f"--{name}: expected a folder for {args.part}, got none")
    if args.part == "pairs":
        write_pairs(args.pairs, args.count, workers=args.workers, progress=lambda done, of: print(f"{done} of {of}"))
    elif args.part == "join":
        print(join(args.out))
    else:
        train(args.part, args.pairs, args.out, args.clips, **({} if args.steps is None else {"steps": args.steps}))


if __name__ == "__main__":
    main()
