"""The compiled modules ``rest_fast._cpu`` and ``rest_fast._cuda``: found lazily; absence is a reason, not a crash."""

from __future__ import annotations

import ctypes
import functools
import importlib
import inspect
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rest_fast.ops.dispatch import Backend, OpError, Spec

UNPROVEN = "it has not met a GPU yet"  # why a CUDA backend is taken only by name
OLDEST = (8, 0)  # compute capability that rest_fast._cuda is compiled for
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@functools.cache
def module(name: str = "_cpu") -> tuple[ModuleType | None, str]:
    """(module, "") or (None, why it is missing)."""
    try:
        return importlib.import_module(f"rest_fast.{name}"), ""
    except ImportError as e:
        return None, f"rest_fast.{name} is not available: {e}"


def supports(spec: Spec, dtypes: Collection[torch.dtype], device: str = "cpu") -> tuple[bool, str]:
    compiled, reason = module(f"_{device}")
    if compiled is None:
        return False, reason
    if spec.device != device:
        return False, f"{device.upper()} tensors only, got {spec.device}"
    if spec.dtype not in dtypes:
        return False, f"dtype {spec.dtype} is not compiled in"
    if device == "cuda" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(spec.device_index)
        if capability < OLDEST:
            return False, f"compiled for compute capability 8.0 and newer, the GPU has {capability[0]}.{capability[1]}"
    return True, ""


def set_threads(count: int) -> int | None:
    """OpenMP threads of what the calling thread computes from now on; other threads keep theirs.

    Without the compiled module there is only PyTorch's own setting, which is of the whole process: then the number
    before is returned, for :func:`restore_threads`.
    """
    before = torch.get_num_threads()  # in a thread that is new to PyTorch this also sets the number, so it comes first
    compiled = module()[0]
    if compiled is None:
        torch.set_num_threads(count)
        return before
    compiled.set_threads(count)
    local = _mkl_local()
    if local is not None:
        local(0)  # so that MKL follows OpenMP's number
    return None


def restore_threads(before: int | None) -> None:
    """Undo :func:`set_threads` where it reached the whole process."""
    if before is not None:
        torch.set_num_threads(before)


@functools.cache
def _mkl_local() -> Any:
    """MKL's function for the number of threads of the calling thread; None where PyTorch has no MKL.

    ``torch.set_num_threads`` sets that number in new threads, where it would take precedence over OpenMP's.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return getattr(ctypes.CDLL(str(path)), "MKL_Set_Num_Threads_Local", None) if path.exists() else None


def thread_seconds(count: int) -> float:
    """Seconds of CPU time that the calling thread and its team of ``count`` OpenMP threads have used so far."""
    compiled = module()[0]
    seconds = -1.0 if compiled is None else float(compiled.thread_seconds(count))
    return seconds if seconds >= 0 else time.process_time()


def call(op: str, *args: Any) -> None:
    """Call the op in C++; a non-zero code becomes an :class:`OpError`."""
    torch.get_num_threads()  # OpenMP has a limit per thread; in a new thread this sets it to PyTorch's
    _call(op, "_cpu", args)


def call_cuda(op: str, device: torch.device, *args: Any) -> None:
    """Launch the op in CUDA C++ on the device's current stream; a non-zero code becomes an :class:`OpError`."""
    _call(op, "_cuda", (*args, torch.cuda.current_stream(device).cuda_stream, device.index))


def cpp_backend(
    op: str,
    arguments: Callable[..., tuple],
    unfit: Callable[[Spec], str] = lambda spec: "",
    *,
    dtypes: Collection[torch.dtype] | None = tuple(DTYPES),
    measured: str = "",
) -> Backend:
    """The entry of a dispatch table for an op in C++.

    Args:
        arguments: from those of the op to those that ``csrc/ops/<op>.h`` lists.
        unfit: why its kernel does not take a call, of a dtype that it is compiled for; "" if it does.
        dtypes: those that it is compiled for; None: any, since it moves numbers and does not compute with them.
        measured: see :class:`~rest_fast.ops.dispatch.Backend`.
    """

    def run(*args: Any, **kwargs: Any) -> None:
        try:
            call(op, *arguments(*args, **kwargs))
        except OpError as e:
            raise OpError(f"{e}; got {_tensors(arguments, args, kwargs)}") from None

    return Backend("cpp", _taken(unfit, dtypes, "cpu"), run, measured=measured)


def cuda_backend(
    op: str,
    arguments: Callable[..., tuple],
    unfit: Callable[[Spec], str] = lambda spec: "",
    *,
    dtypes: Collection[torch.dtype] | None = tuple(DTYPES),
) -> Backend:
    """The same in CUDA C++: only by name, until a GPU has run it."""

    def run(*args: Any, **kwargs: Any) -> None:
        try:
            call_cuda(op, args[0].device, *arguments(*args, **kwargs))
        except OpError as e:
            raise OpError(f"{e}; got {_tensors(arguments, args, kwargs)}") from None

    return Backend("cuda", _taken(unfit, dtypes, "cuda"), run, UNPROVEN)


def _tensors(arguments: Callable[..., tuple], args: tuple, kwargs: dict[str, Any]) -> str:
    """Name, shape and dtype of those of a call."""
    named = inspect.signature(arguments).bind(*args, **kwargs).arguments
    return ", ".join(f"{n} {list(t.shape)} {t.dtype}" for n, t in named.items() if isinstance(t, torch.Tensor))


def _taken(
    unfit: Callable[[Spec], str], dtypes: Collection[torch.dtype] | None, device: str
) -> Callable[[Spec], tuple[bool, str]]:
    def can(spec: Spec) -> tuple[bool, str]:
        reason = unfit(spec)
        return (False, reason) if reason else supports(spec, [spec.dtype] if dtypes is None else dtypes, device)

    return can


def _call(op: str, name: str, args: tuple) -> None:
    compiled = module(name)[0]
    assert compiled is not None, "supports() was not asked"
    code = getattr(compiled, op)(*args)
    if code:
        raise OpError(f"{op}: {compiled.error_string(code)}")
