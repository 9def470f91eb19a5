"""The words of ``rest-fast convert``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

RELEASES, DTYPES = ("0.9.0", "0.9.1", "0.9.5"), ("float32", "bfloat16", "float16")


def add_convert(add: Callable[..., Any], add_behaviour: Callable[[Any], Any], parser_class: type) -> None:
    """Add the command ``convert`` with its sub-commands, each with the options of every command."""
    parser = add(
        "convert",
        "convert checkpoints of other projects: SoulX-FlashHead Lite, LTX-Video's VAE and transformer, a prompt's "
        "embedding",
        "WHAT ... [options]",
        """  rest-fast convert ltx-vae ltx-video-2b.safetensors my_vae
  rest-fast convert ltx-transformer ltx-video-2b.safetensors my_model --vae my_vae
  rest-fast convert swap-vae my_model run/causal-decoder my_causal_model
  rest-fast convert prompt "A person is talking." my_model --t5 t5_folder
  rest-fast convert flashhead SoulX-FlashHead-1_3B my_head --wav2vec wav2vec2-base-960h""",
    )
    whats = parser.add_subparsers(title="what to convert", metavar="WHAT", parser_class=parser_class, required=True)

    def sub(name: str, brief: str, usage: str) -> Any:
        command = whats.add_parser(
            name,
            prog=f"rest-fast convert {name}",
            help=brief,
            description=brief[0].upper() + brief[1:] + ".",
            usage=f"rest-fast convert {name} {usage}",
        )
        command.set_defaults(what=name)
        return command

    _add_vae(sub, add_behaviour)
    _add_transformer(sub, add_behaviour)
    _add_prompt(sub, add_behaviour)
    _add_swap(sub, add_behaviour)
    _add_flashhead(sub, add_behaviour)


def _add_vae(sub: Callable[..., Any], add_behaviour: Callable[[Any], Any]) -> None:
    parser = sub(
        "ltx-vae",
        "convert the VAE of LTX-Video 0.9.0 to 0.9.8 into a folder that this package loads",
        "FILE OUT [options]",
    )
    _add_files(parser)
    parser.add_argument(
        "--release", choices=RELEASES, help="release of FILE, if FILE does not say; 0.9.5 stands for all later ones"
    )
    _add_dtype(parser)
    add_behaviour(parser)


def _add_transformer(sub: Callable[..., Any], add_behaviour: Callable[[Any], Any]) -> None:
    parser = sub(
        "ltx-transformer",
        "convert LTX-Video's 2B transformer into a model whose attention to audio still has to be trained",
        "FILE OUT [--vae DIR] [options]",
    )
    _add_files(parser)
    parser.add_argument(
        "--vae", type=Path, metavar="DIR", help="folder written by convert ltx-vae; default: the VAE in FILE"
    )
    parser.add_argument(
        "--config", default="rest-512", metavar="NAME | FILE", help="preset or config.json of the new model"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of the weights that start at random")
    _add_dtype(parser)
    add_behaviour(parser)


def _add_prompt(sub: Callable[..., Any], add_behaviour: Callable[[Any], Any]) -> None:
    parser = sub("prompt", "store the T5 embedding of a prompt in a checkpoint", "TEXT CHECKPOINT --t5 DIR [options]")
    parser.add_argument("text", metavar="TEXT", help="the prompt, at most 128 tokens")
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a model, which is changed in place"
    )
    parser.add_argument(
        "--t5",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with T5's encoder and tokenizer in safetensors, such as that of LTX-Video for diffusers; needs "
        "the extra convert",
    )
    add_behaviour(parser)


def _add_files(parser: Any) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a checkpoint in one safetensors file, or a folder in diffusers' layout"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to: new or empty")


def _add_dtype(parser: Any) -> None:
    parser.add_argument("--dtype", choices=DTYPES, help="number format to write; default: that of FILE")


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"expected a whole number in 0..{2**63 - 1}, got {text}")
    return int(text)


def _add_swap(sub: Callable[..., Any], add_behaviour: Callable[[Any], Any]) -> None:
    parser = sub("swap-vae", "give a model another decoder for the same latents", "MODEL VAE OUT [options]")
    parser.add_argument("model", metavar="MODEL", help="checkpoint of a model, which stays as it is")
    parser.add_argument(
        "vae", type=Path, metavar="VAE", help="folder of a VAE, such as the result of train causal-decoder"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to: new or empty")
    add_behaviour(parser)


def _add_flashhead(sub: Callable[..., Any], add_behaviour: Callable[[Any], Any]) -> None:
    parser = sub(
        "flashhead",
        "convert SoulX-FlashHead Lite into a model that this package serves; nothing is downloaded",
        "DIR OUT --wav2vec DIR [options]",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="the published folder, with Model_Lite and VAE_LTX in it"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to: new or empty")
    parser.add_argument(
        "--wav2vec", type=Path, required=True, metavar="DIR", help="folder of facebook/wav2vec2-base-960h"
    )
    parser.add_argument(
        "--size", type=int, default=512, metavar="N", help="side of its pictures; it was trained at 512"
    )
    _add_dtype(parser)
    add_behaviour(parser)
