"""A stand-in for CUDA graphs on a CPU. It calls the work again, and holds it to what a graph would be held to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What reads a tensor on the host, or makes one from the host's numbers.
HOST = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh", "is_nonzero", "pin_memory")


class Recorder(TorchDispatchMode):
    """Every operation with its arguments: sizes and strides of tensors, places of those that were there before."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []
        self.made: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        assert name not in HOST, f"{name}: a captured graph cannot wait for the host"
        leaves = torch.utils._pytree.tree_leaves((args, kwargs or {}))
        self.operations.append((func.name(), *map(self._described, leaves)))
        result = func(*args, **(kwargs or {}))
        before = {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, torch.Tensor)}
        for made in torch.utils._pytree.tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in before:
                self.made.add(made.untyped_storage().data_ptr())
        return result

    def _described(self, leaf):
        if not isinstance(leaf, torch.Tensor):
            return repr(leaf)  # NaN is not equal to itself
        static = leaf.untyped_storage().data_ptr() not in self.made
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.data_ptr() if static else "made"


class StandIn:
    """A :data:`rest_fast.streaming.graphs.Capture`: a replay repeats the very operations that were recorded, on the
    same memory, whatever integers lie there. ``poison`` is called before every replay."""

    def __init__(self, poison: Callable[[], None] = lambda: None):
        self.poison, self.replays, self.inside = poison, 0, False
        self.made: list[Callable[[], None]] = []

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            work()
        recorded = self._run(work)

        def replay() -> None:
            self.inside = True
            self.poison()
            self.replays += 1
            again = self._run(work)
            assert len(again) == len(recorded)
            for now, then in zip(again, recorded, strict=True):
                assert now == then, f"recorded {then}, now {now}"

        self.made.append(replay)
        return replay

    def _run(self, work: Callable[[], None]) -> list[tuple]:
        self.inside = True
        try:
            # A graph replays launches, whatever mode of autograd its caller is in.
            with torch.inference_mode(False), torch.no_grad(), Recorder() as recorder:
                work()
        finally:
            self.inside = False
        return recorder.operations


class NothingBetween(TorchDispatchMode):
    """Outside of replays, no operation runs that makes a tensor: only views, and copies into static memory."""

    VIEWS = ("copy_", "slice", "select", "view", "detach", "alias")

    def __init__(self, stand_in: StandIn):
        super().__init__()
        self.stand_in = stand_in

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        assert self.stand_in.inside or name in self.VIEWS, f"{func.name()} between replays"
        return func(*args, **(kwargs or {}))
