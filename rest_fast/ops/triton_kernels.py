"""The Triton kernels in ``rest_fast.kernels``, imported at first use; their absence is a reason, not a crash."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

import torch

from rest_fast.ops import triton_host
from rest_fast.ops.dispatch import Backend, Spec

OLDEST = (8, 0)  # compute capability: bf16 and cp.async


def interpreted() -> bool:
    """Whether this process runs Triton kernels in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def kernel(op: str) -> ModuleType:
    """The package of an op's kernels, with ``supports(spec)`` and ``launch(...)``: the arguments of the op."""
    return importlib.import_module(f"rest_fast.kernels.{op}")


def backend(op: str) -> Backend:
    """The entry of a dispatch table for the kernels of an op."""

    def supports(spec: Spec) -> tuple[bool, str]:
        reason = unfit(spec)
        if reason:
            return False, reason
        try:
            package = kernel(op)
        except (ImportError, AttributeError, TypeError, OSError, RuntimeError) as e:  # broken, or too old
            return False, f"its kernel cannot be imported: {e}"
        return package.supports(spec)

    def run(*args: Any, **kwargs: Any) -> None:
        kernel(op).launch(*args, **kwargs)

    def by_name(spec: Spec) -> str:
        """The reason that a kernel's package gives where another backend was measured to be faster."""
        slower = getattr(kernel(op), "slower", None)
        return slower(spec) if slower else ""

    return Backend("triton", supports, run, by_name)


def unfit(spec: Spec) -> str:
    """Why no Triton kernel runs on this device, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed [pip install 'rest_fast[triton]']"
    if interpreted():
        if spec.device != "cpu":
            return f"TRITON_INTERPRET=1 runs kernels on CPU tensors, got {spec.device}"
        if spec.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly"
    elif spec.device != "cuda":
        return f"CUDA tensors only, got {spec.device}"
    elif torch.cuda.is_available() and torch.cuda.get_device_capability(spec.device_index) < OLDEST:
        return f"expected compute capability {OLDEST[0]}.{OLDEST[1]} or newer"
    else:
        return triton_host.unable()
    return ""
