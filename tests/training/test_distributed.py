"""Many processes: two of them, replicated or sharded, train what one trains, and go on from each other's states.

The processes are started as torchrun starts them, once for the whole file: they run all cases one after the other and
leave tensors in files. Equality is to the bit where nothing else is said. One process takes the rows of two as two
accumulated parts: both divide by 2, which is exact, and add two gradients, in which the order does not matter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from rest_fast import cli
from rest_fast.training import chain, states
from rest_fast.training.asd import ASD
from rest_fast.training.config import TrainingConfig, training_preset
from rest_fast.training.distributed import World, full_tensor, join_world
from rest_fast.training.flow import FlowData
from rest_fast.training.loop import Trainer
from rest_fast.training.reports import read_log
from rest_fast.training.shards import Shards
from rest_fast.training.student import Student
from tests.kit.clips import write_clips
from tests.kit.command import wait_for
from tests.kit.toys import toy

ROOT = Path(__file__).parents[2]
STEPS, HALF, BATCH = 4, 2, 4
CASES = [(stage, parallel) for parallel in ("replicate", "shard") for stage in ("student", "asd")]
each_case = pytest.mark.parametrize("stage,parallel", CASES)


# -- what every process does


def configuration(parallel: str, parts: int) -> TrainingConfig:
    config = training_preset("toy").replace(precision="fp32", parallel=parallel, checkpointing=True, report_every=1)
    for stage in ("student", "asd"):
        sizes = {
            "steps": STEPS,
            "batch": BATCH,
            "accumulate": parts,
            "warmup": 0,
            "rate": 1e-2,
            "weight_decay": 0.1,
            "clip": 1e3,
        }
        config = config.replace(**{f"{stage}__{name}": value for name, value in sizes.items()})
    # half of the steps see context of their own making: further passes through the same blocks
    return config.replace(student__self_rollout=0.5, asd__cache_gradient=False)


def trainer(stage: str, parallel: str, data: Path, folder: Path, world: World, parts: int) -> tuple[Trainer, FlowData]:
    config = configuration(parallel, parts)
    model = toy(0)
    module = ASD(model, toy(1), config) if stage == "asd" else Student(model, config)
    model.dit.requires_grad_(True), model.speech.requires_grad_(True)
    clips = Shards(data, "train")
    return Trainer(module, getattr(config, stage), config, folder, world), FlowData(config, clips, clips, BATCH)


def train(stage: str, parallel: str, data: Path, folder: Path, world: World, parts: int) -> dict[str, torch.Tensor]:
    """Weights, averages and moments at the end, whole; from a state where the folder has one."""
    made, batches = trainer(stage, parallel, data, folder, world, parts)
    made.resume()
    made.run(batches)
    return {name: full_tensor(tensor).clone() for name, tensor in made.tensors.items()}


@contextlib.contextmanager
def touched(folder: Path):
    """Files below ``folder`` that this process opens to write, makes, renames or removes meanwhile."""
    found, on = set(), [True]

    def hook(event: str, arguments: tuple) -> None:
        if not on[0] or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            return
        writes = event != "open" or (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
        if writes and str(arguments[0]).startswith(str(folder)):
            found.add(str(arguments[0]).removeprefix(f"{folder}/"))

    sys.addaudithook(hook)  # there is no way to take it off again
    yield found
    on[0] = False


def work_all(folder: Path, world: World) -> None:
    """Every case from the start and from one process's state; then the chain, with samples and a checkpoint."""
    data = folder / "data"
    for stage, parallel in CASES:
        for name in ("fresh", "resumed"):
            place = folder / f"{stage}-{parallel}-{name}"
            with touched(place) as found:
                result = train(stage, parallel, data, place, world, 1)
            save_file(result, folder / f"{place.name}.{world.rank}.safetensors")
            (folder / f"{place.name}.{world.rank}.touched").write_text("\n".join(sorted(found)))
    chain.SAMPLE_SECONDS = 1
    for parallel in ("replicate", "shard"):
        place = folder / f"chain-{parallel}"
        with touched(place) as found:
            run_chain(folder, parallel, place, 1)
        (folder / f"{place.name}.{world.rank}.touched").write_text("\n".join(sorted(found)))


def run_chain(folder: Path, parallel: str, out: Path, parts: int, samples: int = STEPS) -> Path:
    config = configuration(parallel, parts).replace(sample_every=samples)
    return chain.run("student", config, folder / "data", out, init=folder / "toy")


def work_kill(folder: Path, world: World) -> None:
    """Train until the second state, of which the second process writes nothing."""
    write = HuggingFaceStorageWriter.write_data

    def stopping(self, plan, planner):
        step_4 = "step_00000004" in str(self.path)
        if step_4 and not world.first:
            (folder / "stopped.1").touch()
            time.sleep(600)
        written = write(self, plan, planner)
        if step_4:
            written.wait()
            (folder / "stopped.0").touch()
        return written

    HuggingFaceStorageWriter.write_data = stopping
    train("student", "shard", folder / "data", folder / "killed", world, 1)


