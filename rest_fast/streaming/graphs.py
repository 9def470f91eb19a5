"""Work on static tensors as a CUDA graph: recorded once, replayed without the host's part of each launch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from rest_fast.errors import ArgumentError, CaptureError
from rest_fast.ops.dispatch import capturing

WARM = 3  # calls before it is recorded: kernels are compiled and loaded, libraries choose their algorithms

# Runs some work, which takes no arguments and returns nothing, and gives what repeats it.
Capture = Callable[[Callable[[], None]], Callable[[], None]]

# Makes one for each name: graphs of one capture share memory, so what may run at the same time has one each.
Graphs = Callable[[str], Capture]


def graphs_of(choice: str, device: torch.device) -> Graphs | None:
    """What ``graphs=`` asks for: ``"on"``, ``"off"``, or ``"auto"``: on where there is a CUDA device. None: none.

    Raises: :class:`rest_fast.errors.ArgumentError` for ``"on"`` without a CUDA device, and for any other word.
    """
    if choice not in ("auto", "on", "off"):
        raise ArgumentError(f"graphs: expected auto, on or off, got {choice!r}")
    if choice == "on" and device.type != "cuda":
        raise ArgumentError(f"graphs: expected auto or off, since CUDA graphs need a CUDA device, got 'on' on {device}")
    return None if choice == "off" or device.type != "cuda" else functools.partial(CudaGraphs, device)


class CudaGraphs:
    """A :data:`Capture` into one memory pool and onto one stream.

    Args:
        name: what is captured, for errors.
    """

    def __init__(self, device: torch.device, name: str):
        self.device, self.name = device, name
        with torch.cuda.device(device):
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Raises: :class:`rest_fast.errors.CaptureError`, with the reason."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.device), capturing():
                self.stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self.stream):
                    for _ in range(WARM):
                        work()
                self.stream.synchronize()
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                    work()
                torch.cuda.current_stream().wait_stream(self.stream)
        except RuntimeError as e:
            raise CaptureError(
                f'{self.name}: cannot be captured as a CUDA graph: {e}; graphs="off" runs it without'
            ) from e
        return graph.replay
