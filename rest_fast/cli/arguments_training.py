"""The words of the commands around training: ``synth``, ``prepare-data``, ``train``, ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rest_fast.cli.parser import Parser, add_behaviour, add_weights, device, existing, finite, whole
from rest_fast.training.stages import ABOUT

SPLITS = ("train", "validation", "test")
OF_CLIPS = (
    *("split", "clips", "streams", "seconds", "reader", "landmarks"),
    *("landmark_command", "embedder", "inception", "i3d", "syncnet"),
)
OF_PHOTOS = ("sounds", "instruments", "seed")
TRAINING_PRESETS = ("demo", "drawn", "rest-512", "toy")


def add_synth(add: Callable[..., Parser]) -> None:
    parser = add(
        "synth",
        "write synthetic clips: drawn or photo-like talking heads with synthetic voices",
        "OUT --clips N [options]",
        """  rest-fast synth clips --clips 100                                clips 0 to 99 of the split train
  rest-fast synth held_out --clips 20 --split test --videos 20     other people and other words; all as mp4, too
  rest-fast synth heads --clips 20 --style heads                   photo-like heads (docs/heads.md)""",
    )
    what = parser.add_argument_group(
        "clips", "A clip lasts 3.9 s. At 128 pixels it takes 5 MB and a quarter of a second of one core."
    )
    what.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    what.add_argument("--clips", type=whole(1), required=True, metavar="N", help="number of clips")
    what.add_argument(
        "--split", choices=SPLITS, default="train", help="two splits have no face, no voice and no word in common"
    )
    what.add_argument(
        "--style",
        choices=("drawn", "heads"),
        default="drawn",
        help="drawn faces, or photo-like heads (docs/heads.md), which take twenty times as long",
    )
    what.add_argument(
        "--voices",
        choices=("espeak", "flite", "mixed"),
        default="espeak",
        help="synthetic voices of espeak-ng; recorded speakers of flite (Debian: apt install flite), in rooms and "
        "through codecs; or either, by chance",
    )
    what.add_argument(
        "--first",
        type=whole(0),
        default=0,
        metavar="INDEX",
        help="index of the first clip; an index is always the same clip",
    )
    what.add_argument("--size", type=whole(1), default=128, metavar="PX", help="width and height in pixels")
    what.add_argument(
        "--videos", type=whole(0), default=2, metavar="K", help="write the first K clips as mp4 with sound, too"
    )
    _add_workers(add_behaviour(parser))


def add_prepare(add: Callable[..., Parser]) -> None:
    parser = add(
        "prepare-data",
        "make training data from videos of people who speak, or from clips of rest-fast synth",
        "IN OUT [options]",
        """  rest-fast prepare-data videos prepared --weights demo                    latents of the demo's VAE
  rest-fast prepare-data videos prepared --weights my_vae --boxes b.json   latents of that VAE, with given crops
  rest-fast prepare-data clips prepared --config drawn                     pictures, to train a VAE with""",
    )
    what = parser.add_argument_group("input and output", "After a stop, the same command continues where it was.")
    what.add_argument(
        "source",
        type=existing("a folder or a video"),
        metavar="IN",
        help="a folder of videos (subfolders count), one video, or a folder written by rest-fast synth",
    )
    what.add_argument(
        "out", type=Path, metavar="OUT", help="folder to write to: new, empty, or begun by this same command"
    )
    what.add_argument(
        "--validation", type=finite, default=0.05, metavar="X", help="share of the files to hold out, 0 to 1"
    )
    what.add_argument("--keep-video", action="store_true", help="keep the pictures beside the latents")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config", metavar="NAME | FILE", help="a preset or a config.json; default: that of --weights, otherwise demo"
    )
    model.add_argument(
        "--weights", metavar="MODEL", help="checkpoint whose VAE makes latents; without it, pictures are stored"
    )
    model.add_argument(
        "--whisper", metavar="MODEL", help="folder or Hugging Face id of Whisper, for its speech features"
    )
    model.add_argument(
        "--device", type=device, default="auto", help="where latents are made: cpu, cuda, cuda:N or auto"
    )
    crop = parser.add_argument_group("crops", "Each clip has one square crop around the face.")
    crop.add_argument(
        "--boxes",
        type=existing(),
        metavar="FILE",
        help='JSON with a square per file, {"file": [left, top, right, bottom]}, in pixels of the upright picture',
    )
    crop.add_argument(
        "--detector",
        choices=("auto", "opencv", "mediapipe"),
        default="auto",
        help="what finds the face; auto takes --boxes alone where they are given, else mediapipe where "
        "REST_FAST_MEDIAPIPE_PYTHON names a Python that has it, else opencv",
    )
    crop.add_argument(
        "--min-face",
        type=whole(0),
        default=0,
        metavar="PX",
        help="drop a clip with a smaller crop; 0 means two thirds of the model's size",
    )
    _add_workers(add_behaviour(parser))


def add_train(add: Callable[..., Parser]) -> None:
    parser = add(
        "train",
        "train a model on prepared clips, stage by stage",
        "STAGE --config NAME --data DIR --out DIR [--resume] [options]",
        """  rest-fast prepare-data videos data --weights demo
  rest-fast train all --config demo --data data --vae demo --out run
  rest-fast render face.png speech.wav -o talking.mp4 --weights run/asd
  torchrun --nproc-per-node 8 -m rest_fast.cli train asd --config demo --data data --vae demo --out run --resume""",
    )
    listing = "\n".join(f"  {name:14} {text}" for name, text in ABOUT.items())
    parser.description = (
        f"{parser.description}\n\nStages, each of which starts from the results of those above it:\n{listing}"
    )
    parser.add_argument("stage", choices=tuple(ABOUT), metavar="STAGE", help="one of the stages above")
    what = parser.add_argument_group("training")
    what.add_argument(
        "--config",
        required=True,
        metavar="NAME | FILE",
        help=f"training configuration: one of {', '.join(TRAINING_PRESETS)}, or a JSON file",
    )
    what.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change one field of the configuration, such as teacher.steps=2000; may be given several times",
    )
    what.add_argument(
        "--data",
        type=existing("a folder"),
        required=True,
        metavar="DIR",
        help="prepared clips (see rest-fast prepare-data)",
    )
    what.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the results: after a stage, DIR/STAGE is a checkpoint that --weights takes",
    )
    what.add_argument("--resume", action="store_true", help="continue the training that DIR holds")
    what.add_argument("--init", metavar="MODEL", help="start from the weights of a checkpoint, as far as it has them")
    what.add_argument("--vae", metavar="MODEL", help="take only the VAE of a checkpoint, or a VAE's folder")
    behaviour = add_behaviour(parser)
    behaviour.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes the GPUs if there are any"
    )
    behaviour.add_argument(
        "--threads", type=whole(0), default=0, metavar="N", help="threads on the CPU; 0 leaves the choice to PyTorch"
    )


def add_evaluate(add: Callable[..., Parser]) -> None:
    parser = add(
        "evaluate",
        "measure a model: picture quality, lip sync, identity over time, seams between chunks",
        "{DATA | --photos PATH ...} --out DIR [options]",
        """  rest-fast synth held_out --clips 24 --split test --size 256
  rest-fast evaluate held_out --out report --reader train_clips      the demo model; fits the reader of drawn mouths
  rest-fast evaluate prepared --out report --weights my_model --landmark-command "python detect.py"
  rest-fast evaluate --photos portraits me.jpg --sounds a.wav b.wav --out photos     what it makes of photographs

