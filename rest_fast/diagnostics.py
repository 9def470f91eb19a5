"""What is installed and what runs: the first thing to look at, and to send along, when something is off."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from typing import Any

import torch

from rest_fast import ops
from rest_fast.ops import native
from rest_fast.ops.dispatch import Spec, forced_backend

OPTIONAL = ("triton", "flash_attn", "transformers", "huggingface_hub")


def config_report() -> dict[str, Any]:
    """Versions, compiled modules, and per op the backend chosen for fp32 on each device, with reasons for the rest."""
    modules = {"_cpu": native.module()[1] or "available", "_cuda": _cuda_module()}
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    chosen = {op.name: {device: op.report(Spec(device, torch.float32)) for device in devices} for op in ops.ALL}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "devices": devices,
        "threads": torch.get_num_threads(),
        "modules": modules,
        "build": _build_info(),
        "optional": {name: importlib.util.find_spec(name) is not None for name in OPTIONAL},
        "forced_backend": forced_backend(),
        "ops": chosen,
    }


def show_config() -> None:
    """Print every op, the backend chosen for it, and why the others were not."""
    report = config_report()
    for key in ("python", "torch", "devices", "threads", "modules", "build", "optional", "forced_backend"):
        print(f"{key:15} {report[key]}")
    for name, devices in report["ops"].items():
        for device, entries in devices.items():
            best = next(backend for backend, ok, _ in entries if ok)
            others = "; ".join(f"{backend}: {reason}" for backend, ok, reason in entries if not ok)
            print(f"{name:22} {device:5} -> {best}" + (f"   ({others})" if others else ""))


def _cuda_module() -> str:
    try:
        importlib.import_module("rest_fast._cuda")
    except ImportError as e:
        return f"not available: {e}"
    return "available"


def _build_info() -> dict[str, Any]:
    try:
        info = importlib.import_module("rest_fast._build_info")
    except ImportError:
        return {"compiled": False}
    return {k.lower(): v for k, v in vars(info).items() if k.isupper()}
