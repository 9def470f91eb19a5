"""The words of the command line: every command's arguments, help and examples. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import rest_fast
from rest_fast.arguments_convert import add_convert
from rest_fast.terminal import one_line, say

SPLITS = ("train", "validation", "test")
TRAINING_PRESETS = ("demo", "rest-512", "toy")
STAGES = {
    "vae": "the VAE on pixels; left out of all where --init or --vae gives one",
    "speech": "SpeechAE: sound to codes and back",
    "teacher": "the transformer over whole clips, not streaming",
    "student": "the streaming transformer with the ID-Context cache",
    "asd": "Asynchronous Streaming Distillation of the student from the teacher",
    "all": "all of these in this order",
    "causal-decoder": "alone: makes the decoder of --vae causal, so that it streams without delay; its result is a VAE",
}


class Parser(argparse.ArgumentParser):
    """Shows defaults, keeps examples as typed, and says what is wrong in one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        say(message.rstrip("\n"), file)  # None: a closed stream; argparse would fail on a closed pipe


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.option_strings and not any(action.default is d for d in (None, False, argparse.SUPPRESS))
        return f"{text} (default: %(default)s)" if shown else text


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rest-fast",
        description="Make one photo speak: a picture of a face and a recording of speech become a video.",
        epilog="""examples:
  rest-fast demo                                          the shipped face and voice -> talking.mp4
  rest-fast render face.jpg speech.mp3 -o talking.mp4     your own
  rest-fast render --help                                 all that can be chosen

exit code: 0 done; 1 an error of the program; 2 something to correct, named in one line; 130 or 143 stopped""",
    )
    parser.set_defaults(command=None, quiet=False, verbose=False)
    parser.add_argument("--version", action="version", version=f"rest_fast {rest_fast.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    def add(name: str, brief: str, usage: str, examples: str) -> Parser:
        command = commands.add_parser(
            name,
            help=brief,
            description=brief[0].upper() + brief[1:] + ".",
            usage=f"rest-fast {name} {usage}".rstrip(),
            epilog=f"examples:\n{examples}",
        )
        command.set_defaults(command=name, show_help=command.print_help)
        return command

    _add_render(add)
    _add_demo(add)
    _add_doctor(add)
    _add_synth(add)
    _add_prepare(add)
    _add_train(add)
    _add_evaluate(add)
    add_convert(add, _add_behaviour, Parser)
    parser.set_defaults(show_help=parser.print_help)
    return parser


def _add_render(add: Callable[..., Parser]) -> None:
    parser = add(
        "render",
        "make a video in which the face of a photo speaks a recording",
        "PHOTO AUDIO -o OUT.mp4 [options]",
        """  rest-fast render face.jpg speech.mp3 -o talking.mp4
  rest-fast render group.png talk.wav -o talking.mp4 --crop 410 120 730 440    this face
  ffmpeg -i film.mkv -f wav - | rest-fast render face.jpg - -o talking.mp4     sound from another program""",
    )
    source = parser.add_argument_group("input")
    source.add_argument("photo", metavar="PHOTO", help="any picture: PNG, JPEG, WebP, ...; - reads standard input")
    source.add_argument(
        "audio", metavar="AUDIO", help="any sound, or a video's: WAV, MP3, M4A, OGG, FLAC, MP4, ...; - as above"
    )
    source.add_argument(
        "--crop",
        type=_crop,
        metavar="L T R B | center",
        help="the square to animate: left, top, right, bottom in pixels of the upright photo, or the largest one in "
        "the middle; default: around the face that is found",
    )
    output = _add_output(parser)
    output.add_argument("-o", "--out", required=True, metavar="OUT.mp4", help="the video: .mp4, .m4v or .mov")
    output.add_argument("--paste-back", action="store_true", help="put the moving face back into the whole photo")
    _add_model(parser)
    _add_behaviour(parser)


def _add_demo(add: Callable[..., Parser]) -> None:
    parser = add(
        "demo",
        "make a video from the shipped portrait and speech",
        "[options]",
        "  rest-fast demo\n  rest-fast demo --portrait 2 --seed 7 -o other.mp4",
    )
    source = parser.add_argument_group("input")
    source.add_argument("--portrait", type=int, choices=(1, 2), default=1, help="which of the shipped portraits")
    _add_output(parser).add_argument("-o", "--out", default="talking.mp4", metavar="OUT.mp4", help="the video")
    _add_model(parser)
    _add_behaviour(parser)


def _add_doctor(add: Callable[..., Parser]) -> None:
    parser = add(
        "doctor",
        "show what is installed, what runs where, and how to mend what is missing",
        "[options]",
        "  rest-fast doctor\n  rest-fast doctor > report.txt      to send along with a question",
    )
    _add_behaviour(parser)


def _add_synth(add: Callable[..., Parser]) -> None:
    parser = add(
        "synth",
        "write synthetic talking-head clips: drawn faces with synthetic voices",
        "OUT --clips N [options]",
        """  rest-fast synth clips --clips 100                            train 0 to 99
  rest-fast synth held_out --clips 20 --split test --videos 20     nobody and no word of train; all as mp4 too""",
    )
    what = parser.add_argument_group("clips", "of 3.9 s; 5 MB and a quarter of a second on one core each, at 128 px")
    what.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    what.add_argument("--clips", type=_whole(1), required=True, metavar="N", help="how many")
    what.add_argument("--split", choices=SPLITS, default="train", help="splits share no face, no voice and no word")
    what.add_argument(
        "--first", type=_whole(0), default=0, metavar="INDEX", help="index of the first; same index, same clip"
    )
    what.add_argument("--size", type=_whole(1), default=128, metavar="PX", help="width and height")
    what.add_argument(
        "--videos", type=_whole(0), default=2, metavar="K", help="write the first K as mp4 with sound, too"
    )
    behaviour = _add_behaviour(parser)
    behaviour.add_argument("--workers", type=_whole(0), default=0, metavar="N", help="processes; 0: one per core")


def _add_prepare(add: Callable[..., Parser]) -> None:
    parser = add(
        "prepare-data",
        "make training data from videos of people who speak, or from clips of synth",
        "IN OUT [options]",
        """  rest-fast prepare-data videos prepared                               pictures, to train a VAE from
  rest-fast prepare-data videos prepared --weights my_vae --boxes b.json   latents of that VAE, given crops
  rest-fast prepare-data clips prepared                                a folder of rest-fast synth""",
    )
    what = parser.add_argument_group("input and output", "the same command goes on with a run that was stopped")
    what.add_argument(
        "source", type=Path, metavar="IN", help="folder of videos with its subfolders, one video, or a folder of synth"
    )
    what.add_argument("out", type=Path, metavar="OUT", help="folder to write to: new, empty, or begun by this command")
    what.add_argument("--validation", type=_finite, default=0.05, metavar="X", help="share of the files held out")
    what.add_argument("--keep-video", action="store_true", help="keep the pictures beside the latents")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config", metavar="NAME | FILE", help="preset or config.json; default: that of --weights, else demo"
    )
    model.add_argument("--weights", metavar="MODEL", help="checkpoint whose VAE makes latents; default: pictures alone")
    model.add_argument("--whisper", metavar="MODEL", help="folder or hub id of Whisper, for its speech features")
    model.add_argument("--device", type=_device, default="auto", help="for latents: cpu, cuda, cuda:N, or auto")
    crop = parser.add_argument_group("crops", "one square per clip, around the face")
    crop.add_argument(
        "--boxes", type=Path, metavar="FILE", help='JSON {"file": [left, top, right, bottom]}, in pixels, upright'
    )
    crop.add_argument(
        "--detector",
        choices=("auto", "opencv", "mediapipe"),
        default="auto",
        help="auto: boxes alone if given, else mediapipe where REST_FAST_MEDIAPIPE_PYTHON names a Python that has it, "
        "else opencv",
    )
    crop.add_argument(
        "--min-face", type=_whole(0), default=0, metavar="PX", help="smallest crop; 0: two thirds of the model's size"
    )
    behaviour = _add_behaviour(parser)
    behaviour.add_argument("--workers", type=_whole(0), default=0, metavar="N", help="processes; 0: one per core")


