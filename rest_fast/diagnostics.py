"""A report of what is installed, what runs and how to fix what does not; worth sending along with a question."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rest_fast import cores, ops, processor
from rest_fast.ops import native, triton_host
from rest_fast.ops.dispatch import OpError, Spec, capturing, forced_backend

# Extras of this package: the modules that each brings, and what they are for.
EXTRAS = {
    "whisper": (("transformers",), "speech features from Whisper, for models that are built on them"),
    "synth": (("skia", "espeakng_loader"), "rest-fast synth: drawn faces and synthetic voices"),
    "train": (("tensorboard",), "scalars and sample videos of trainings in TensorBoard"),
    "evaluate": (("skimage",), "rest-fast evaluate: SSIM of pictures"),
    "fid": (("torchmetrics", "torch_fidelity"), "rest-fast evaluate --inception: FID with your weights"),
    "syncnet": (("python_speech_features",), "rest-fast evaluate --syncnet: lip sync with your weights"),
    "convert": (("transformers", "sentencepiece"), "rest-fast convert prompt: a prompt's embedding by T5"),
    "face": (("cv2",), "finds the face in a photo; without it the middle of the photo is taken"),
    "heic": (("pillow_heif",), "reads HEIC pictures, as telephones write them"),
    "hub": (("huggingface_hub",), "--weights owner/name, from the Hugging Face hub, and push_to_hub"),
    "c2pa": (("c2pa",), "rest-fast render --c2pa-cert: signed provenance in videos"),
    "server": (("fastapi", "uvicorn", "websockets", "prometheus_client", "aiortc"), "rest-fast serve"),
    "ray": (("ray",), "servers on the devices of a cluster, with Ray Serve"),
    "livekit": (("livekit",), "a face for an agent of LiveKit Agents"),
    "pipecat": (("pipecat",), "a face for a bot of pipecat, Python 3.11 or later"),
    "triton": (("triton",), "GPU kernels in Triton; CUDA builds of PyTorch bring it along"),
}
REINSTALL = "reinstall rest_fast: pip install --force-reinstall --no-deps --no-cache-dir"
DEMO = ("config.json", "model.safetensors", "portrait.png", "speech.wav")
DRIVER = Path("/proc/driver/nvidia/version")  # exists while the machine's NVIDIA driver runs


ALWAYS_FLOAT32 = ("latent_noise", "move_and_paint")  # ops, whatever the dtype of the model


def config_report() -> dict[str, Any]:
    """Versions, compiled modules, and for each op the fp32 backend on each device, with reasons against the others."""
    modules = {name: native.module(name)[1] or "available" for name in ("_cpu", "_cuda")}
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    forced = forced_backend()
    chosen = {op.name: {device: op.report(Spec(device, torch.float32), forced) for device in devices} for op in ops.ALL}
    report = {
        "version": _version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "devices": devices,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu": {
            "threads": min(torch.get_num_threads(), cores.allowed()),
            "cores": os.cpu_count(),
            "affinity": cores.affinity(),
            "quota": limit.cores if (limit := cores.quota()) else None,
            "pytorch_threads": torch.get_num_threads(),
            "features": sorted(processor.features()),
            "decoder_dtype": str(processor.decoder_dtype() or torch.float32).removeprefix("torch."),
        },
        "modules": modules,
        "build": _build_info(),
        "extras": {name: all(map(_is_there, modules)) for name, (modules, _) in EXTRAS.items()},
        "forced_backend": forced,
        "ops": chosen,
        "evidence": {op.name: op.evidence() for op in ops.ALL},
        "paths": {device: path(device, forced) for device in devices},
        "triton": triton_host.unable() if _is_there("triton") else "Triton is not installed",
    }
    return report | {"problems": list(problems(report))}


def path(device: str, forced: str | None = None) -> dict[str, Any]:
    """What runs a model on a device, in the dtype that is usual there: ``dtype``; ``backends``, name -> its ops; and
    ``uncaptured``, op -> why no CUDA graph can hold it. Both are asked of the dispatch tables themselves, for ops that
    are always in float32 in that.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    backends: dict[str, list[str]] = {}
    uncaptured = {}
    for op in ops.ALL:
        own = torch.float32 if op.name in ALWAYS_FLOAT32 else dtype
        spec = Spec(device, own, (("lengths", "on the device"),))  # as in a captured step
        try:
            backends.setdefault(op.choose(spec, forced).name, []).append(op.name)
            with capturing():
                op.choose(spec, forced)
        except OpError as e:
            uncaptured[op.name] = str(e).partition(": ")[2]
    return {"dtype": str(dtype).removeprefix("torch."), "backends": backends, "uncaptured": uncaptured}


def show_config() -> None:
    """Print versions, what is installed, the backend of every op, and problems with their cures."""
    print(describe())


