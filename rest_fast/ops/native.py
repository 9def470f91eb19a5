"""The compiled CPU module ``rest_fast._cpu``: found lazily, its absence is a reason and not a crash."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch

from rest_fast.ops.dispatch import OpError, Spec

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@functools.cache
def module() -> tuple[ModuleType | None, str]:
    """(module, "") or (None, why it is missing)."""
    try:
        return importlib.import_module("rest_fast._cpu"), ""
    except ImportError as e:
        return None, f"rest_fast._cpu is not available: {e}"


def supports(spec: Spec, dtypes: list[torch.dtype]) -> tuple[bool, str]:
    if module()[0] is None:
        return False, module()[1]
    if spec.device != "cpu":
        return False, f"CPU tensors only, got {spec.device}"
    if spec.dtype not in dtypes:
        return False, f"dtype {spec.dtype} is not compiled in"
    return True, ""


def call(op: str, *args: Any) -> None:
    """Call the compiled op; a non-zero code becomes an :class:`OpError`."""
    compiled = module()[0]
    assert compiled is not None, "supports() was not asked"
    code = getattr(compiled, op)(*args)
    if code:
        raise OpError(f"{op}: {compiled.error_string(code)}")
