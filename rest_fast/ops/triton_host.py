"""Whether Triton can build and load, on this machine, the small C library by which it launches a kernel.

Triton compiles it at the first launch, where a machine that lacks something raises an error that no dispatch table can
act on. So everything it will need is tried before: the C compiler (by compiling), Python's headers, the driver's
library, and a folder for its cache.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch

SOURCE = "#include <Python.h>\n#include <stdlib.h>\nint answer(void) { return PY_MAJOR_VERSION; }\n"
SECONDS = 60  # of the trial, which takes a tenth of a second on an idle machine


@functools.cache
def unable() -> str:
    """Why Triton cannot launch a kernel here, or an empty string. The trial is made once in a process."""
    return _lacks_cache() or _lacks_driver() or ("" if _builds_elsewhere() else _lacks_compiler())


def _builds_elsewhere() -> bool:
    """Whether the user gave Triton a function of their own to build with (``triton.knobs.build.impl``)."""
    try:
        return importlib.import_module("triton").knobs.build.impl is not None
    except (ImportError, AttributeError):
        return False


def _lacks_compiler() -> str:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")  # in Triton's order
    if not compiler:
        return "Triton needs a C compiler for its launcher; expected gcc, clang or the variable CC, found none"
    if shutil.which(compiler) is None:
        return f"Triton needs a C compiler for its launcher; expected a program in the variable CC, got {compiler!r}"
    include = headers()
    if not (include / "Python.h").exists():
        return f"Triton needs Python.h for its launcher, found none in {include}"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "answer.c"), Path(folder, "answer.so")
        source.write_text(SOURCE)
        command = [compiler, str(source), "-O3", "-shared", "-fPIC", f"-I{include}", "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired) as e:
            return f"Triton needs a C compiler for its launcher; {compiler} does not run: {e}"
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        return f"Triton needs a C compiler for its launcher; {compiler} compiles nothing: {said:.200}"
    return ""


def headers() -> Path:
    """The folder in which Triton looks for Python.h; Debian's own scheme names another one."""
    scheme = sysconfig.get_default_scheme()
    return Path(sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme))


def _lacks_driver() -> str:
    """Triton links its launcher with libcuda and asks ldconfig where that is; PyTorch finds it without."""
    if not torch.cuda.is_available():
        return ""
    try:
        importlib.import_module("triton.backends.nvidia.driver").libcuda_dirs()
    except AttributeError:  # another version of Triton, which finds it in another way
        return ""
    except (ImportError, AssertionError, OSError, subprocess.SubprocessError) as e:
        return f"Triton does not find libcuda.so.1 (the variable TRITON_LIBCUDA_PATH may name its folder): {e}"
    return ""


def _lacks_cache() -> str:
    home = Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~"))
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return ""
    return f"Triton needs a folder for its cache; {folder} cannot be written (the variable TRITON_CACHE_DIR names one)"