def work_die(folder: Path, world: World) -> None:
    """The second process is gone before the third step."""
    made, batches = trainer("student", "replicate", folder / "data", folder / "died", world, 1)

    def dying(step: int, rows: range):
        if step == 2 and not world.first:
            os.kill(os.getpid(), signal.SIGKILL)
        return batches(step, rows)

    made.run(dying)


def work_halt(folder: Path, world: World) -> None:
    """A command of the command line, stopped once the state of half of the steps is whole."""
    save = states.save

    def halting(place: Path, step: int, *rest: object) -> None:
        save(place, step, *rest)
        if step == HALF:
            raise KeyboardInterrupt

    states.save = halting
    sys.exit(cli.main(sys.argv[3:]))


# -- the processes


def start(what: str, folder: Path, size: int = 2) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    command = [sys.executable, __file__, what, str(folder)]
    return [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, its parts accumulated: the tensors of each stage at the end. In a folder with data and a model."""
    folder = tmp_path_factory.mktemp("alone")
    model = toy(0)
    model.save(folder / "toy", torch.float32)
    fields = ("features", "latents", "video", "samples")
    write_clips(folder / "data", model.config, 6, fields=fields, vae=model)
    results = {s: train(s, "replicate", folder / "data", folder / s, World(), 2) for s in ("student", "asd")}
    return folder, results


@pytest.fixture(scope="module")
def pair(alone):
    """Two processes through all cases."""
    folder, _ = alone
    for stage, parallel in CASES:
        half = f"state/step_{HALF:08d}"
        shutil.copytree(folder / stage / half, folder / f"{stage}-{parallel}-resumed" / half)
    processes = start("all", folder)
    try:
        assert [p.wait(900) for p in processes] == [0, 0]
    finally:
        for p in processes:
            p.kill()
    return folder


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    different = [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)]
    assert not different, f"{len(different)} of {len(wanted)}: {different[:3]}"


# -- tests


@each_case
def test_two_processes_train_what_one_does(alone, pair, stage, parallel):
    """Weights, averages and moments, the same in both; ASD's teacher is in the module and stays out of all of it.

    Sharded too: nothing is clipped here, so the norm of the gradient, which shards add up in another order, is shown
    and multiplies nothing.
    """
    folder, results = alone
    wanted = results[stage]
    for rank in range(2):
        same(load_file(pair / f"{stage}-{parallel}-fresh.{rank}.safetensors"), wanted)
    begun = {f"weight.network.{n}": p for n, p in toy(0).named_parameters() if not n.startswith("vae.")}
    assert {n for n in wanted if n.startswith("weight.")} == set(begun)
    assert not [n for n, p in begun.items() if torch.equal(p, wanted[n])], "expected every weight to be trained"
    for line, reference in zip(read_log(pair / f"{stage}-{parallel}-fresh"), read_log(folder / stage), strict=True):
        kept = set(reference) - {"step_seconds"}
        # six digits are written, and a sum in another order may round the last one otherwise: 1e-5 of 1.00000
        assert {k: line[k] for k in kept} == {k: pytest.approx(reference[k], rel=1.1e-5) for k in kept}


@each_case
def test_two_processes_go_on_from_the_state_of_one(alone, pair, stage, parallel):
    for rank in range(2):
        same(load_file(pair / f"{stage}-{parallel}-resumed.{rank}.safetensors"), alone[1][stage])
    assert [line["step"] for line in read_log(pair / f"{stage}-{parallel}-resumed")] == [3, 4]


@each_case
def test_one_process_goes_on_from_the_state_of_two(alone, pair, tmp_path, stage, parallel):
    half = f"state/step_{HALF:08d}"
    shutil.copytree(pair / f"{stage}-{parallel}-fresh" / half, tmp_path / half)
    same(train(stage, parallel, pair / "data", tmp_path, World(), 2), alone[1][stage])
    assert [line["step"] for line in read_log(tmp_path)] == [3, 4]


@each_case
def test_the_second_process_writes_its_part_of_the_states_and_nothing_else(pair, stage, parallel):
    names = [(pair / f"{stage}-{parallel}-fresh.{rank}.touched").read_text().split() for rank in range(2)]
    assert {"log.jsonl", "tensorboard"} <= set(names[0])
    assert names[1] and all(name.startswith("state/step_0000000") for name in names[1])
    assert not set(names[0]) & {name for name in names[1] if name.endswith(".safetensors")}
    files = list((pair / f"{stage}-{parallel}-fresh" / "state").glob("step_*/*.safetensors"))
    assert len(files) == 2 * 2
    tensors = [tensor for file in files for tensor in load_file(file).values()]
    numbers = 1 + 4 * sum(p.numel() for part in (toy().dit, toy().speech) for p in part.parameters())
    assert sum(t.numel() for t in tensors) == 2 * numbers  # of two states, nothing twice


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_the_checkpoint_and_the_sample_of_two_processes(pair, tmp_path, parallel):
    """The whole chain: data, stage, sample, checkpoint. A sharded model is gathered, and by one process written."""
    wanted = run_chain(pair, "replicate", tmp_path / "one", 2, samples=0)
    same(load_file(pair / f"chain-{parallel}/student/model.safetensors"), load_file(wanted / "model.safetensors"))
    assert not (pair / f"chain-{parallel}/student/state").exists()
    names = [(pair / f"chain-{parallel}.{rank}.touched").read_text().split() for rank in range(2)]
    assert {"student/samples", "student/config.json.partial", "student/model.safetensors.partial"} <= set(names[0])
    assert names[1] and all(name.startswith("student/state/step_0000000") for name in names[1])
    (sample,) = (pair / f"chain-{parallel}/student/samples").iterdir()
    with av.open(str(sample)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 32  # one second, in whole blocks of 8


@pytest.mark.slow
def test_killed_while_a_state_is_written(alone, tmp_path):
    """The state before is whole, and a training that goes on from it ends like one that was never killed."""
    folder, results = alone
    shutil.copytree(folder / "data", tmp_path / "data")
    processes = start("kill", tmp_path)
    try:
        wait_for(lambda: all((tmp_path / f"stopped.{rank}").exists() for rank in range(2)), 600)
    finally:
        for p in processes:
            p.kill()
    place = tmp_path / "killed"
    half_written = list((place / "state/step_00000004.partial").iterdir())
    assert len(half_written) == 1 and states.steps(place / "state") == [2]
    same(train("student", "shard", tmp_path / "data", place, World(), 2), results["student"])
    assert sorted(p.name for p in (place / "state").iterdir()) == ["step_00000002", "step_00000004"]
    assert [line["step"] for line in read_log(place)] == [1, 2, 3, 4]


def test_the_state_of_another_model_is_refused_by_all(pair, tmp_path):
    """A stage of another width, in one process; what DCP raises is the same in each of many."""
    shutil.copytree(pair / "student-shard-fresh" / "state", tmp_path / "state")
    made, _ = trainer("student", "shard", pair / "data", tmp_path, World(), 2)
    name = next(name for name in made.tensors if name.startswith("weight."))
    made.tensors[name] = torch.zeros(3, 3)
    with pytest.raises(states.StateError, match=r"step_00000004: expected the state of this configuration"):
        made.resume()


@pytest.mark.parametrize("batch,parts,size,rows", [
    (8, 1, 2, [[range(0, 4)], [range(4, 8)]]),
    (8, 2, 2, [[range(0, 2), range(4, 6)], [range(2, 4), range(6, 8)]]),
    (4, 4, 1, [[range(0, 1), range(1, 2), range(2, 3), range(3, 4)]]),
])  # fmt: skip
def test_rows_of_a_step(batch, parts, size, rows):
    assert [World(rank, size).rows(batch, parts) for rank in range(size)] == rows


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="batch: expected a multiple of 2 accumulated parts x 4 processes, got 12"):
        World(0, 4).rows(12, 2)


# -- torchrun itself


def torchrun(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = tuple(str(word) for word in words)
    return subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other(alone):
    """Under torchrun, which watches over them; the log says what died."""
    done = torchrun(__file__, "die", alone[0])
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert [line["step"] for line in read_log(alone[0] / "died")] == [1, 2]


@pytest.mark.slow
def test_torchrun_then_one_process(alone, tmp_path):
    """The command line: two processes for half of the steps and one for the rest, against one for all."""
    folder, _ = alone
    config = configuration("shard", 1).replace(save_every=HALF)
    (tmp_path / "config.json").write_text(config.to_json())
    words = ["train", "student", "--config", tmp_path / "config.json", "--data", folder / "data"]
    words += ["--init", folder / "toy", "--device", "cpu", "--quiet", "--out"]
    done = torchrun("-m", "rest_fast.cli", *words, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    wanted = run_chain(folder, "replicate", tmp_path / "one", 2, samples=0)
    whole = load_file(wanted / "model.safetensors")
    same(load_file(tmp_path / "out/student/model.safetensors"), whole)

    done = torchrun(__file__, "halt", folder, *words, tmp_path / "half")
    assert done.returncode != 0 and not (tmp_path / "half/student/model.safetensors").exists()
    assert states.steps(tmp_path / "half/student/state") == [HALF]
    assert cli.main([*map(str, words), str(tmp_path / "half"), "--resume"]) == 0
    assert [line["step"] for line in read_log(tmp_path / "half/student")] == [1, 2, 3, 4]
    # one part of four rows rather than two of two: the order of a sum
    found, wanted = load_file(tmp_path / "half/student/model.safetensors"), whole
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3, msg=name)


if __name__ == "__main__":
    with join_world("cpu") as here:
        {"all": work_all, "kill": work_kill, "die": work_die, "halt": work_halt}[sys.argv[1]](Path(sys.argv[2]), here)
