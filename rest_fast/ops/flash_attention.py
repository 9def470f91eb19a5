"""Optional adapters: FlashAttention 3 and 4 as backends of ``sink_ring_attention``, never required, only by name.

A library is looked for when its backend is asked for (``use_backend("flash_attn_3")``). If it is missing or does not
fit, that is the reason why the backend is not supported. The cache is read in place: ``[rows, banks, slots, ...]`` is
passed without a copy as rows x banks sequences of ``slots``, and a small int32 tensor names each lane's sequence,
``row * banks + bank``. Where a library's function takes ``out``, it writes there. Otherwise it allocates its own
output, which is copied once and counted (:data:`copies`), and these backends do not keep the promise of allocating
nothing: neither ``flash_attn_with_kvcache`` nor ``flash_attn_varlen_func`` has ``out`` so far.
"""

from __future__ import annotations

import collections
import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rest_fast.ops.dispatch import Backend, OpError, Spec

OP = "sink_ring_attention"
copies: collections.Counter[str] = collections.Counter()  # by backend: outputs that a library allocated, copied once


@dataclass(frozen=True)
class Library:
    """One function of a library, and what it accepts."""

    backend: str
    module: str
    function: str
    install: str
    arguments: tuple[str, ...]  # those that :attr:`call` names
    largest_head: int
    capabilities: tuple[tuple[int, int], tuple[int, int]]  # compute capability: from, and below
    call: Callable[..., Any]


def _call_3(function, q, k, v, *, place, n_valid, scale, lse: bool, **more) -> Any:
    """k, v: ``[places, slots, H, D]``; place, n_valid: int32 ``[B]``. Returns out, or (out, lse ``[B, H, Nq]``)."""
    lengths = {"cache_seqlens": n_valid, "cache_batch_idx": place}
    return function(q, k, v, **lengths, softmax_scale=scale, return_softmax_lse=lse, **more)


def _call_4(function, q, k, v, *, place, n_valid, scale, lse: bool, **more) -> Any:
    """A place of the cache is a page of ``slots`` keys, and a lane has one page."""
    return function(
        q,
        k,
        v,
        page_table=place[:, None],
        seqused_k=n_valid,
        max_seqlen_k=k.shape[1],
        softmax_scale=scale,
        return_lse=lse,
        **more,
    )


# Read at flash-attention 0251105a: hopper/flash_attn_interface.py and flash_attn/cute/interface.py.
FLASH_3 = Library(
    backend="flash_attn_3",
    module="flash_attn_interface",
    function="flash_attn_with_kvcache",
    install="the folder hopper of Dao-AILab/flash-attention",
    arguments=("cache_seqlens", "cache_batch_idx", "softmax_scale", "return_softmax_lse"),
    largest_head=256,
    capabilities=((8, 0), (10, 0)),
    call=_call_3,
)
FLASH_4 = Library(
    backend="flash_attn_4",
    module="flash_attn.cute",
    function="flash_attn_varlen_func",
    install="pip install flash-attn-4",
    arguments=("page_table", "seqused_k", "max_seqlen_k", "softmax_scale", "return_lse"),
    largest_head=128,
    capabilities=((9, 0), (12, 0)),
    call=_call_4,
)


def backend(library: Library) -> Backend:
    """The entry of the dispatch table."""
    return Backend(
        library.backend,
        functools.partial(_supports, library),
        functools.partial(_run, library),
        "its numbers were never compared on a GPU",
    )


def _supports(library: Library, spec: Spec) -> tuple[bool, str]:
    reason = _unfit(library, spec) or _function(library)[1]
    return not reason, reason


def _unfit(library: Library, spec: Spec) -> str:
    if spec.device != "cuda":
        return f"CUDA tensors only, got {spec.device}"
    if spec.dtype not in (torch.bfloat16, torch.float16):
        return f"bfloat16 and float16 only, got {spec.dtype}"
    dim = spec.get("head_dim") or 8
    if dim % 8 or dim > library.largest_head:
        return f"head_dim: expected a multiple of 8 up to {library.largest_head}, got {dim}"
    least, below = library.capabilities
    if torch.cuda.is_available() and not least <= (got := torch.cuda.get_device_capability(spec.device_index)) < below:
        return f"compute capability: expected {least[0]}.{least[1]} or newer, below {below[0]}.{below[1]}, got {got}"
    return ""


def _function(library: Library) -> tuple[Callable[..., Any] | None, str]:
    """(function, "") or (None, why there is none that takes our arguments)."""
    try:
        module = importlib.import_module(library.module)
    except (ImportError, OSError, RuntimeError) as e:  # a module for another CUDA or torch fails in all three ways
        return None, f"{library.module} is not available: {e} [{library.install}]"
    name = f"{library.module}.{library.function}"
    function = getattr(module, library.function, None)
    if not callable(function):
        return None, f"{name} is not there; another version of the library?"
    try:
        takes = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None, f"{name} does not say which arguments it takes"
    missing = [a for a in library.arguments if a not in takes]
    if missing and all(p.kind is not p.VAR_KEYWORD for p in takes.values()):
        return None, f"{name}: expected arguments {list(library.arguments)}, got none named {missing}"
    return function, ""


@functools.cache
def looked_up(library: Library) -> tuple[Callable[..., Any] | None, str]:
    """:func:`_function`, once: importing and reading a signature would cost more than the call."""
    return _function(library)


@functools.cache
def takes_out(library: Library) -> bool:
    """Whether the function has an argument ``out`` of that name."""
    function, _ = looked_up(library)
    return function is not None and "out" in inspect.signature(function).parameters


def _run(
    library: Library,
    q,
    k_cache,
    v_cache,
    out,
    *,
    row_index,
    bank_index,
    n_valid,
    host_n_valid,
    scale,
    lse=None,
    host_place=None,
) -> None:
    function, reason = looked_up(library)
    if function is None:
        raise OpError(f"{OP}: backend {library.backend}: {reason}")
    more = {"out": out} if takes_out(library) else {}
    place = torch.add(bank_index, row_index, alpha=k_cache.shape[1]).clamp_(min=0)  # that of an idle lane is negative
    k, v = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
    given = {"place": place, "n_valid": n_valid, "scale": scale, "lse": lse is not None}
    try:
        with torch.cuda.device_of(q):
            result = library.call(function, q, k, v, **given, **more)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as e:
        raise OpError(f"{OP}: backend {library.backend}: {library.function} refuses this call: {e}") from e
    results = result if isinstance(result, tuple) else (result,)
    for name, target, at in (("out", out, 0), ("lse", lse, 1)):
        if target is None:
            continue
        got = getattr(results[at], "shape", None) if at < len(results) else None
        if got != target.shape:
            raise OpError(
                f"{OP}: backend {library.backend}: {library.function}: expected {name} of shape "
                f"{list(target.shape)}, got {got if got is None else list(got)}"
            )
    if results[0].data_ptr() != out.data_ptr():
        copies[library.backend] += 1
        out.copy_(results[0])
    if lse is not None:
        lse.copy_(results[1])
