"""States on disk: whole or not there, of one configuration, and never a pickle."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException

from rest_fast.training import states
from rest_fast.training.distributed import World
from tests.kit.compare import assert_same_bits


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "step": torch.tensor(seed),
        "weight.a": torch.randn(3, 5, generator=g),
        "weight.b": torch.randn((), generator=g, dtype=torch.float64),
        "average.a": torch.randn(3, 5, generator=g).bfloat16(),
        "exp_avg.a": torch.randn(1, 0, 2, generator=g),
    }


def read(folder: Path) -> tuple[int, dict[str, torch.Tensor]]:
    blank = {name: torch.full_like(tensor, 77) for name, tensor in tensors().items()}
    return states.load(folder, blank, World()), blank


def test_what_was_written_is_read(tmp_path):
    written = tensors(3)
    states.save(tmp_path, 400, written, World(), 2)
    step, got = read(tmp_path)
    assert step == 400
    for name, tensor in written.items():
        assert_same_bits(got[name], tensor, name)


def test_a_state_is_safetensors_and_nothing_else(tmp_path):
    states.save(tmp_path, 400, tensors(3), World(), 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000400"]
    (file,) = (tmp_path / "step_00000400").iterdir()
    assert file.suffix == ".safetensors"
    assert load_file(file).keys() == tensors().keys()  # whole: safetensors itself reads it


def test_the_last_few_are_kept_and_the_newest_is_read(tmp_path):
    for step in (9, 10, 100, 2000):
        states.save(tmp_path, step, tensors(step), World(), 2)
    assert states.steps(tmp_path) == [100, 2000]
    step, got = read(tmp_path)
    assert step == 2000 and torch.equal(got["weight.a"], tensors(2000)["weight.a"])
    states.save(tmp_path, 2000, tensors(7), World(), 1)  # once more
    assert states.steps(tmp_path) == [2000] and torch.equal(read(tmp_path)[1]["weight.a"], tensors(7)["weight.a"])


def test_none_to_read(tmp_path):
    (tmp_path / "step_00000003.partial").mkdir()
    (tmp_path / "step_one").mkdir()
    for folder in (tmp_path, tmp_path / "none"):
        step, got = read(folder)
        assert step == 0 and all((t == 77).all() for t in got.values())


def changed(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    new = {**tensors(), **{name.replace("_", ".", 1): t for name, t in changes.items()}}
    return {name: tensor for name, tensor in new.items() if tensor is not None}


@pytest.mark.parametrize("other, says", [
    (changed(weight_a=torch.zeros(4, 5)), r"\[3, 5\].*\[4, 5\].*weight\.a"),
    (changed(weight_c=torch.zeros(2)), r"weight\.c"),
    (changed(average_a=None), r"1 tensors too many, average\.a"),
])  # fmt: skip
def test_a_state_of_another_configuration_is_refused(tmp_path, other, says):
    states.save(tmp_path, 400, tensors(), World(), 2)
    with pytest.raises(states.StateError, match=rf"step_00000400: expected the state of this configuration, .*{says}"):
        states.load(tmp_path, other, World())


def test_a_damaged_state_is_refused(tmp_path):
    states.save(tmp_path, 400, tensors(), World(), 2)
    (file,) = (tmp_path / "step_00000400").iterdir()
    for damage in (file.read_bytes()[:100], b"\x80\x04K\x01.", b""):  # cut; a pickle; nothing
        file.write_bytes(damage)
        with pytest.raises(states.StateError, match="step_00000400: expected the state of this configuration"):
            read(tmp_path)


def dies(folder: Path, how: str) -> None:
    """Write one state, and die in the middle of a second one."""
    states.save(folder, 2, {"weight.a": torch.arange(6.0)}, World(), 1)
    save = states.dcp.save

    def killed(tensors, *, storage_writer, no_dist):
        if how == "whole":
            save(tensors, storage_writer=storage_writer, no_dist=no_dist)
        else:
            (Path(storage_writer.path) / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    states.dcp.save = killed
    states.save(folder, 4, {"weight.a": torch.zeros(6)}, World(), 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", ["half", "whole"])
def test_killed_in_the_middle_of_writing(tmp_path, how):
    """kill -9: the state before is still the newest, and the next one is written over what was left."""
    child = multiprocessing.get_context("fork").Process(target=dies, args=(tmp_path, how))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000004.partial"]
    got = {"weight.a": torch.zeros(6)}
    assert states.load(tmp_path, got, World()) == 2 and torch.equal(got["weight.a"], torch.arange(6.0))
    states.save(tmp_path, 4, {"weight.a": torch.ones(6)}, World(), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000004"]
    assert states.load(tmp_path, got, World()) == 4 and torch.equal(got["weight.a"], torch.ones(6))


def test_a_state_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    states.save(tmp_path, 2, tensors(2), World(), 1)

    def full(*_, **__):
        raise CheckpointException("writing", {0: (OSError("No space left on device"), [])})

    monkeypatch.setattr(states.dcp, "save", full)
    with pytest.raises(states.StateError, match=r"step_00000004\.partial: .*No space left on device"):
        states.save(tmp_path, 4, tensors(4), World(), 1)
    assert read(tmp_path)[0] == 2
