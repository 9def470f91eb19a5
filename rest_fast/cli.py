"""``rest-fast``: render a photo and a speech file into a video; the demo; what is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import rest_fast
from rest_fast import media
from rest_fast.model import ASSETS
from rest_fast.rendering import refuse_input

PARTIAL = 130  # exit code after Ctrl-C, as shells have it


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rest-fast", description="A talking face from one photo and a speech file.")
    parser.add_argument("--version", action="version", version=f"rest_fast {rest_fast.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    render = commands.add_parser("render", help="photo + speech -> mp4")
    render.add_argument("photo", type=Path, help="any picture: PNG, JPEG, WebP, ...")
    render.add_argument("audio", type=Path, help="any sound or video file: WAV, MP3, M4A, OGG, FLAC, MP4, ...")
    demo = commands.add_parser("demo", help="the shipped portrait and speech -> mp4")
    commands.add_parser("doctor", help="versions, compiled modules, and the backend of every op")
    render.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.mp4")
    demo.add_argument(
        "-o", "--out", type=Path, default=Path("talking.mp4"), metavar="OUT.mp4", help="default: %(default)s"
    )
    render.add_argument(
        "--crop",
        type=float,
        nargs=4,
        metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
        help="square around the face, in pixels of the upright photo; default: the centre",
    )
    for command in (render, demo):
        command.add_argument(
            "--weights", default="demo", help="checkpoint folder or hub id owner/name; default: the shipped demo model"
        )
        command.add_argument("--seed", type=int, default=0, help="same seed, same video; default: 0")
        command.add_argument("--steps", type=int, help="denoising steps instead of the model's own")
        command.add_argument("--guidance", type=float, help="guidance scale instead of the model's own")
        command.add_argument("--device", default="auto", help="auto, cpu or cuda; default: auto")
        command.add_argument("--quiet", action="store_true", help="no progress bar")
        command.add_argument("--debug", action="store_true", help="full traceback on an error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 done, 2 bad input (one line on stderr), 130 interrupted (what was rendered stays playable)."""
    args = build_parser().parse_args(argv)
    if args.command == "doctor":
        rest_fast.show_config()
        return 0
    if args.command == "demo":
        args.photo, args.audio, args.crop = ASSETS / "demo" / "portrait.png", ASSETS / "demo" / "speech.wav", None
    before = _state(args.out)
    try:
        _render(args)
    except KeyboardInterrupt:
        partial = f"{args.out} is partial: it holds what was rendered so far"
        left = "nothing was written" if _state(args.out) == before else partial
        print(f"rest-fast: interrupted; {left}", file=sys.stderr)
        return PARTIAL
    except (ValueError, OSError) as e:  # every error of bad input in this package is a ValueError
        if args.debug:
            raise
        print(f"rest-fast: error: {e}", file=sys.stderr)
        return 2
    return 0


def _state(path: Path) -> tuple[int, int] | None:
    """Tells whether a file has been touched."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None


def _render(args: argparse.Namespace) -> None:
    refuse_input(args.out, args.photo, args.audio)
    audio = media.load_audio(args.audio)
    model = rest_fast.load(args.weights, device=args.device)
    avatar = model.prepare(args.photo, crop=args.crop)
    done = rest_fast.render(
        model,
        avatar,
        audio,
        args.out,
        seed=args.seed,
        steps=args.steps,
        guidance=args.guidance,
        progress=not args.quiet,
    )
    print(f"{done.path}: {done.frames} frames, {done.seconds:.2f} s of sound")


if __name__ == "__main__":
    sys.exit(main())
