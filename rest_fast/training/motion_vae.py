"""Trains the two halves of the motion VAE on pairs of drawn heads, each on its own, and puts them together.

    python -m rest_fast.training.motion_vae pairs --pairs build/heads --count 6000
    python -m rest_fast.training.motion_vae decoder --pairs build/heads --out build/motion
    python -m rest_fast.training.motion_vae encoder --pairs build/heads --clips build/demo/train --out build/motion
    python -m rest_fast.training.motion_vae join --out build/motion

A call that was stopped goes on where it was. ``join`` writes ``OUT/vae.safetensors``, which :func:`load` reads, and
``OUT/vae``, a checkpoint for ``--vae`` of ``rest-fast train`` and of :mod:`~rest_fast.training.motion_clips`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rest_fast import checkpoint
from rest_fast.config import TEMPORAL, ModelConfig, preset
from rest_fast.errors import CheckpointError, RestFastError, TrainError
from rest_fast.models.vae import TemporalVAE
from rest_fast.training.config import Stage, TrainingConfig
from rest_fast.training.distributed import World
from rest_fast.training.loop import Trainer
from rest_fast.training.motion_decoder import MotionDecoderStage
from rest_fast.training.motion_encoder import MotionEncoderStage, PictureBatches
from rest_fast.training.motion_pairs import PairBatches, pose_directions
from rest_fast.training.synthetic.clips import Clips
from rest_fast.training.synthetic.heads.pairs import PairsFolder, write_pairs

SIDE = 256  # pixels of the pictures that are shown
BACKGROUND = 256  # pixels that a picture must have to stand behind a person
DIRECTIONS = "decoder.pose.directions"  # what no training finds: the labels' own
COMMON: dict[str, Any] = {"accumulate": 1, "warmup": 50, "constant": 0.5, "weight_decay": 0.01, "ema": 0.998}
STAGES = {
    "decoder": Stage(steps=12_000, rate=8e-4, batch=4, **COMMON),
    "encoder": Stage(steps=6_000, rate=1e-3, batch=6, **COMMON),
}


def motion_model(side: int = SIDE) -> ModelConfig:
    """The demo for pictures of ``side`` pixels."""
    demo = preset("demo")
    return demo.replace(vae=dataclasses.replace(demo.vae, patch_size=side // 4), height=side, width=side)


def train(
    part: str,
    pairs: Path,
    out: Path,
    clips: Path | None = None,
    init: Path | None = None,
    precision: Literal["bf16", "fp32"] = "bf16",
    **changes: Any,
) -> None:
    """Train ``decoder`` or ``encoder`` and write ``OUT/PART.safetensors``.

    Args:
        clips: drawn clips, for the encoder.
        init: file of :func:`join` whose weights it begins with.
        precision: of the computation.
        changes: of the stage.
    """
    stage = dataclasses.replace(STAGES[part], **changes)
    people = PairsFolder(pairs)
    if people.about["frames"] < 2:
        raise TrainError(f"{pairs}: expected pairs of at least two frames, got {people.about['frames']}")
    drawn = None if clips is None else Clips(clips)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise TrainError(f"--out {out}: expected a folder, got {e.strerror}") from None
    config = TrainingConfig(motion_model(), precision=precision, report_every=50, save_every=250)
    torch.manual_seed(config.seed)
    vae = (TemporalVAE(config.model) if init is None else load(init).train()).requires_grad_(False)
    batches = PairBatches(people, stage.batch, config.seed, textures=textures())
    if part == "decoder":
        decoder = MotionDecoderStage(vae.decoder, vae.encoder.frame_channels, config)
        trainer = Trainer(decoder, stage, config, out / part, World())
    else:
        encoder = MotionEncoderStage(vae.encoder, config)
        trainer = Trainer(encoder, stage, config, out / part, World())
    if trainer.resume() > stage.steps:
        raise TrainError(f"{out / part}: expected at most {stage.steps} steps done, found {trainer.step}")
    trainer.run(batches if part == "decoder" else PictureBatches(batches, drawn))
    write(getattr(vae, part), out / f"{part}.safetensors")


def write(module: torch.nn.Module, path: Path) -> None:
    """Weights in half the bytes."""
    save_file({name: value.half().contiguous() for name, value in module.state_dict().items()}, path)


def join(out: Path, init: Path | None = None) -> Path:
    """One file of both halves, and a checkpoint of a VAE alone.

    Args:
        init: an earlier file of this kind, for a half that was not trained.
    """
    whole = {} if init is None else _read(init)
    for part in STAGES:
        path = out / f"{part}.safetensors"
        if init is None or path.exists():
            whole |= {f"{part}.{name}": value for name, value in _read(path).items()}
    whole[DIRECTIONS] = pose_directions(motion_model().vae.latent_channels // TEMPORAL).half()
    vae = _filled(whole, SIDE, str(out))
    named = {f"vae.{name}": value.half() for name, value in vae.state_dict().items()}
    checkpoint.write(named, motion_model(), out / "vae")
    path = out / "vae.safetensors"
    save_file(whole, path)
    return path


def load(path: Path, side: int = SIDE) -> TemporalVAE:
    """The motion VAE of a file of :func:`join`, for pictures of ``side`` pixels."""
    return _filled(_read(path), side, str(path)).eval().requires_grad_(False)


def _filled(weights: dict[str, torch.Tensor], side: int, source: str) -> TemporalVAE:
    with checkpoint.Unfilled():
        vae = TemporalVAE(motion_model(side))
    found = {name: value.float() for name, value in weights.items()}
    own = vae.state_dict()
    found |= {"latents_mean": torch.zeros_like(own["latents_mean"]), "latents_std": torch.ones_like(own["latents_std"])}
    found.setdefault(DIRECTIONS, pose_directions(vae.encoder.frame_channels))  # an earlier file has none
    wrong = sorted(own.keys() ^ found.keys()) or sorted(n for n, x in own.items() if x.shape != found[n].shape)
    if wrong:
        expected = f"{source}: expected the motion VAE's {len(own) - 3} weights"
        raise CheckpointError(f"{expected}, got others in {len(wrong)} places, {wrong[0]} the first")
    vae.load_state_dict(found)
    return vae


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: expected weights of the motion VAE, got no file") from None
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"{path}: expected weights of the motion VAE in safetensors, got {e}") from None


def textures() -> list[NDArray]:
    """Photographs of surfaces that scikit-image ships (extra ``evaluate``), none of them of a person."""
    try:
        from skimage import data
    except ImportError as e:
        raise ImportError(f'{e}: textures need scikit-image (pip install "rest_fast[evaluate]")') from None
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
    parser.add_argument("--init", type=Path, help="file of join: to begin with; for join, of the half not trained")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float, help="learning rate at its highest")
    parser.add_argument(
        "--precision",
        choices=["bf16", "fp32"],
        default="bf16",
        help="of the computation; fp32 is faster on a CPU that has no instructions for bf16",
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in {"pairs": ("pairs",), "join": ("out",)}.get(args.part, ("pairs", "out")):
        if getattr(args, name) is None:
            parser.error(f"--{name}: expected a folder for {args.part}, got none")
    if args.clips is not None and args.part != "encoder":
        parser.error(f"--clips: expected it with encoder, got it with {args.part}")
    if args.init is not None and args.part == "pairs":
        parser.error(f"--init: expected it with {', '.join(STAGES)} or join, got it with pairs")
    if args.rate is not None and not 0 < args.rate < 1:
        parser.error(f"--rate: expected a number above 0 and below 1, got {args.rate}")
    for name, least in (("count", 1), ("workers", 0), ("steps", 1), ("threads", 1)):
        if (number := getattr(args, name)) is not None and number < least:
            parser.error(f"--{name}: expected a whole number of at least {least}, got {number}")
    torch.set_num_threads(args.threads)
    try:
        _run(args)
    except (RestFastError, OSError, ImportError) as e:
        parser.exit(2, f"{parser.prog}: error: {e}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: stopped; the same call goes on from what is kept\n")


def _report(done: int, of: int) -> None:
    print(f"{done} of {of}", flush=True)


def _run(args: argparse.Namespace) -> None:
    if args.part == "pairs":
        behind = [picture for picture in textures() if min(picture.shape[:2]) >= BACKGROUND]
        write_pairs(args.pairs, args.count, workers=args.workers, backgrounds=behind, progress=_report)
    elif args.part == "join":
        print(join(args.out, args.init))
    else:
        changes = {name: value for name in ("steps", "rate") if (value := getattr(args, name)) is not None}
        train(args.part, args.pairs, args.out, args.clips, args.init, args.precision, **changes)


if __name__ == "__main__":
    main()
