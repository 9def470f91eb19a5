"""One dispatch for every op: schema, checks, in-place reference, and a table of faster backends.

An op has two faces. Its *functional reference* (plain PyTorch, differentiable, returns new tensors) is the
specification and what training uses. Its *in-place* face, an :class:`Op`, writes into tensors of the caller, refuses
gradients, and picks the first backend of its table that supports the call; the last entry is always the reference.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from rest_fast.errors import OpError as OpError

MOST_DECISIONS = 4096  # kept per op; there are few shapes, and a handful of lengths while a window fills
KINDS: dict[str, tuple[Any, str]] = {  # of arguments in a schema: their Python types, and words for them
    "Tensor": (torch.Tensor, "a tensor"),
    "int": (int, "an integer"),
    "bool": (bool, "True or False"),
    "float": ((int, float), "a number"),
    "str": (str, "a string"),
    "List[int]": ((list, tuple), "a list of integers"),
}
LIBRARY = torch.library.Library("rest_fast", "DEF")
_FORCED: contextvars.ContextVar[str | None] = contextvars.ContextVar("rest_fast_backend", default=None)
_CAPTURING: contextvars.ContextVar[bool] = contextvars.ContextVar("rest_fast_capturing", default=False)


class Spec(NamedTuple):
    """What a backend needs to know to accept a call: where it runs, in which dtype, at which sizes and layouts."""

    device: str
    dtype: torch.dtype
    dims: tuple[tuple[str, int | str], ...] = ()
    device_index: int | None = None  # which device of that kind; None: the current one

    def get(self, name: str) -> Any:
        """The size or layout of that name; None where the spec does not say (``show_config`` asks so)."""
        return dict(self.dims).get(name)

    def __str__(self) -> str:
        sizes = ", ".join(f"{k}={v}" for k, v in self.dims)
        return f"{self.device} {str(self.dtype).removeprefix('torch.')} [{sizes}]"


@dataclass(frozen=True)
class Backend:
    """One implementation of an op. ``supports(spec)`` answers (True, "") or (False, reason).

    ``by_name`` is a reason why it runs only when it is asked for by name, or a function that gives such a reason, or ""
    if there is none, for a call. ``uncaptured`` is a reason why a CUDA graph of it would be wrong, such as lengths that
    it reads on the host, and which a replay would not read again; empty where a graph holds it as any kernel.
    ``measured`` is the file of ``benchmarks/results`` by which it stands before those behind it; empty: an estimate.
    """

    name: str
    supports: Callable[[Spec], tuple[bool, str]]
    run: Callable[..., None]
    by_name: str | Callable[[Spec], str] = ""
    uncaptured: str = ""
    measured: str = ""

    def can(self, spec: Spec) -> tuple[bool, str]:
        """:attr:`supports`, and inside of :func:`capturing` whether it can be captured."""
        if self.uncaptured and _CAPTURING.get():
            return False, f"cannot be captured: {self.uncaptured}"
        return self.supports(spec)

    def reluctance(self, spec: Spec) -> str:
        """Why it is not chosen by itself for such a call, which it supports; empty if it is."""
        return self.by_name if isinstance(self.by_name, str) else self.by_name(spec)


class Op:
    """In-place op: ``check`` (returns a :class:`Spec`), then the first backend that supports it.

    Its docstring and signature are those of ``reference``: shapes, dtypes, what is written.

    ``check`` gets exactly the arguments of the op and must look at nothing but their :func:`_trait`: it runs once for
    each combination of those. ``ranges`` holds the checks of integer contents; it runs at every call, for CPU tensors
    only, where reading them costs no wait. ``host`` checks, at every call on any device, the arguments named in
    ``varying``: host copies of device integers, which change from call to call; only whether they are
    there decides something.
    """

    def __init__(
        self,
        schema: str,
        *,
        check: Callable[..., Spec],
        reference: Callable[..., None],
        reference_uncaptured: str = "",
        ranges: Callable[..., None] | None = None,
        host: Callable[..., None] | None = None,
        varying: tuple[str, ...] = (),
        backends: tuple[Backend, ...] = (),
    ):
        self.name = schema.partition("(")[0]
        self.__doc__, self.__wrapped__ = reference.__doc__, reference  # what help() and inspect.signature() show
        self.check = check
        self._ranges, self._host, self._varying = ranges, host, varying
        always = Backend("reference", lambda spec: (True, ""), reference, uncaptured=reference_uncaptured)
        self.backends = (*backends, always)
        self.decided: dict[tuple, tuple[Spec, Backend]] = {}
        LIBRARY.define(f"{schema} -> ()")
        LIBRARY.impl(self.name, self.run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"rest_fast::{self.name}", self._fake, lib=LIBRARY)
        self._registered = getattr(torch.ops.rest_fast, self.name).default
        self._kinds = [(a.name, str(a.type)) for a in self._registered._schema.arguments]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        # PyTorch's dispatcher costs microseconds. Only tracers and fake tensors have to see this op, so only they pay.
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            if torch.is_grad_enabled():
                self._refuse_gradients((*args, *kwargs.values()))
            self._registered(*args, **kwargs)
        else:
            self.run(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> None:
        if torch.is_grad_enabled():
            self._refuse_gradients((*args, *kwargs.values()))
        spec, backend = self._decide(args, kwargs)
        if self._host is not None:
            self._host(*args, **kwargs)
        if self._ranges is not None and spec.device == "cpu":
            self._ranges(*args, **kwargs)
        backend.run(*args, **kwargs)

    def _decide(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Spec, Backend]:
        """The decision for calls like this one: looked up, or made after all checks of what it depends on."""
        forced = forced_backend()
        try:
            key = (
                forced,
                _CAPTURING.get(),
                *map(_trait, args),
                *(_trait(v) if k not in self._varying else v is None for k, v in kwargs.items()),
                *kwargs,
            )
            decided = self.decided.get(key)
        except TypeError:  # no op takes an argument that cannot be hashed
            self._check_kinds(args, kwargs)
            raise
        if decided is None:
            self._check_kinds(args, kwargs)
            spec = self.check(*args, **kwargs)
            index = next(v.device.index for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
            spec = spec._replace(device_index=index)
            decided = spec, self.choose(spec, forced)
            if len(self.decided) >= MOST_DECISIONS:
                self.decided.clear()
            self.decided[key] = decided
        return decided

    def _check_kinds(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise :class:`OpError` for an argument that is not of the schema's kind: a list for a tensor, say."""
        for (name, kind), value in zip(self._kinds, args):
            self._check_kind(name, kind, value)
        for name, kind in self._kinds:
            if name in kwargs:
                self._check_kind(name, kind, kwargs[name])

    def _check_kind(self, name: str, kind: str, value: Any) -> None:
        if value is None and kind.startswith("Optional"):
            return
        kind = kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Optional") else kind
        wanted, words = KINDS[kind]
        right = isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)
        if kind == "List[int]":
            right = right and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if not right:
            raise OpError(f"{self.name}: argument {name}: expected {words}, got {value!r:.60} ({type(value).__name__})")

    def forget(self) -> None:
        """Forget which backend runs which call, for example after something was installed."""
        self.decided.clear()

    def _fake(self, *args: Any, **kwargs: Any) -> None:
        self.check(*args, **kwargs)

    def _refuse_gradients(self, values: tuple[Any, ...]) -> None:
        if any(isinstance(v, torch.Tensor) and v.requires_grad for v in values):
            raise OpError(
                f"{self.name}: the in-place face has no gradient; expected torch.no_grad() or "
                f"inference_mode(), or use rest_fast.ops.functional for training"
            )

    def choose(self, spec: Spec, forced: str | None) -> Backend:
        """The backend for such a call: the first that can, or one of those asked for."""
        if forced is None:
            chosen = next((b for b in self.backends if b.can(spec)[0] and not b.reluctance(spec)), None)
            if chosen is not None:
                return chosen
        known, reasons = {b.name: b for b in self.backends}, []
        for name in forced.split(",") if forced else known:
            if name not in known:
                reasons.append(f"{name!r} is none of {list(known)}")
                continue
            ok, reason = known[name].can(spec)
            if ok and forced:
                return known[name]
            reasons.append(f"{name!r} cannot run {spec}: {reason or known[name].reluctance(spec)}")
        got = repr(forced) if forced else "none that can"
        raise OpError(f"{self.name}: backend: expected one that runs this call, got {got}: {'; '.join(reasons)}")

    def evidence(self) -> dict[str, str]:
        """Of every backend but the last, the reference: the stored measurement behind its place, or "estimate"."""
        return {b.name: b.measured or "estimate" for b in self.backends[:-1]}

    def report(self, spec: Spec, forced: str | None = None) -> list[tuple[str, bool, str]]:
        """(backend, whether it may run this call, why not) for every entry of the table."""
        asked, entries = forced.split(",") if forced else [], []
        for backend in self.backends:
            ok, reason = backend.supports(spec)
            reluctance = backend.reluctance(spec) if ok and backend.name not in asked else ""
            if reluctance:
                ok, reason = False, f"runs only when it is asked for by name: {reluctance}"
            entries.append((backend.name, ok, reason))
        return entries


