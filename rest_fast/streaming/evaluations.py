"""Evaluations of several sessions at once, of whatever family: small integers in static memory, and work that reads
nothing else, as plain calls or as graphs.

Eager calls compute the lanes that are in use. A captured step computes all of them every time: those that are not used
are *idle*, and reach no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from rest_fast.errors import ArgumentError
from rest_fast.ops.derived import Derived, all_of
from rest_fast.streaming.graphs import Capture
from rest_fast.streaming.inputs import Inputs


class Evaluations:
    """What the steps of all families share.

    Args:
        dit: whose weights the evaluations read.
        lanes: of one evaluation.
        integers, floats: names of what is written for the lanes and turns of each.
    """

    def __init__(self, dit: nn.Module, lanes: int, integers: tuple[str, ...], floats: tuple[str, ...]):
        self._parameters = tuple(dit.parameters())
        self.lanes, self.device, self.dtype = lanes, self._parameters[0].device, self._parameters[0].dtype
        self._names = integers, floats
        self.inputs = [self._new_inputs()]
        self._network = dit
        self._replays: dict[int, Callable[[], None]] = {}  # by the number of evaluations
        # PyTorch counts no changes of inference tensors, so that those cannot be noticed.
        self._weights = None if any(p.is_inference() for p in self._parameters) else Derived(self._parameters, ())
        self._kept: list[object] = []  # what graphs read beside the static memory

    def _new_inputs(self) -> Inputs:
        return Inputs(*self._names, self.lanes, self.device)

    def require_weights(self) -> None:
        """Raise ArgumentError where the model's weights have changed: constants and graphs are of those before."""
        if self._weights is not None and not self._weights.fits(self._parameters, ()):
            raise ArgumentError("step: weights: expected those that it was made with, got changed or moved ones")

    def run(self, *evaluations: Sequence[Any]) -> None:
        """Evaluations in their order, each of one turn or more. One replay, if so many were captured as one graph.

        Raises: ArgumentError, before anything is written, for turns that cannot be evaluated together.
        """
        for turns in evaluations:
            self._check(turns)
        if not self._replays:
            for turns in evaluations:
                self._run_eagerly(turns)
        elif len(evaluations) in self._replays:
            self._replay(evaluations)
        else:
            for turns in evaluations:
                self._replay([turns])

    def _replay(self, evaluations: Sequence[Sequence[Any]]) -> None:
        for inputs, turns in zip(self.inputs, evaluations):
            inputs.fill(self._entries(turns, captured=True))
        self._replays[len(evaluations)]()

    # -- graphs

    @torch.no_grad()
    def warm(self) -> None:
        """Compute everything once with idle lanes, so that kernels are compiled and loaded before the first request."""
        self._fill_idle()
        self._evaluate_idle()

    def capture(self, graph: Capture, *, evaluations: int = 0) -> None:
        """From now on replay graphs: of an evaluation, of a chunk's beginning and end, and of so many ``evaluations``
        at once, if given.

        ``graph``: see :mod:`rest_fast.streaming.graphs`. The graphs read the weights as they are now.
        """
        with torch.inference_mode(False), torch.no_grad():
            for _ in range(len(self.inputs), max(evaluations, 1)):
                self.inputs.append(self._new_inputs())
            self._fill_idle()
            for count in sorted({1, evaluations} - {0}):
                self._replays[count] = graph(partial(self._evaluate_all, count))
            self._capture_ends(graph)
            self._kept = all_of(self._network)

    def _evaluate_all(self, count: int) -> None:
        for inputs in self.inputs[:count]:
            self._evaluate_captured(inputs)

    def _fill_idle(self) -> None:
        for inputs in self.inputs:
            inputs.fill(self._entries((), captured=True))

    # -- what a family says

    def _check(self, turns: Sequence[Any]) -> None:
        """Raise ArgumentError for what cannot be evaluated together, before anything is written."""
        raise NotImplementedError

    def _entries(self, turns: Sequence[Any], captured: bool) -> dict[str, list[Any]]:
        """The numbers of the evaluation, by name; a captured step has idle lanes and turns as well."""
        raise NotImplementedError

    def _run_eagerly(self, turns: Sequence[Any]) -> None:
        """Evaluate the lanes of these turns alone."""
        raise NotImplementedError

    def _evaluate_captured(self, inputs: Inputs) -> None:
        """Evaluate all lanes; nothing in it may depend on anything but sizes and the contents of tensors."""
        raise NotImplementedError

    def _evaluate_idle(self) -> None:
        """The same on a device that may ask the host; all lanes are idle."""
        raise NotImplementedError

    def _capture_ends(self, graph: Capture) -> None:
        """Record what stands before and behind a chunk's evaluations."""
        raise NotImplementedError