It writes evaluation.json, evaluation.md and plots; of photos photos.json, photos.md, strips and videos. The report
names what was not measured, and what that needs.""",
    )
    what = parser.add_argument_group("data", "One of DATA and --photos.")
    what.add_argument(
        "data",
        nargs="?",
        type=existing("a folder"),
        metavar="DATA",
        help="a folder written by rest-fast synth, or prepared clips with pictures and sound",
    )
    what.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    what.add_argument(
        "--split",
        choices=SPLITS,
        help="split of the prepared clips; default: test, or validation where there is no test",
    )
    what.add_argument("--clips", type=whole(2), default=24, metavar="N", help="number of clips, from the first one on")
    what.add_argument("--streams", type=whole(0), default=4, metavar="N", help="number of long streams; 0 for none")
    what.add_argument("--seconds", type=whole(20), default=60, metavar="S", help="length of each long stream")
    _add_instruments(parser)
    _add_photos(parser)
    add_weights(parser)
    add_behaviour(parser)
    # What a run has no use for, by its default: the command refuses another value.
    parser.set_defaults(
        of_clips={name: parser.get_default(name) for name in OF_CLIPS},
        of_photos={name: parser.get_default(name) for name in OF_PHOTOS},
    )


def _add_photos(parser: Parser) -> None:
    photos = parser.add_argument_group("photos", "Every photo is driven by every sound (docs/photos.md).")
    photos.add_argument(
        "--photos",
        nargs="+",
        type=existing("a picture or a folder"),
        metavar="PATH",
        help="pictures, and folders of pictures, instead of DATA",
    )
    photos.add_argument(
        "--sounds",
        nargs="+",
        type=existing(),
        metavar="FILE",
        help="voices, better two or more: each is the wrong sound of another; default: the shipped one; a sentence "
        "with known phonemes is added where the extra synth is installed",
    )
    photos.add_argument(
        "--instruments",
        metavar="PYTHON",
        help="the Python that has mediapipe and dlib; default: REST_FAST_PHOTO_INSTRUMENTS, or what make "
        "photo-instruments made here",
    )
    photos.add_argument("--seed", type=whole(0, 2**64 - 1), default=0, metavar="N", help="seed of the noise")


def _add_instruments(parser: Parser) -> None:
    tools = parser.add_argument_group("instruments", "All are optional, and nothing is downloaded.")
    tools.add_argument(
        "--reader",
        type=existing("a file or folder"),
        metavar="PATH",
        help="what reads drawn mouths: a fitted reader, or a folder of other drawn clips to fit one with; default: "
        "reader.safetensors beside DATA",
    )
    tools.add_argument(
        "--landmarks",
        type=existing("a folder"),
        metavar="DIR",
        help="landmark files for the videos that a first run wrote to DIR/videos",
    )
    tools.add_argument(
        "--landmark-command",
        metavar="WORDS",
        help="a program that finds landmarks; it is called as WORDS FRAMES.npy POINTS.npz",
    )
    tools.add_argument("--embedder", type=existing(), metavar="FILE", help="a face recogniser: TorchScript or .pt2")
    tools.add_argument("--inception", type=existing(), metavar="FILE", help="weights for FID; needs the extra fid")
    tools.add_argument("--i3d", type=existing(), metavar="FILE", help="I3D in TorchScript, for FVD")
    tools.add_argument(
        "--syncnet", type=existing(), metavar="FILE", help="weights of syncnet_v2; needs the extra syncnet"
    )


def _add_workers(behaviour: Any) -> None:
    behaviour.add_argument(
        "--workers", type=whole(0), default=0, metavar="N", help="number of processes; 0 means one for each core"
    )
