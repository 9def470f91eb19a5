"""For every test: a toy model, the same random numbers, and NaN in what the package allocates without filling."""

from __future__ import annotations

import functools
import os
import sys

# Tiny sizes gain nothing from threads, and two threads beside a busy neighbour are many times slower than one.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where a test wants two, they must not spin for each other

import pytest
import torch


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """NaN, or the largest integer; bool and complex stay as they are. Not recorded by autograd."""
    if tensor.is_floating_point():
        tensor.detach().fill_(torch.nan)
    elif tensor.dtype != torch.bool and not tensor.is_complex():
        tensor.fill_(torch.iinfo(tensor.dtype).max)
    return tensor


def poisoned(allocate):
    @functools.wraps(allocate)
    def wrapper(*args, **kwargs):
        if torch.compiler.is_compiling():
            return allocate(*args, **kwargs)
        tensor = allocate(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return poison(tensor) if caller.partition(".")[0] == "rest_fast" else tensor

    return wrapper


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Numbers that a test draws without a seed do not depend on what ran before it, or in which process: it fails
    every time or never."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def uninitialised_memory_is_nan():
    """Once a session: a call costs a microsecond more, and callers outside ``rest_fast`` get what they asked for."""
    with torch.device("meta"):
        torch.empty(0)  # torch lists its constructors at the first use of a device context: before they are wrapped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned(torch.empty))
        patch.setattr(torch, "empty_like", poisoned(torch.empty_like))
        patch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
        yield


@pytest.fixture(scope="session")
def model():
    """The toy preset with random weights, shared: nothing of a stream lives in a model."""
    from tests.kit import toys  # not above: the ops' tests also run where the media libraries are missing

    return toys.toy()


@pytest.fixture(scope="session")
def avatar(model):
    from tests.kit import toys

    return model.prepare(toys.photo())
