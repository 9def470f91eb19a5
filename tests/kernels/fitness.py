"""What is needed here to compile or interpret Triton's kernels."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import numpy

from rest_fast.ops import triton_kernels


def unfit() -> str:
    """Why the interpreter cannot be used here, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    triton = tuple(int(n) for n in importlib.metadata.version("triton").split(".")[:2])
    if triton < (3, 7) and tuple(int(n) for n in numpy.__version__.split(".")[:2]) >= (2, 4):
        return f"the interpreter of Triton {triton[0]}.{triton[1]} needs numpy < 2.4, got {numpy.__version__}"
    return ""


PAGE_MADE_BY = "3.6.0"  # the version of Triton whose compiled kernels docs/kernels/README.md describes
UNFIT = "Triton is not installed" if importlib.util.find_spec("triton") is None else ""
if triton_kernels.interpreted():
    UNFIT = "with TRITON_INTERPRET=1 kernels are interpreted functions, which nobody can compile"
