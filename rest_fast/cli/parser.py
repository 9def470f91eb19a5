"""How the command line reads words: the parser and the kinds of values. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rest_fast.cli.terminal import one_line, say


class Parser(argparse.ArgumentParser):
    """Shows defaults, keeps examples as typed, and says in one line what is wrong and what was probably meant."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        if not {"-h", "--help"}.intersection(words):
            self._refuse_unknown(words)  # argparse would first ask for what is missing
        return super().parse_known_args(words, namespace)

    def _refuse_unknown(self, words: Sequence[str]) -> None:
        known = self._option_string_actions
        for word in words:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return  # the rest is no option, or the command's to judge
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known and " " not in name:
                self.error(f"expected an option of {self.prog}, got {name}{did_you_mean(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            text = f"expected one of {', '.join(names)}, got {str(value)!r}{did_you_mean(str(value), names)}"
            raise argparse.ArgumentError(action, text)

    def _print_message(self, message: str, file: Any = None) -> None:
        say(message.rstrip("\n"), file)  # None: a closed stream; argparse would fail on a closed pipe


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        unsaid = action.default == [] or any(action.default is d for d in (None, False, argparse.SUPPRESS))
        shown = action.option_strings and not unsaid
        return f"{text} (default: %(default)s)" if shown else text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing where no known word is close."""
    import difflib  # here: only a mistake needs it

    found = difflib.get_close_matches(word.lower(), list(known), 1, 0.7)
    return f"; did you mean {found[0]}?" if found else ""


def add_weights(parser: Parser, *, guidance: bool = True) -> Any:
    """``guidance``: whether the command can sample with another guidance than the model's own."""
    model = parser.add_argument_group("model")
    add_place(model, "folder of a checkpoint, a Hugging Face id owner/name, or demo, the model that is shipped")
    model.add_argument(
        "--whisper",
        metavar="MODEL",
        help="folder or Hugging Face id of Whisper, for a model that takes its speech features",
    )
    if guidance:
        model.add_argument(
            "--guidance",
            type=finite,
            metavar="X",
            help="scale of classifier-free guidance: with more, the mouth follows the sound more closely; default: the "
            "model's own",
        )
    return model


def add_place(group: Any, weights: str) -> None:
    """Which model, and where it computes; ``weights`` is what ``--weights`` takes, in words."""
    group.add_argument("--weights", default="demo", metavar="MODEL", help=weights)
    group.add_argument(
        "--device", type=device, default="auto", help="cpu, cuda or cuda:N; auto takes a GPU if there is one"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number format; auto is bfloat16 on a GPU and float32 on the CPU",
    )


def add_behaviour(parser: Any) -> Any:
    group = parser.add_argument_group("behaviour")
    group.add_argument(
        "--quiet", action="store_true", help="show warnings and errors, but no notes and no progress bar"
    )
    group.add_argument("--verbose", action="store_true", help="show more notes")
    group.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return group


def existing(what: str = "a file", *, stdin: bool = False) -> Callable[[str], Any]:
    """The path of something that is there and can be read; with ``stdin`` also ``-``, as it is."""

    def parse(text: str) -> str | Path:
        if stdin and text == "-":
            return text
        expected = f"expected {what} that can be read, got {text}"
        try:
            found = os.stat(text)
        except (OSError, ValueError) as e:  # ValueError: a null character
            raise argparse.ArgumentTypeError(f"{expected}: {getattr(e, 'strerror', None) or e}") from None
        if stat.S_ISDIR(found.st_mode) and "folder" not in what:
            raise argparse.ArgumentTypeError(f"{expected}, which is a directory")
        if not os.access(text, os.R_OK):
            raise argparse.ArgumentTypeError(f"{expected}: Permission denied")
        if stat.S_ISREG(found.st_mode) and not found.st_size:
            raise argparse.ArgumentTypeError(f"{expected}, which is an empty file")
        return text if stdin else Path(text)

    return parse


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


def crop(text: str) -> str | tuple[float, ...]:
    edges = text.split(",")
    if text == "center":
        return text
    if len(edges) != 4 or not all(map(_is_number, edges)):
        raise argparse.ArgumentTypeError(f"expected L T R B (four numbers, in pixels) or center, got {' '.join(edges)}")
    left, top, right, bottom = box = tuple(map(float, edges))
    if not (0 <= left < right < math.inf and 0 <= top < bottom < math.inf):
        expected = "left, top, right and bottom with 0 <= left < right and 0 <= top < bottom"
        raise argparse.ArgumentTypeError(f"expected {expected}, inside the photo, got {' '.join(edges)}")
    if abs((right - left) - (bottom - top)) > 1:
        size = f"{right - left:g} x {bottom - top:g}"
        raise argparse.ArgumentTypeError(f"expected a square (within 1 px), got {' '.join(edges)}, which is {size}")
    return box


def device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected auto, cpu, cuda or cuda:N, got {text}")
    return text


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    expected = f"of at least {least}" if most is None else f"in {least}..{most}"

    def parse(text: str) -> int:
        fits = re.fullmatch(r"[+-]?\d{1,20}", text) and least <= int(text) <= (10**18 if most is None else most)
        if not fits:
            raise argparse.ArgumentTypeError(f"expected a whole number {expected}, got {text}")
        return int(text)

    return parse


def finite(text: str) -> float:
    if not _is_number(text) or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text}")
    return float(text)


def positive(text: str) -> float:
    if not _is_number(text) or not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return float(text)