def describe() -> str:
    """The report as text to read."""
    report = config_report()
    build = ", ".join(f"{k} {str(v).strip()}" for k, v in report["build"].items() if k not in ("compiled", "version"))
    lines = [
        f"rest_fast {report['version']}, Python {report['python']}, PyTorch {report['torch']}, {report['platform']}",
        "",
        "devices",
        f"  {'cpu':16} {_threads(report['cpu'])}",
        f"  {'':16} {', '.join(report['cpu']['features']) or 'no known features'}: convolutions of the demo's decoder "
        f"in {report['cpu']['decoder_dtype']}",
        f"  {'cuda':16} {', '.join(report['gpus']) or 'none'}",
        "",
        "compiled modules" + (f" ({build})" if build else ""),
        *(f"  {name:16} {state}" for name, state in report["modules"].items()),
        "",
        "extras",
    ]
    for name, there in report["extras"].items():
        cure = "" if there else f" [pip install 'rest_fast[{name}]']"
        lines.append(f"  {name:16} {_word(there)}   {EXTRAS[name][1]}{cure}")
    forced = report["forced_backend"]
    lines += ["", "paths: what runs a model", *(line for d, path in report["paths"].items() for line in _path(d, path))]
    lines += [f"  {'triton':16} {report['triton'] or 'can build its launcher here'}"]
    lines += [
        "",
        "ops: the backend that runs in float32, and by which measurement it does"
        + (f" (REST_FAST_BACKEND={forced})" if forced else ""),
    ]
    for name, devices in report["ops"].items():
        for device, entries in devices.items():
            lines.append(f"  {name:22} {device:5} {_chosen(entries, forced, report['evidence'][name])}")
    problems = report["problems"]
    lines += ["", "problems" if problems else "no problems found"]
    for what, cure in problems:
        lines += [f"  {what}", f"    fix: {cure}"]
    return "\n".join(lines)


def _path(device: str, path: dict[str, Any]) -> list[str]:
    """Lines on one device: its backends, those of most ops first; on a GPU also what a graph cannot hold, and why."""
    by_number = sorted(path["backends"].items(), key=lambda entry: -len(entry[1]))
    shares = ", ".join(f"{name} for {_some(taken)}" for name, taken in by_number)
    lines = [f"  {device:16} {path['dtype']}: {shares}"]
    if device == "cuda":
        held = [f"  {'':16} not in a CUDA graph: {op}: {why}" for op, why in path["uncaptured"].items()]
        lines += held or [f"  {'':16} all of it can be captured as a CUDA graph"]
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} ops"


def _threads(cpu: dict[str, Any]) -> str:
    """How many threads compute, and what limits them."""
    quota = "no quota" if cpu["quota"] is None else f"a quota of {cpu['quota']:g} cores"
    bounds = f"{cpu['cores']} cores, affinity to {cpu['affinity']}, {quota}, PyTorch's limit {cpu['pytorch_threads']}"
    return f"{cpu['threads']} threads, fewer while others need the cores ({bounds})"


def _chosen(entries: list[tuple[str, bool, str]], forced: str | None, evidence: dict[str, str]) -> str:
    """The backend that runs, what its place in the table rests on, and why the others do not run."""
    able = [name for name, ok, _ in entries if ok]
    allowed = able if forced is None else [name for name in forced.split(",") if name in able]
    best = allowed[0] if allowed else f"none: {forced} cannot run it"
    reasons = "; ".join(f"{name}: {reason}" for name, ok, reason in entries if not ok)
    if forced is None and best in evidence:
        best += f" [{evidence[best]}]"
    return best + (f"   ({reasons})" if reasons else "")


def _word(there: bool) -> str:
    return "installed" if there else "missing  "


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Problems and their fixes. A missing extra is no problem."""
    module, version, forced = report["modules"]["_cpu"], report["version"], report["forced_backend"]
    if not _is_there("rest_fast._cpu"):
        cure = "install a C++ compiler, then pip install --force-reinstall --no-deps --no-cache-dir"
        yield "the compiled CPU module is missing: all works, but slower", f"{cure} --no-binary rest_fast rest_fast"
    elif module != "available":
        yield f"the compiled CPU module does not load: {module}", REINSTALL
    if report["build"].get("version") not in (None, version):
        yield f"the compiled modules are of version {report['build']['version']}, the rest of {version}", REINSTALL
    if DRIVER.exists() and not report["gpus"]:
        cure = f"update its driver for CUDA {torch.version.cuda}, and look at the variable CUDA_VISIBLE_DEVICES"
        if torch.version.cuda is None:
            cure = "install a CUDA build of PyTorch: https://pytorch.org/get-started/locally"
        yield "there is an NVIDIA GPU, but PyTorch sees none", cure
    if report["gpus"] and report["triton"]:
        yield (
            f"Triton's kernels do not run, so ops take the next backend: {report['triton']}",
            "install what it names (Debian: apt install gcc python3-dev), or set its variable",
        )
    asked = set(forced.split(",")) if forced else set()
    unable = [op.name for op in ops.ALL if forced and asked.isdisjoint(b.name for b in op.backends)]
    if unable:
        yield f"REST_FAST_BACKEND={forced}: there is no such backend of {', '.join(unable)}", "unset that variable"
    if not _encodes_h264():
        yield (
            "PyAV is missing or has no H.264 encoder (libx264)",
            "pip install --force-reinstall --no-deps --only-binary av av",
        )
    assets = Path(__file__).parent / "assets" / "demo"
    lacking = [name for name in DEMO if not (assets / name).exists()]
    if lacking:
        yield f"the demo lacks {', '.join(lacking)} in {assets}", REINSTALL


def _encodes_h264() -> bool:
    try:
        import av

        av.Codec("libx264", "w")
    except (ImportError, ValueError):  # ValueError: PyAV's UnknownCodecError
        return False
    return True


def _version() -> str:
    import rest_fast  # not above: it imports this module

    return rest_fast.__version__


def _build_info() -> dict[str, Any]:
    try:
        info = importlib.import_module("rest_fast._build_info")
    except ImportError:
        return {"compiled": False}
    return {k.lower(): v for k, v in vars(info).items() if k.isupper()}