def _add_train(add: Callable[..., Parser]) -> None:
    parser = add(
        "train",
        "train a model on prepared clips, stage by stage",
        "STAGE --config FILE --data DIR --out DIR [--resume] [options]",
        """  rest-fast prepare-data videos data --config demo
  rest-fast train all --config demo --data data --out run
  rest-fast render face.png speech.wav -o talking.mp4 --weights run/asd
  torchrun --nproc-per-node 8 -m rest_fast.cli train asd --config demo --data data --out run --resume""",
    )
    listing = "\n".join(f"  {name:14} {text}" for name, text in STAGES.items())
    parser.description = f"{parser.description}\n\nstages, each from the result of those before it:\n{listing}"
    parser.add_argument("stage", nargs="?", choices=STAGES, metavar="STAGE", help="one of the stages above")
    what = parser.add_argument_group("training")
    what.add_argument(
        "--config", metavar="FILE", help=f"training configuration (JSON), or one of {', '.join(TRAINING_PRESETS)}"
    )
    what.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change a field of it, such as teacher.steps=2000; may be repeated",
    )
    what.add_argument("--data", type=Path, metavar="DIR", help="prepared clips (rest-fast prepare-data)")
    what.add_argument("--out", type=Path, metavar="DIR", help="OUT/STAGE becomes a checkpoint that --weights takes")
    what.add_argument("--resume", action="store_true", help="go on with what OUT holds")
    what.add_argument("--init", metavar="MODEL", help="begin with a checkpoint's weights, as far as it has them")
    what.add_argument("--vae", metavar="MODEL", help="take the VAE of a checkpoint and nothing else, or a VAE's folder")
    behaviour = _add_behaviour(parser)
    behaviour.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: GPUs if there are")
    behaviour.add_argument("--threads", type=_whole(0), default=0, metavar="N", help="of the CPU; 0: PyTorch's choice")


