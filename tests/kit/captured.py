"""A stand-in for CUDA graphs on a CPU: a tape of the operations, which are repeated on the memory that they had."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that read a tensor on the host, or make one from the host's numbers; and methods that are no operations.
HOST = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "lift_fresh", "is_nonzero", "pin_memory")
METHODS = ("tolist", "numpy", "cpu")
CHECKS = ("ranges", "expect_range")  # of ops, which look at integers on a CPU only


def tensors(tree: object) -> list[torch.Tensor]:
    """All but weights in oneDNN's order, whose memory nobody can look at."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and not leaf.is_mkldnn]


class Tape(TorchDispatchMode):
    """Records operations with their arguments and results; refuses those that wait for the host."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        leaves = tensors((args, kwargs or {}))
        masked = name in ("index", "index_put_") and any(leaf.dtype == torch.bool for leaf in leaves[1:])
        assert name not in HOST and not masked, f"{name}: a captured graph cannot wait for the host"
        result = func(*args, **(kwargs or {}))
        before = {leaf.untyped_storage().data_ptr() for leaf in leaves}
        made = tensors(result)
        new = [leaf.untyped_storage().data_ptr() not in before and leaf.numel() > 0 for leaf in made]
        self.operations.append((func, args, kwargs or {}, made, new))
        return result

    def repeat(self) -> None:
        for func, args, kwargs, made, new in self.operations:
            again = tensors(func(*args, **kwargs))
            for old, now, is_new in zip(made, again, new, strict=True):
                if is_new:
                    old.copy_(now)


@contextlib.contextmanager
def no_host_reads() -> Iterator[None]:
    """Refuse methods that read a tensor on the host, but for the checks of ops."""
    with contextlib.ExitStack() as stack:
        for name in METHODS:
            original = getattr(torch.Tensor, name)

            def refused(tensor, *args, name=name, original=original, **kwargs):
                caller = sys._getframe(1).f_code.co_name
                assert caller in CHECKS, f"{name} in {caller}: a captured graph cannot wait for the host"
                return original(tensor, *args, **kwargs)

            stack.enter_context(mock.patch.object(torch.Tensor, name, refused))
        yield


class StandIn:
    """A :data:`rest_fast.streaming.graphs.Capture`. A replay runs no Python of the work again, only the operations that
    were recorded, on the tensors that they had then. ``poison`` is called before every replay."""

    def __init__(self, poison: Callable[[], None] = lambda: None):
        self.poison, self.replays, self.inside = poison, 0, False
        self.made: list[Callable[[], None]] = []

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        # A graph repeats launches, whatever mode of autograd its caller is in.
        with torch.inference_mode(False), torch.no_grad(), no_host_reads():
            for _ in range(3):
                work()
            with Tape() as tape:
                work()

        def replay() -> None:
            self.inside = True
            try:
                with torch.inference_mode(False), torch.no_grad():
                    self.poison()
                    tape.repeat()
            finally:
                self.inside = False
            self.replays += 1

        self.made.append(replay)
        return replay


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
