"""``rest_fast._cuda`` for the CPU: bindings and kernels, compiled by the host's compiler with the shim (cuda_on_cpu.h).

Objects and libraries are kept in ``build/cuda_shim``, by a digest of what they are made of. ``REST_FAST_SHIM_SANITIZE``
("address,undefined") makes them with these sanitizers, whose library the process must have loaded from the start.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import native
from tests.ops import calls

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
KERNELS = sorted((CSRC / "cuda").glob("*.cu"))
KEPT = ROOT / "build" / "cuda_shim"
SANITIZE = os.environ.get("REST_FAST_SHIM_SANITIZE", "")


@functools.cache
def compiler() -> str:
    found = next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    return found or pytest.skip("no C++ compiler on this machine")


def flags() -> list[str]:
    pybind11 = pytest.importorskip("pybind11")
    includes = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    made = [
        "-std=c++17",
        "-O1",
        "-g1",
        "-fPIC",
        "-fvisibility=hidden",
        "-DREST_FAST_CUDA_ON_CPU",
        "-Wno-unknown-pragmas",
    ]
    made += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"] if SANITIZE else []
    return made + [f"-I{path}" for path in includes]


def digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def made(path: Path, command: list[str]) -> Path:
    """The file that this command leaves under the name after ``-o``, made anew only if it is not there."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may be making it
        if not path.exists():
            scratch = path.with_suffix(".part")
            done = subprocess.run([*command, "-o", str(scratch)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            scratch.rename(path)  # whole or not at all
    return path


def included(source: Path, found: set[Path]) -> set[Path]:
    """The source and the headers of ours that it includes, directly or not."""
    if source not in found:
        found.add(source)
        for name in re.findall(r'^#include "(.+)"', source.read_text(), re.MULTILINE):
            path = next(p for folder in (source.parent, HERE, CSRC) if (p := (folder / name).resolve()).exists())
            included(path, found)
    return found


def compiled(source: Path) -> Path:
    """The object of one source."""
    optimised = "-O1" if source.suffix == ".cu" else "-O0"  # of kernels only: bindings take long to compile
    command = [compiler(), *flags(), optimised, "-x", "c++", "-c", str(source)]
    key = digest([" ".join(command).encode(), *(path.read_bytes() for path in sorted(included(source, set())))])
    return made(KEPT / f"{source.stem}-{key}.o", command)


def library(name: str, sources: Iterable[Path]) -> Path:
    """A shared library of these sources."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    key = digest(o.name.encode() for o in objects)
    return made(KEPT / f"{name}-{key}.so", [compiler(), *flags(), "-shared", *map(str, objects)])


@functools.cache
def path() -> Path:
    return library("_cuda", [CSRC / "bindings_cuda.cpp", *KERNELS])


@functools.cache
def module() -> ModuleType:
    """What ``rest_fast._cuda`` is on a GPU. Skips the test where no compiler is."""
    spec = importlib.util.spec_from_file_location("_cuda", path())
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def run(name: str, call: calls.Call, *, in_place: bool = False, **changed: int) -> calls.Call:
    """The op's CUDA backend on CPU tensors: on copies of what it writes, or in place, and on what it reads as it lies.

    ``changed`` replaces integers on their way to C++. Raises: OpError, as a call on a GPU does.
    """
    written = [] if in_place else [n for n in calls.written(name) if call.get(n) is not None]
    left = call | {n: call[n].clone() for n in written}
    args, kwargs = calls.split(name, left)
    with mock.patch.object(native, "call_cuda", functools.partial(through, changed)):
        next(b for b in calls.OPS[name].backends if b.name == "cuda").run(*args, **kwargs)
    return left


@contextlib.contextmanager
def everywhere() -> Iterator[Counter[str]]:
    """Inside, CPU tensors go to the CUDA backend of every op that takes them, else to the reference. Counts calls."""
    ran: Counter[str] = Counter()

    def counted(op: str, device: object, *values: int | float) -> None:
        ran[op] += 1
        through({}, op, device, *values)

    def supports(spec: ops.Spec, dtypes: list[torch.dtype], device: str = "cpu") -> tuple[bool, str]:
        return device == "cuda" and spec.dtype in dtypes, "not in CUDA, or not in this dtype"

    with mock.patch.object(native, "call_cuda", counted), mock.patch.object(native, "supports", supports):
        try:
            with ops.use_backend("cuda,reference"):
                forget()
                yield ran
        finally:
            forget()


def forget() -> None:
    for op in ops.ALL:
        op.forget()


def through(changed: dict[str, int], op: str, device: object, *values: int | float) -> None:
    named = dict(zip(module().arguments[op], values, strict=True))
    assert changed.keys() <= named.keys(), f"{sorted(changed)} among {list(named)}"
    code = getattr(module(), op)(*(named | changed).values(), 0, 0)
    if code:
        raise ops.OpError(f"{op}: {module().error_string(code)}")