def _add_evaluate(add: Callable[..., Parser]) -> None:
    parser = add(
        "evaluate",
        "measure a model: picture, lip sync, identity over time, chunk borders",
        "DATA --out DIR [options]",
        """  rest-fast synth held_out --clips 24 --split test
  rest-fast evaluate held_out --out report --reader train_clips      the demo model; fits the reader of drawn mouths
  rest-fast evaluate prepared --out report --weights my_model --landmark-command "python detect.py"

writes evaluation.json, evaluation.md and plots; what is not measured is named there, with what it needs""",
    )
    what = parser.add_argument_group("data")
    what.add_argument(
        "data", type=Path, metavar="DATA", help="folder of rest-fast synth, or of prepared clips with video and samples"
    )
    what.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    what.add_argument("--split", choices=SPLITS, help="of prepared clips; default: test, else validation")
    what.add_argument("--clips", type=_whole(2), default=24, metavar="N", help="so many of the first clips")
    what.add_argument("--streams", type=_whole(0), default=4, metavar="N", help="long streams; 0: none")
    what.add_argument("--seconds", type=_whole(20), default=60, metavar="S", help="of each long stream")
    tools = parser.add_argument_group("instruments", "all optional; nothing is downloaded")
    tools.add_argument(
        "--reader",
        type=Path,
        metavar="PATH",
        help="of drawn mouths: a fitted one, or a folder of other drawn clips to fit one on; default: "
        "reader.safetensors beside DATA",
    )
    tools.add_argument(
        "--landmarks",
        type=Path,
        metavar="DIR",
        help="landmark files of the videos that a first run wrote to OUT/videos",
    )
    tools.add_argument(
        "--landmark-command", metavar="WORDS", help="a program that makes them: WORDS FRAMES.npy POINTS.npz"
    )
    tools.add_argument("--embedder", type=Path, metavar="FILE", help="a face recogniser: TorchScript or .pt2")
    tools.add_argument("--inception", type=Path, metavar="FILE", help="weights for FID; needs the extra fid")
    tools.add_argument("--i3d", type=Path, metavar="FILE", help="TorchScript I3D for FVD")
    tools.add_argument("--syncnet", type=Path, metavar="FILE", help="weights of syncnet_v2; needs the extra syncnet")
    _add_weights(parser)
    _add_behaviour(parser)


def _add_output(parser: Parser) -> Any:
    return parser.add_argument_group("output", "written as OUT.partial.mp4, and renamed when it is whole")


def _add_model(parser: Parser) -> None:
    model = _add_weights(parser)
    model.add_argument(
        "--steps", type=_whole(1), metavar="N", help="denoising steps: fewer are faster; default: the model's"
    )
    model.add_argument("--seed", type=_whole(0, 2**64 - 1), default=0, metavar="N", help="same seed, same video")


def _add_weights(parser: Parser) -> Any:
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights", default="demo", metavar="MODEL", help="checkpoint folder, hub id owner/name, or the shipped demo"
    )
    model.add_argument(
        "--device", type=_device, default="auto", help="cpu, cuda, cuda:N, or auto: a GPU if there is one"
    )
    model.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number format; auto: bfloat16 on a GPU, float32 on the CPU",
    )
    model.add_argument("--whisper", metavar="MODEL", help="folder or hub id of Whisper, for models that hear by it")
    model.add_argument(
        "--guidance", type=_finite, metavar="X", help="how closely it follows the sound; default: the model's"
    )
    return model


def _add_behaviour(parser: Parser) -> Any:
    group = parser.add_argument_group("behaviour")
    group.add_argument("--quiet", action="store_true", help="no progress bar, and of notes only warnings")
    group.add_argument("--verbose", action="store_true", help="more notes")
    group.add_argument("--debug", action="store_true", help="the full traceback of an error")
    return group


def join_crop(words: Sequence[str]) -> list[str]:
    """``--crop 1 2 3 4`` as ``--crop=1,2,3,4``: argparse has no option that takes four numbers or a word."""
    joined: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--crop" and rest:
            values = [rest.pop(0)]
            while len(values) < 4 and rest and _is_number(values[0]) and _is_number(rest[0]):
                values.append(rest.pop(0))
            word = f"--crop={','.join(values)}"
        joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _crop(text: str) -> str | tuple[float, ...]:
    edges = text.split(",")
    if text == "center" or (len(edges) == 4 and all(map(_is_number, edges))):
        return text if text == "center" else tuple(map(float, edges))
    raise argparse.ArgumentTypeError(f"expected four numbers or center, got {' '.join(edges)}")


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text}")
    return text


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    expected = f"of at least {least}" if most is None else f"in {least}..{most}"

    def parse(text: str) -> int:
        fits = re.fullmatch(r"[+-]?\d{1,20}", text) and least <= int(text) <= (10**18 if most is None else most)
        if not fits:
            raise argparse.ArgumentTypeError(f"expected a whole number {expected}, got {text}")
        return int(text)

    return parse


def _finite(text: str) -> float:
    if not _is_number(text) or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")
    return float(text)
