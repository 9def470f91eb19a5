"""``rest-fast``: a photo and speech become a video; the demo; what is installed; latency; training data and training.

Exit codes: 0 done; 1 an error of the program; 2 bad input or usage; 130 after Ctrl-C, 143 after SIGTERM. All but 0 come
with one line on stderr, and with a traceback before it if ``--debug`` is given.

A video is written as ``OUT.partial.mp4`` and renamed once it is whole. So ``OUT.mp4`` is never a short one, an older
``OUT.mp4`` survives whatever goes wrong, and after Ctrl-C (or a kill, or a full disk) the partial file plays.

Imports of this package stay inside the commands: ``--help`` does not wait for PyTorch, and Ctrl-C during the imports
ends like any other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rest_fast.cli.arguments import build_parser
from rest_fast.cli.convert import convert
from rest_fast.cli.models import check_model, load_model, plan
from rest_fast.cli.outputs import writable
from rest_fast.cli.parser import join_crop
from rest_fast.cli.terminal import InputError, Progress, Signals, notes, one_line, open_streams, say, warnings_as_lines
from rest_fast.errors import RestFastWarning
from rest_fast.files import DEMO, refuse_input

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ENDINGS = (".mp4", ".m4v", ".mov")  # as in media.CONTAINERS, which is slow to import
LIMITS = {"PHOTO": 512 << 20, "AUDIO": 4 << 30}  # bytes on standard input, which are held in memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Without ``argv``, the words of the process, which is to end afterwards."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        open_streams()
    debug = "--debug" in words
    args = Namespace(left="")  # what is left behind, kept up to date by the commands for the message of a failure
    with Signals(last=argv is None) as signals, contextlib.ExitStack() as stack:
        try:
            build_parser().parse_args(join_crop(words), args)
            level = logging.WARNING if args.quiet else logging.DEBUG if args.verbose else logging.INFO
            stack.enter_context(notes(level))
            stack.enter_context(warnings_as_lines(others=debug))
            COMMANDS.get(args.command, _help)(args)
            return 0
        except SystemExit as e:  # argparse: help, version, usage
            return e.code if isinstance(e.code, int) else 2
        except BaseException as e:
            signals.ignore()
            if debug and sys.stderr is not None:
                traceback.print_exc()
            code, message = _failure(e, signals.received, args)
            say(f"rest-fast: {message}", sys.stderr)
            return code


def _failure(e: BaseException, stopped_by: int, args: Namespace) -> tuple[int, str]:
    """Exit code and message."""
    if stopped_by or isinstance(e, KeyboardInterrupt):
        code, word = (143, "terminated") if stopped_by == signal.SIGTERM else (130, "interrupted")
        return code, f"{word}; {args.left or 'nothing was written'}"
    left = args.left and f"; {args.left}"
    # every error of bad input in this package is a ValueError; a warning is one only where -W error asks for it
    if isinstance(e, ValueError | OSError | RestFastWarning):
        return 2, f"error: {one_line(e)}{left}"
    if isinstance(e, ImportError):
        extra = {"synth": "[synth]", "evaluate": "[synth,evaluate]", "serve": "[server]"}.get(args.command, "")
        return 2, f"error: {one_line(e)}; expected all of: pip install 'rest_fast{extra}'"
    text = f"internal error: {type(e).__name__}: {one_line(e)}{left}"
    return 1, f"{text}; please report it with what the same command prints with --debug"


def _help(args: Namespace) -> None:
    args.show_help()


# -- render, demo


def _render(args: Namespace) -> None:
    out, partial = _output(args.out)
    if args.photo == args.audio == "-":
        raise InputError("PHOTO and AUDIO: expected one of them on standard input (-), got both")

    for written in (out, partial):
        refuse_input(written, args.photo, args.audio)
    sign = _signer(args)
    check_model(args)  # all that needs no model before it, and what is slow last

    import rest_fast
    from rest_fast import media
    from rest_fast.media.signing import publish

    photo = media.load_image(_source(args.photo, "PHOTO"))
    if isinstance(args.crop, tuple):
        media.square_crop(photo, args.crop, 1)  # refuses one that is not inside of the photo
    audio = media.load_audio(_source(args.audio, "AUDIO"))
    model = load_model(args)
    avatar = model.prepare(photo, crop=args.crop)

    done = None
    with _alone(args.out, partial), Progress("frames", quiet=args.quiet, rate=25) as progress:
        try:
            done = rest_fast.render(
                model,
                avatar,
                audio,
                partial,
                seed=args.seed,
                steps=args.steps,
                guidance=args.guidance,
                progress=progress,
                paste_back=args.paste_back,
                label=args.label,
            )
            if sign is None:
                os.replace(partial, out)
            else:
                publish(sign, partial, out)
                partial.unlink()  # locked until the other has its name
            args.left = f"{args.out} is complete"
        except BaseException:
            if done is not None and not partial.exists():  # stopped just behind the renaming
                args.left = f"{args.out} is complete"
                raise
            if progress.done:
                made, whole = progress.done / 25, progress.total / 25
                name = partial if os.path.isabs(args.out) else os.path.relpath(partial)
                args.left = f"{name} is partial: it plays the first {made:.2f} s of {whole:.2f} s"
            if not _plays(partial):
                partial.unlink(missing_ok=True)
                args.left = ""
            raise
        seconds = progress.seconds
    speed = done.frames / 25 / seconds
    text = f"{done.frames} frames, {done.seconds:.2f} s, made in {seconds:.2f} s ({speed:.1f}x real time)"
    say(f"{args.out}: {text}", sys.stdout)


def _demo(args: Namespace) -> None:
    portraits = [DEMO / "portrait.png", DEMO / "portrait_2.png"]
    args.photo = portraits[args.portrait - 1]
    if not args.photo.exists() and portraits[0].exists():
        logging.getLogger("rest_fast.cli").warning("portrait %d is not installed, using portrait 1", args.portrait)
        args.photo = portraits[0]
    args.audio, args.paste_back, args.label = DEMO / "speech.wav", False, None
    args.c2pa_cert = args.c2pa_key = args.c2pa_timestamp = None
    args.crop = "center"  # the portraits are framed as the model wants them
    _render(args)


def _signer(args: Namespace) -> Callable[[Path, Path], None] | None:
    if args.c2pa_cert is None and args.c2pa_key is None and args.c2pa_timestamp is None:
        return None
    if args.c2pa_cert is None or args.c2pa_key is None:
        raise InputError("signature: expected both --c2pa-cert and --c2pa-key, got one of them")
    from rest_fast.media.signing import Signer

    return Signer(args.c2pa_cert, args.c2pa_key, timestamp=args.c2pa_timestamp)


def _output(name: str) -> tuple[Path, Path]:
    """Where the video goes, and its name until it is whole; InputError if it cannot be written there."""
    expected = f"output {name}: expected a file name that ends in {', '.join(ENDINGS)}"
    if name == "-":
        raise InputError(f"{expected}, got standard output, where no video can be written")
    if os.path.splitext(name)[1].lower() not in ENDINGS:
        raise InputError(expected)
    out = writable(name)
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    if partial.exists() and not partial.is_file():
        got = "a folder" if partial.is_dir() else "a device"
        raise InputError(f"output {name}: expected a file or nothing at {partial}, got {got}")
    return out, partial


@contextlib.contextmanager
def _alone(name: str, partial: Path) -> Iterator[None]:
    """An empty partial file that is this run's alone: the writer keeps the inode, and so the lock."""
    if fcntl is None:
        partial.unlink(missing_ok=True)
        yield
        return
    if partial.is_symlink():
        partial.unlink()
    while True:
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                expected = "expected a file that no other run is writing, got one that another rest-fast writes"
                raise InputError(f"output {name}: {expected}") from None
            except OSError:  # a file system without locks
                pass
            if not partial.exists() or not os.path.samestat(os.fstat(file), os.stat(partial)):
                continue  # another run renamed it meanwhile
            os.ftruncate(file, 0)
            yield
            return
        finally:
            os.close(file)


