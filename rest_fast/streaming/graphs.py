"""Work on static tensors as a CUDA graph: recorded once, replayed without the host's part of each launch."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch

from rest_fast.errors import ArgumentError, CaptureError, OpError
from rest_fast.ops.dispatch import capturing

WARM = 3  # calls before it is recorded: kernels are compiled and loaded, libraries choose their algorithms

# Takes work (no arguments, no result), records it, and returns a function that repeats it.
Capture = Callable[[Callable[[], None]], Callable[[], None]]

# Gives a Capture for a name. Graphs of one Capture share memory and must not run at the same time: work that may
# overlap needs a Capture of its own.
Graphs = Callable[[str], Capture]

_one_at_a_time = threading.Lock()  # of a process: PyTorch records one graph at a time


def graphs_of(choice: str, device: torch.device) -> Graphs | None:
    """What ``graphs=`` asks for: ``"on"``, ``"off"``, or ``"auto"``: on where there is a CUDA device.

    Returns: a maker of captures, or None where nothing is to be captured.
    Raises: :class:`rest_fast.errors.ArgumentError` for ``"on"`` without a CUDA device, and for any other word.
    """
    if choice not in ("auto", "on", "off"):
        raise ArgumentError(f"graphs: expected auto, on or off, got {choice!r}")
    if choice == "on" and device.type != "cuda":
        raise ArgumentError(f"graphs: expected auto or off, since CUDA graphs need a CUDA device, got 'on' on {device}")
    return None if choice == "off" or device.type != "cuda" else functools.partial(CudaGraphs, device)


class Fixed:
    """A function of tensors of fixed shapes, which returns some: as a graph in static memory, or without one as it is.

    Args:
        function: nothing in it may depend on anything but sizes and the contents of tensors.
        given: of any contents; their memory becomes the graph's.
    """

    def __init__(
        self,
        function: Callable[..., tuple[torch.Tensor, ...]],
        given: tuple[torch.Tensor, ...],
        capture: Capture | None = None,
    ):
        self.function, self.given = function, given
        self.replay: Callable[[], None] | None = None
        if capture is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            self.found = tuple(torch.empty_like(x) for x in function(*given))
            self.replay = capture(self._work)

    def _work(self) -> None:
        for mine, made in zip(self.found, self.function(*self.given), strict=True):
            mine.copy_(made)

    def __call__(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What it returns holds until the next call."""
        if self.replay is None:
            return self.function(*given)
        for mine, tensor in zip(self.given, given, strict=True):
            mine.copy_(tensor)
        self.replay()
        return self.found


class CudaGraphs:
    """A :data:`Capture` into one memory pool and onto one stream.

    Args:
        name: what is captured, for errors.
    """

    def __init__(self, device: torch.device, name: str):
        self.device, self.name = device, name
        self.warm = False  # whether something was captured, so that kernels are loaded
        with torch.cuda.device(device):
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Raises: :class:`rest_fast.errors.CaptureError`, with the reason."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), _one_at_a_time:
            before = torch.cuda.current_stream()
            try:
                self._record(graph, work, before)
            except (RuntimeError, OpError) as e:
                raise CaptureError(
                    f"{self.name}: cannot be captured as a CUDA graph: {e}; graphs='off' runs it without"
                ) from e
            finally:
                torch.cuda.set_stream(before)  # a capture that fails leaves its own
        self.warm = True
        return graph.replay

    def _record(self, graph: torch.cuda.CUDAGraph, work: Callable[[], None], before: torch.cuda.Stream) -> None:
        with capturing():
            self.stream.wait_stream(before)
            with torch.cuda.stream(self.stream):
                for _ in range(1 if self.warm else WARM):
                    work()
            self.stream.synchronize()
            # Other threads may allocate meanwhile: sessions on other devices, callers.
            mode = "thread_local"
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode=mode):
                work()
            before.wait_stream(self.stream)
