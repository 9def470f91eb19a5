"""The commands around training: ``synth``, ``prepare-data``, ``train``, ``evaluate``."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rest_fast.cli.models import check_device, check_model, load_model
from rest_fast.cli.terminal import InputError, Progress, say


def synth(args: Namespace) -> None:
    from rest_fast.training.synthetic.clips import write_clips

    style: dict[str, Any] = {}
    if args.style == "heads":
        from rest_fast.training.synthetic.heads.clip import HEADS
        from rest_fast.training.synthetic.heads.mesh import load_head

        load_head()  # what is missing is said before work starts; and it is read once, not by every process
        style = {"style": HEADS}
    with Progress("clips", quiet=args.quiet) as progress:
        try:
            write_clips(
                args.out,
                args.clips,
                split=args.split,
                first=args.first,
                size=args.size,
                workers=args.workers,
                videos=min(args.videos, args.clips),
                voices=args.voices,
                progress=progress,
                **style,
            )
        except BaseException:
            if progress.done:
                args.left = f"{args.out} is partial: it holds {progress.done} of {progress.total} clips"
            raise
        seconds = progress.seconds
    last = args.first + args.clips - 1
    args.left = f"{args.out} is complete"
    text = f"{args.out}: {args.clips} clips ({args.split} {args.first} to {last}), made in {seconds:.1f} s"
    say(text, sys.stdout)


def train(args: Namespace) -> None:
    check_device(args.device)
    import torch

    from rest_fast.training import chain
    from rest_fast.training.config import read_config

    if args.threads:
        torch.set_num_threads(args.threads)
    config = read_config(args.config, args.changes)
    given = {"init": args.init, "vae": args.vae, "resume": args.resume, "device": args.device}
    try:
        made = chain.run(args.stage, config, args.data, args.out, **given)
    except BaseException:
        kept = chain.kept(args.out)
        args.left = f"{', '.join(kept)} in {args.out}; --resume continues" if kept else ""
        raise
    if os.environ.get("RANK", "0") == "0":
        what = "VAE" if args.stage == "causal-decoder" else "checkpoint"
        say(f"train {args.stage}: done; {made} is a {what}", sys.stdout)


def evaluate(args: Namespace) -> None:
    if (args.data is None) == (args.photos is None):
        got = "neither" if args.data is None else "both"
        raise InputError(f"evaluate: expected DATA or --photos, got {got}")
    if args.photos is None:
        _refuse_options(args, args.of_photos, "--photos")
        _evaluate_clips(args)
    else:
        _refuse_options(args, args.of_clips, "DATA")
        _evaluate_photos(args)


def _refuse_options(args: Namespace, defaults: dict[str, Any], belong_to: str) -> None:
    """Those of the other kind of evaluation."""
    for name, default in defaults.items():
        if getattr(args, name) != default:
            raise InputError(f"evaluate: --{name.replace('_', '-')}: expected it with {belong_to}, got it without")


def _report_to(out: Path, name: str) -> Path:
    report = out / name
    if report.exists():
        raise InputError(f"evaluate: --out: expected a folder without a report, got {out} (remove {report})")
    return report


def _evaluate_photos(args: Namespace) -> None:
    from rest_fast.evaluation.photos.study import evaluate_photos
    from rest_fast.files import DEMO

    report = _report_to(args.out, "photos.md")
    check_model(args)
    model = load_model(args)
    with Progress("videos", quiet=args.quiet) as progress:
        try:
            evaluate_photos(
                model,
                args.photos,
                args.sounds or [DEMO / "speech.wav"],
                args.out,
                interpreter=args.instruments,
                seed=args.seed,
                guidance=args.guidance,
                progress=progress,
            )
        except BaseException:
            if progress.done:
                args.left = f"{args.out} is partial: it holds {progress.done} of {progress.total} videos and no report"
            raise
    args.left = f"{report} is complete"
    say(report.read_text(encoding="utf-8").rstrip("\n"), sys.stdout)


def _evaluate_clips(args: Namespace) -> None:
    from rest_fast.evaluation.evaluate import evaluate as measure

    report = _report_to(args.out, "evaluation.md")
    check_model(args)
    model = load_model(args)
    with Progress("steps", quiet=args.quiet) as progress:
        measure(
            model,
            args.data,
            args.out,
            clips=args.clips,
            seconds=args.seconds,
            streams=args.streams,
            split=args.split,
            reader=args.reader,
            landmarks=args.landmarks,
            landmark_command=args.landmark_command,
            embedder=args.embedder,
            inception=args.inception,
            i3d=args.i3d,
            syncnet=args.syncnet,
            guidance=args.guidance,
            progress=progress,
        )
    args.left = f"{report} is complete"
    say(report.read_text(encoding="utf-8").rstrip("\n"), sys.stdout)


def prepare_data(args: Namespace) -> None:
    from rest_fast.training.preparation import prepare

    check_device(args.device)
    with Progress("files", quiet=args.quiet) as progress:
        try:
            report = prepare(
                args.source,
                args.out,
                config=_config(args),
                weights=args.weights,
                whisper=args.whisper,
                video=args.keep_video or None,
                boxes=args.boxes,
                detector=args.detector,
                workers=args.workers,
                validation=args.validation,
                min_face=args.min_face,
                device=args.device,
                progress=progress,
            )
        except BaseException:
            if progress.done:
                args.left = f"{args.out} holds {progress.done} of {progress.total} files; the same command continues"
            raise
        seconds = progress.seconds
    say(f"{args.out}: {report.text()}\nin {seconds:.1f} s; details in {args.out / 'report.json'}", sys.stdout)
    if not report.clips:
        raise InputError(f"{args.source}: expected clips to prepare, got none that pass the rules (docs/data.md)")


def _config(args: Namespace) -> Any:
    """The model that was named (by a preset, its ``config.json`` or a training's), else that of the weights, else the
    demo's."""
    import json

    from rest_fast import checkpoint, preset
    from rest_fast.config import PRESETS, ModelConfig
    from rest_fast.model import find_checkpoint
    from rest_fast.training.config import read_config

    if args.config is None:
        return checkpoint.read_config(find_checkpoint(args.weights)) if args.weights else preset("demo")
    if args.config in PRESETS:
        return preset(args.config)
    try:
        text = Path(args.config).read_text()
    except OSError as e:
        expected = f"expected one of {', '.join(PRESETS)} or a file"
        raise InputError(f"--config {args.config}: {expected}, got {e.strerror}") from e
    try:
        of_training = "model" in json.loads(text)
    except (ValueError, TypeError):
        of_training = False  # the next line says what is wrong
    return read_config(args.config).model if of_training else ModelConfig.from_json(text)
