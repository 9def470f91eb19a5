"""Models for commands: what ``--weights``, ``--device`` and ``--dtype`` mean, with errors of one line."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from rest_fast.cli.terminal import InputError, one_line


def check_model(args: Namespace) -> None:
    """Refuse what no model can be loaded with, or what no model takes, before anything slow is done."""
    from rest_fast.config import ConfigError, SamplingConfig

    given = {name: getattr(args, name, None) for name in ("steps", "guidance")}
    try:
        SamplingConfig(**{name: value for name, value in given.items() if value is not None})
    except ConfigError as e:
        raise InputError(str(e).replace("config field sampling.", "--")) from None
    if args.device == "cpu":
        _refuse_float16(args.dtype)
    check_device(args.device)
    _dtype(args.dtype, args.device)
    if not _is_hub_id(args.weights):
        from rest_fast import checkpoint
        from rest_fast.model import find_checkpoint

        config = checkpoint.read_any_config(find_checkpoint(args.weights))
        try:  # a family of few steps takes fewer values
            config.replace(**{f"sampling__{name}": value for name, value in given.items() if value is not None})
        except ConfigError as e:
            raise InputError(str(e).replace("config field sampling.", "--")) from None


def _is_hub_id(weights: str) -> bool:
    return weights.count("/") == 1 and not os.path.exists(weights)


def load_model(args: Namespace) -> Any:
    import rest_fast

    device, dtype = check_device(args.device), _dtype(args.dtype, args.device)
    whisper = None if args.whisper is None else _whisper(args.whisper)
    return rest_fast.load(args.weights, device=device, dtype=dtype, whisper=whisper, **_for_the_cpu(args))


def plan(args: Namespace) -> str:
    """What ``--sessions`` sessions of a model would take of memory; only its configuration is read."""
    if args.device == "cpu":
        _refuse_float16(args.dtype)
    config = _config(args.weights)

    import torch

    from rest_fast import processor
    from rest_fast.streaming.memory import free_bytes
    from rest_fast.streaming.plan import memory_plan

    choice, dtype = check_device(args.device), _dtype(args.dtype, args.device)
    device = torch.device(choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = device.type == "cpu"
    decoder = processor.decoder_dtype() if dtype is None and on_cpu and config.vae.mixed else None
    dtype = dtype or (torch.float32 if on_cpu else torch.bfloat16)  # as rest_fast.load chooses
    sessions, lanes = args.sessions or 1, args.lanes or 2
    found = memory_plan(config, sessions=sessions, lanes=lanes, dtype=dtype, decoder_dtype=decoder, device=device)
    words = f"{config.name} in {dtype}" + (f", its decoder's convolutions in {decoder}" if decoder else "")
    return f"{words}, on {device}\n{found.table(free_bytes(device))}".replace("torch.", "")


def _config(weights: str) -> Any:
    """The configuration of a folder or a preset."""
    from rest_fast.config import PRESETS, preset

    if weights == "demo" or (weights in PRESETS and not os.path.exists(weights)):
        return preset(weights)
    if not os.path.exists(weights):
        raise InputError(f"--weights {weights}: expected a folder, or one of {', '.join(PRESETS)}, got neither")

    from rest_fast import checkpoint

    return checkpoint.read_any_config(weights)


def _for_the_cpu(args: Namespace) -> dict[str, Any]:
    """Arguments of :func:`rest_fast.load` that only some commands have."""
    import torch

    dtype = getattr(args, "decoder_dtype", "auto")
    return {
        "threads": getattr(args, "threads", None),
        "decoder_dtype": None if dtype == "auto" else getattr(torch, dtype),
    }


def _whisper(name: str) -> Any:
    """The Whisper model of a folder or hub id; its pickles are not read."""
    from transformers import WhisperModel  # the 'whisper' extra

    try:
        return WhisperModel.from_pretrained(name, use_safetensors=True)
    except OSError as e:
        raise InputError(
            f"--whisper {name}: expected a folder or a Hugging Face id of Whisper, got {one_line(e)}"
        ) from e


def check_device(name: str) -> str:
    if not name.startswith("cuda"):
        return name
    import torch

    count = torch.cuda.device_count()  # by NVML, if possible: CUDA stays untouched, and processes can be forked
    if not count:
        why = (
            "rest-fast doctor says more" if torch.version.cuda else f"PyTorch {torch.__version__} is built without CUDA"
        )
        raise InputError(f"--device {name}: no CUDA device found ({why}); expected cpu or auto")
    if name.startswith("cuda:") and int(name.removeprefix("cuda:")) >= count:
        raise InputError(f"--device {name}: expected cuda:0 to cuda:{count - 1}, which are there")
    return name


def _dtype(name: str, device: str) -> Any:
    """A torch dtype that the device computes in, or None for the device's own choice."""
    if name == "auto":
        return None
    import torch

    on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if not on_cuda:
        _refuse_float16(name)
    if name == "bfloat16" and on_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError("--dtype bfloat16: expected float16 or float32 on this GPU, which has no bfloat16")
    return getattr(torch, name)


def _refuse_float16(name: str) -> None:
    if name == "float16":  # it would run, hundreds of times slower
        raise InputError("--dtype float16: expected float32 or bfloat16 on the CPU, which has no fast float16")
