"""The words of the command line: every command's arguments, help and examples. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import rest_fast
from rest_fast.cli import arguments_training
from rest_fast.cli.arguments_convert import add_convert
from rest_fast.cli.arguments_serving import add_serve
from rest_fast.cli.parser import Parser, add_behaviour, add_place, add_weights, crop, existing, positive, whole


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rest-fast",
        description="Make one photo speak: a picture of a face and a recording of speech become a video.",
        epilog="""examples:
  rest-fast demo                                          the shipped portrait and speech -> talking.mp4
  rest-fast render face.jpg speech.mp3 -o talking.mp4     your own picture and sound
  rest-fast render --help                                 everything that can be chosen

Exit codes: 0: done. 1: an error of the program. 2: something to correct, which one line names. 130 or 143: stopped.""",
    )
    parser.set_defaults(command=None, quiet=False, verbose=False)
    version = f"rest_fast {rest_fast.__version__}"
    parser.add_argument("-V", "--version", action="version", version=version, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    def add(name: str, brief: str, usage: str, examples: str) -> Parser:
        command = commands.add_parser(
            name,
            help=brief,
            description=brief[0].upper() + brief[1:] + ".",
            usage=f"rest-fast {name} {usage}".rstrip(),
            epilog=f"examples:\n{examples}",
        )
        command.set_defaults(command=name)
        return command

    _add_render(add)
    _add_demo(add)
    _add_doctor(add)
    _add_bench(add)
    add_serve(add)
    arguments_training.add_synth(add)
    arguments_training.add_prepare(add)
    arguments_training.add_train(add)
    arguments_training.add_evaluate(add)
    add_convert(add, add_behaviour, Parser)
    parser.set_defaults(show_help=parser.print_help)
    return parser


def _add_render(add: Callable[..., Parser]) -> None:
    parser = add(
        "render",
        "make a video in which the face of a photo speaks a recording",
        "PHOTO AUDIO -o OUT.mp4 [options]",
        """  rest-fast render face.jpg speech.mp3 -o talking.mp4
  rest-fast render group.png talk.wav -o talking.mp4 --crop 410 120 730 440    choose this face
  ffmpeg -i film.mkv -f wav - | rest-fast render face.jpg - -o talking.mp4     sound from another program""",
    )
    source = parser.add_argument_group("input")
    source.add_argument(
        "photo",
        type=existing(stdin=True),
        metavar="PHOTO",
        help="the picture of a face, in PNG, JPEG, WebP or another common format; - reads it from standard input",
    )
    source.add_argument(
        "audio",
        type=existing(stdin=True),
        metavar="AUDIO",
        help="the speech, in WAV, MP3, M4A, Ogg, FLAC or another common format, or a video with sound; - reads it from "
        "standard input",
    )
    source.add_argument(
        "--crop",
        type=crop,
        metavar="L T R B | center",
        help="the square to animate: its left, top, right and bottom edges in pixels of the upright photo, or center "
        "for the largest square in the middle; default: a square around the face that is found",
    )
    output = _add_output(parser)
    output.add_argument("-o", "--out", required=True, metavar="OUT.mp4", help="the video: .mp4, .m4v or .mov")
    output.add_argument(
        "--paste-back", action="store_true", help="put the moving face back into the photo, and show the whole photo"
    )
    output.add_argument(
        "--label", metavar="TEXT", help="a line of text in the corner of every frame, such as 'AI-generated'"
    )
    _add_signature(parser)
    _add_model(parser)
    add_behaviour(parser)


def _add_demo(add: Callable[..., Parser]) -> None:
    parser = add(
        "demo",
        "make a video from the shipped portrait and speech",
        "[options]",
        "  rest-fast demo\n  rest-fast demo --portrait 2 --seed 7 -o other.mp4",
    )
    source = parser.add_argument_group("input")
    source.add_argument("--portrait", type=int, choices=(1, 2), default=1, help="which of the two shipped portraits")
    _add_output(parser).add_argument("-o", "--out", default="talking.mp4", metavar="OUT.mp4", help="the video")
    _add_model(parser)
    add_behaviour(parser)


def _add_doctor(add: Callable[..., Parser]) -> None:
    parser = add(
        "doctor",
        "show what is installed, which code runs on which device, and how to fix what is wrong",
        "[options]",
        """  rest-fast doctor
  rest-fast doctor > report.txt                                to send along with a question
  rest-fast doctor --plan --weights rest-512 --sessions 8      what eight sessions would take of memory""",
    )
    plan = parser.add_argument_group("memory", "What sessions that share a model would take. Nothing is loaded.")
    plan.add_argument(
        "--plan", action="store_true", help="show this instead of the report; the options below are its own"
    )
    add_place(plan, "folder of a checkpoint, or a preset's name: demo, drawn, rest-512 or toy")
    plan.add_argument("--sessions", type=whole(1, 10**6), metavar="N", help="how many are open at a time; default: 1")
    plan.add_argument(
        "--lanes",
        type=whole(1, 10**6),
        metavar="N",
        help="how many are computed at a time, 2 by default; a session with guidance takes two",
    )
    add_behaviour(parser)


def _add_bench(add: Callable[..., Parser]) -> None:
    parser = add(
        "bench",
        "measure how long viewers wait on this machine",
        "[options]",
        """  rest-fast bench                                          chunks, first frames, interrupts: half a minute
  rest-fast bench --realtime --sessions 1 2 4 8 --peers    viewers in real time, until they are too many
  rest-fast bench --json new.json
  rest-fast bench --compare old.json new.json              two runs and their ratios""",
    )
    what = parser.add_argument_group("measures")
    what.add_argument(
        "--realtime", action="store_true", help="viewers who speak and watch in real time, and onsets of speech"
    )
    what.add_argument(
        "--sessions",
        type=whole(1, 256),
        nargs="+",
        metavar="N",
        help="how many at a time; default: 1, --realtime 1 2 4",
    )
    what.add_argument("--seconds", type=positive, default=20.0, metavar="S", help="how long viewers watch, each number")
    what.add_argument(
        "--peers", action="store_true", help="also sessions apart, whole chunks batched, and the ops' references"
    )
    what.add_argument("--lanes", type=whole(2, 512), default=2, metavar="N", help="of an evaluation of the engine")
    what.add_argument(
        "--compare", type=existing(), nargs=2, metavar=("A.json", "B.json"), help="show two runs; nothing is measured"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="OUT.json", help="all numbers, with hardware and versions")
    output.add_argument("--plot", metavar="OUT.png", help="underruns and responses over the number of sessions")
    model = add_weights(parser, guidance=False)
    model.add_argument("--threads", type=whole(1, 1024), metavar="N", help="threads on the CPU, as in render")
    add_behaviour(parser)


def _add_signature(parser: Parser) -> None:
    signature = parser.add_argument_group(
        "signature", "Signs the video by C2PA (extra c2pa): who made it, and that its pictures are generated."
    )
    signature.add_argument(
        "--c2pa-cert", type=existing(), metavar="CHAIN.pem", help="your certificate and, behind it, its issuers'"
    )
    signature.add_argument("--c2pa-key", type=existing(), metavar="KEY.pem", help="its private key, without a password")
    signature.add_argument("--c2pa-timestamp", metavar="URL", help="a time-stamp authority to ask (RFC 3161)")


def _add_output(parser: Parser) -> Any:
    return parser.add_argument_group(
        "output", "The video is written as OUT.partial.mp4 and renamed when it is complete."
    )


def _add_model(parser: Parser) -> None:
    model = add_weights(parser)
    model.add_argument(
        "--steps", type=whole(1), metavar="N", help="denoising steps; fewer are faster; default: the model's own"
    )
    model.add_argument(
        "--decoder-dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="number format of the convolutions in the demo's decoder; auto takes the faster one of this processor",
    )
    model.add_argument(
        "--threads",
        type=whole(1, 1024),
        metavar="N",
        help="threads on the CPU; default: as many as this process may use and other processes leave free",
    )
    model.add_argument(
        "--seed",
        type=whole(0, 2**64 - 1),
        default=0,
        metavar="N",
        help="seed of the noise: the same seed gives the same video",
    )