def _trait(value: Any) -> Any:
    """What a decision may depend on: layout, dtype and device of a tensor; the value of anything else."""
    if isinstance(value, torch.Tensor):
        conjugate = value.dtype.is_complex and value.is_conj()
        return value.shape, value.stride(), value.dtype, value.device, value.is_neg(), conjugate
    return type(value), tuple(value) if isinstance(value, list) else value


def forced_backend() -> str | None:
    """Backend asked for by :func:`use_backend`, else by the variable ``REST_FAST_BACKEND``, else None."""
    return _FORCED.get() or os.environ.get("REST_FAST_BACKEND") or None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Allow only this backend, or the first that can of several ("cpp,reference"), to every op called inside.

    An op that none of them can run raises :class:`OpError`. None restores the free choice.
    """
    token = _FORCED.set(name)
    try:
        yield
    finally:
        _FORCED.reset(token)


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """Inside, calls are being recorded as a CUDA graph: backends that read anything on the host refuse."""
    token = _CAPTURING.set(True)
    try:
        yield
    finally:
        _CAPTURING.reset(token)


def expect(
    op: str,
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    contiguous: bool = True,
) -> None:
    """Raise :class:`OpError` unless the tensor has this shape (-1: any size), dtype, device and layout."""
    got = tensor.shape
    if got != shape and (
        len(got) != len(shape) or any(want not in (-1, have) for want, have in zip(shape, got, strict=True))
    ):
        raise OpError(f"{op}: argument {name}: expected shape {list(shape)}, got {list(got)}")
    if dtype is not None and tensor.dtype != dtype:
        raise OpError(f"{op}: argument {name}: expected {dtype}, got {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise OpError(f"{op}: argument {name}: expected device {device}, got {tensor.device}")
    if tensor.is_neg() or tensor.is_conj():  # PyTorch negates or conjugates such a view as it reads; kernels do not
        raise OpError(
            f"{op}: argument {name}: expected plain memory, got a negated or conjugated view: resolve it first"
        )
    if contiguous and not tensor.is_contiguous():
        raise OpError(f"{op}: argument {name}: expected a contiguous tensor, got strides {tensor.stride()}")


def expect_range(op: str, name: str, index: torch.Tensor, low: int, high: int) -> None:
    """Raise :class:`OpError` unless every entry of a CPU integer tensor lies in low..high."""
    values = index.tolist()  # no tensor operation, so nothing is allocated
    if not values:
        raise OpError(f"{op}: argument {name}: expected at least one lane, got none")
    least, most = min(values), max(values)
    if least < low or most > high:
        raise OpError(f"{op}: argument {name}: expected entries in {low}..{high}, got {least}..{most}")


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
IDLE = -1  # a lane's cache row: it has nothing to do; a lane's audio slot: it hears nothing


def expect_float(op: str, name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise OpError(f"{op}: argument {name}: expected a floating dtype, got {tensor.dtype}")
