"""States of a running stage: torch's distributed checkpoints (DCP) in safetensors files, so nothing is ever unpickled.

    OUT/STAGE/state/step_00000400/    weights, averages, moments, step; written as ....partial, renamed when complete

A state that 2 processes wrote can be read by 1 or by 8: DCP puts the pieces together.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException  # derived from BaseException alone

try:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
except ImportError as e:
    raise ImportError(f"training: expected PyTorch 2.8 or newer, got {torch.__version__}") from e

from rest_fast.errors import StateError as StateError
from rest_fast.training.distributed import World


def steps(folder: Path) -> list[int]:
    """Steps of the complete states in a folder, ascending."""
    found = folder.glob("step_*") if folder.is_dir() else iter(())
    return sorted(int(p.name.removeprefix("step_")) for p in found if p.name.removeprefix("step_").isdigit())


def save(folder: Path, step: int, tensors: dict[str, torch.Tensor], world: World, keep: int) -> None:
    """Write the state of a step, then remove all but the last ``keep``. Called by all processes."""
    whole = folder / f"step_{step:08d}"
    partial = whole.with_suffix(".partial")
    if world.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    with _quiet():
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        try:
            dcp.save(dict(tensors), storage_writer=writer, no_dist=world.size == 1)
        except CheckpointException as e:
            raise StateError(f"{partial}: expected room for a state, but writing it failed ({_last_line(e)})") from None
    world.barrier()
    if world.first:
        shutil.rmtree(whole, ignore_errors=True)
        partial.rename(whole)
        for old in steps(folder)[:-keep]:
            shutil.rmtree(folder / f"step_{old:08d}")
    world.barrier()


def load(folder: Path, tensors: dict[str, torch.Tensor], world: World) -> int:
    """Read the newest complete state into ``tensors``, in place. Returns: its step, 0 if there is none."""
    found = steps(folder)
    if not found:
        return 0
    path = folder / f"step_{found[-1]:08d}"
    older = f"; remove it to go on from step {found[-2]}" if len(found) > 1 else ""
    with _quiet():
        try:
            reader = HuggingFaceStorageReader(str(path))
            more = sorted(set(reader.read_metadata().state_dict_metadata) - set(tensors))
            if more:  # DCP ignores tensors that are not asked for
                raise ValueError(f"{len(more)} tensors too many, {more[0]}, ...")
            dcp.load(tensors, storage_reader=reader, no_dist=world.size == 1)
        except (Exception, CheckpointException) as e:  # of DCP, of safetensors, of the file system
            expected = f"expected the state of this configuration, got one that does not fit ({_last_line(e)})"
            raise StateError(f"{path}: {expected}{older}") from None
    return found[-1]


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without DCP's warnings, such as that it runs in a single process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