def _source(given: Any, which: str) -> Any:
    """A path, or what stands on standard input."""
    if given != "-":
        return given
    if sys.stdin is None:
        raise InputError(f"{which} -: expected a file on standard input (rest-fast ... - < FILE), got a closed one")
    if sys.stdin.isatty():
        raise InputError(f"{which} -: expected a file on standard input (rest-fast ... - < FILE), got a terminal")
    import io

    file: Any = io.BytesIO()
    while piece := sys.stdin.buffer.read(1 << 20):
        file.write(piece)
        if file.tell() > LIMITS[which]:
            raise InputError(f"{which} -: expected at most {LIMITS[which] >> 20} MiB on standard input, got more")
    file.seek(0)
    file.name = "standard input"  # what messages call it
    return file


def _plays(video: Path) -> bool:
    from rest_fast import media

    try:
        media.read_video(video, 1)
    except (media.MediaError, OSError):  # OSError: an empty file
        return False
    return True


# -- doctor


def _doctor(args: Namespace) -> None:
    if args.plan:
        say(plan(args), sys.stdout)
        return
    if args.sessions is not None or args.lanes is not None:
        raise InputError("--sessions, --lanes: expected --plan beside them, got none")

    from rest_fast import diagnostics

    say(diagnostics.describe(), sys.stdout)


def _late(name: str, module: str = "training") -> Callable[[Namespace], None]:
    """A command of :mod:`rest_fast.cli.training`, or of another module there."""

    def command(args: Namespace) -> None:
        import importlib

        getattr(importlib.import_module(f"rest_fast.cli.{module}"), name)(args)

    return command


COMMANDS = {
    "render": _render,
    "demo": _demo,
    "doctor": _doctor,
    "bench": _late("bench", "bench"),
    "serve": _late("serve", "serve"),
    "synth": _late("synth"),
    "prepare-data": _late("prepare_data"),
    "train": _late("train"),
    "evaluate": _late("evaluate"),
    "convert": convert,
}
