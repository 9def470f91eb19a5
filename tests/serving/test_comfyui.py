"""The node for ComfyUI (``examples/comfyui``): on stand-ins of its API, and on ComfyUI itself where there is one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from rest_fast import media
from rest_fast.media import provenance
from tests.kit.comfy_stand_in import NODE, Comfy, InterruptProcessingException, OutOfMemory
from tests.kit.command import write_inputs
from tests.kit.toys import photo, sound

ROOT = Path(__file__).parents[2]
COMFYUI = Path(os.environ.get("REST_FAST_COMFYUI", ROOT / ".comfyui"))
# A worker for the ends that a real one would take seconds to come to: it says what it is told to, line by line.
FAKE = """#!{python}
import json, os, signal, sys, time
job = json.loads(sys.stdin.readline())
print(json.dumps({{"done": 8, "total": 80, "preview": ""}}), flush=True)
if {fragments!r}:
    open(job["fragments"], "wb").write(open({fragments!r}, "rb").read())
{end}
"""
WAITS = "print(os.getpid(), file=open(__file__ + '.pid', 'w'))\nsys.stdin.read(); sys.exit(3)"


def load(name):
    """A module of the node's folder by itself."""
    spec = importlib.util.spec_from_file_location(f"comfyui_{name}", NODE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("in"))


@pytest.fixture
def comfy(tmp_path):
    return Comfy(tmp_path)


@pytest.fixture
def nodes(comfy, monkeypatch, inputs):
    folder = comfy.base / "models" / "rest_fast"
    folder.mkdir(parents=True)
    (folder / "toy").symlink_to(inputs / "toy")
    monkeypatch.setenv("REST_FAST_PYTHON", sys.executable)
    return comfy.load(monkeypatch)


@pytest.fixture
def fake(nodes, monkeypatch, tmp_path):
    """Put a worker in place that shows a block, has made a file like ``fragments``, and then does ``end``."""

    def put(end, fragments=""):
        script = tmp_path / "fake.py"
        script.write_text(FAKE.format(python=sys.executable, fragments=fragments, end=end))
        monkeypatch.setattr(nodes.process, "WORKER", script)
        monkeypatch.setattr(nodes, "show", lambda done, total, preview: put.shown.append(done))
        return script

    put.shown = []
    return put


def run(nodes, seconds=0.64, **changes):
    speech = {"waveform": torch.from_numpy(sound(16000, seconds))[None, None], "sample_rate": 16000}
    values = {"photo": torch.from_numpy(photo()).float()[None] / 255, "speech": speech, "model": "toy", "seed": 0}
    values |= {"crop": "center", "paste_back": False, "label": "", "device": "cpu"} | changes
    return nodes.RestFastTalkingHead.execute(**values)


def left(comfy):
    """Files in ComfyUI's temporary folder."""
    return [path for path in (comfy.base / "temp").rglob("*") if path.is_file()]


def test_schema(nodes):
    (node,) = asyncio.run(asyncio.run(nodes.comfy_entrypoint()).get_node_list())
    schema = node.define_schema()
    kinds = {one.id: one.kind for one in schema.inputs}
    assert (
        kinds["photo"] == "IMAGE" and kinds["speech"] == "AUDIO" and [one.kind for one in schema.outputs] == ["VIDEO"]
    )
    assert schema.inputs[2].options["options"] == ["demo", "toy"]
    parameters = node.execute.__func__.__code__.co_varnames[1 : node.execute.__func__.__code__.co_argcount]
    assert list(parameters) == list(kinds)


def test_a_run(nodes, comfy):
    """The worker itself: the VIDEO is one plain file, progress and pictures came on the way, and nothing is left."""
    output = run(nodes, label="synthetic")
    path = output.args[0].file
    with av.open(path) as film:
        assert film.streams.video[0].frames == 16 and film.metadata["comment"] == provenance.NOTE
    assert provenance.read(path) == provenance.SYNTHETIC
    assert [shown[:2] for shown in comfy.shown] == [(8, 16), (16, 16)] and comfy.shown[0][2].size == (64, 64)
    assert left(comfy) == [Path(path)] and not (comfy.base / "output").exists()


def test_joining_decodes_nothing(inputs, tmp_path):
    with media.VideoWriter(tmp_path / "a.mp4", 32, 32, sample_rate=16000, source_type=provenance.SYNTHETIC) as writer:
        for k in range(4):
            writer.write(np.full((8, 32, 32, 3), 40 * k, np.uint8), sound(16000, 0.32, k))
    load("worker").join(tmp_path / "a.mp4", tmp_path / "b.mp4")
    packets = []
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / name)) as film:
            packets.append([(one.stream.index, bytes(one)) for one in film.demux() if one.size])
    assert sorted(packets[0]) == sorted(packets[1]) and len(packets[0]) > 32
    parts = [media.load_audio(tmp_path / name).samples for name in ("a.mp4", "b.mp4")]
    assert np.array_equal(*parts)  # the edit list, which hides the encoder's first samples, is there, too
    assert provenance.read(tmp_path / "b.mp4") == provenance.SYNTHETIC


def test_a_worker_that_is_told_to_stop(inputs, tmp_path):
    """It stops behind a block, and what is in the file plays."""
    worker, events = load("worker"), []
    np.save(tmp_path / "photo.npy", photo())
    np.save(tmp_path / "sound.npy", sound(16000, 60)[:, None])
    job = {"model": str(inputs / "toy"), "device": "cpu", "crop": "center", "rate": 16000, "seed": 0, "label": ""}
    job |= {name: str(tmp_path / f"{name}.npy") for name in ("photo", "sound")}
    job |= {"paste_back": False, "fragments": str(tmp_path / "a.mp4"), "out": str(tmp_path / "b.mp4")}

    def tell(**event):
        events.append(event)
        if event["done"] == 32:
            worker.stop.set()

    with pytest.raises(worker.Stopped):
        worker.render(job, tell)
    assert events[-1]["done"] == 32 and events[-1]["total"] == 1500 and worker.writing.is_set()
    assert len(media.read_video(tmp_path / "a.mp4")[0]) == 32 and not (tmp_path / "b.mp4").exists()


def test_its_watch(monkeypatch):
    """The end of stdin stops it; where nothing was written yet, at once."""
    worker, codes = load("worker"), []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(os, "read", lambda *_: b"")
    worker.watch()
    assert worker.stop.is_set() and codes == [worker.STOPPED]
    worker.writing.set()
    worker.watch()
    assert codes == [worker.STOPPED]


@pytest.fixture(scope="module")
def fragments(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "a.mp4"
    with media.VideoWriter(path, 32, 32) as writer:
        writer.write(np.zeros((8, 32, 32, 3), np.uint8))
    return path


def test_cancel(nodes, comfy, fake, fragments):
    """ComfyUI's interrupt; the video so far is in its output folder, and neither a process nor a file is left."""
    script = fake(WAITS, str(fragments))
    pid = Path(f"{script}.pid")

    def press():
        while not (pid.exists() and pid.read_text().endswith("\n")):
            pass
        comfy.cancelled = True

    threading.Thread(target=press).start()
    with pytest.raises(InterruptProcessingException):
        run(nodes)
    (kept,) = (comfy.base / "output" / "rest_fast").iterdir()
    assert re.fullmatch(r"rest_fast_\w+\.partial\.mp4", kept.name) and len(media.read_video(kept)[0]) == 8
    assert not left(comfy) and fake.shown == [8]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_worker_that_dies(nodes, comfy, fake, fragments):
    fake("os.kill(os.getpid(), signal.SIGKILL)", str(fragments))
    with pytest.raises(
        RuntimeError, match=r"killed by signal 9 \(often for want of memory\); the video so far is .*mp4$"
    ):
        run(nodes)
    assert not left(comfy) and len(list((comfy.base / "output" / "rest_fast").iterdir())) == 1


def test_a_worker_that_fails(nodes, comfy, fake):
    fake("raise OSError('disk full')")
    with pytest.raises(RuntimeError, match=r"^rest_fast: the worker failed with exit code 1: OSError: disk full$"):
        run(nodes)
    assert not left(comfy) and not (comfy.base / "output").exists()


def test_a_worker_that_does_not_stop(nodes, comfy, fake, monkeypatch):
    fake("while True: time.sleep(1)")
    monkeypatch.setattr(nodes.process, "GRACE", 0.1)
    monkeypatch.setattr(nodes, "show", lambda *_: setattr(comfy, "cancelled", True))
    with pytest.raises(InterruptProcessingException):
        run(nodes)
    assert not left(comfy)


def test_memory(nodes, comfy, fake, monkeypatch):
    """Not started without a reserve, stopped when it shrinks; the device's own want of memory is ComfyUI's."""
    fake(WAITS)
    monkeypatch.setattr(nodes, "show", lambda *_: setattr(comfy, "free", 1 << 29))
    with pytest.raises(RuntimeError, match=r"memory: expected 1\.0 GiB that stay free on this machine, got 0\.5 GiB"):
        run(nodes)
    fake("raise AssertionError('it was started')")
    with pytest.raises(RuntimeError, match=r"got 0\.5 GiB"):
        run(nodes)
    comfy.free = 1 << 40
    fake("print(json.dumps({'error': 'CUDA out of memory', 'memory': True})); sys.exit(1)")
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        run(nodes)
    assert not left(comfy)


def test_comfyui_makes_room_on_a_gpu(nodes, fake, monkeypatch):
    """Its models are unloaded before the worker starts, but not for a worker on the CPU."""
    calls = []
    monkeypatch.setattr(nodes.management, "get_torch_device", lambda: torch.device("cuda"))
    for name in ("unload_all_models", "soft_empty_cache"):
        monkeypatch.setattr(nodes.management, name, lambda name=name: calls.append(name), raising=False)
    fake("sys.exit(0)")
    run(nodes, device="cpu")
    assert not calls
    run(nodes, device="auto")
    assert calls == ["unload_all_models", "soft_empty_cache"]


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"photo": torch.zeros(2, 8, 8, 3)}, r"photo: expected one IMAGE \[1, H, W, 3\], got \[2, 8, 8, 3\]"),
        ({"photo": None}, r"photo: expected one IMAGE"),
        ({"speech": None}, r"speech: expected one AUDIO"),
        ({"speech": {"waveform": torch.zeros(1, 1, 0), "sample_rate": 16000}}, r"got \[1, 1, 0\]"),
        ({"speech": {"waveform": torch.zeros(2, 1, 9), "sample_rate": 16000}}, r"got \[2, 1, 9\]"),
    ],
)
def test_wrong_inputs(nodes, wrong, says):
    with pytest.raises(ValueError, match=says):
        run(nodes, **wrong)


def test_what_rest_fast_refuses(nodes, comfy, fake):
    """In its own words."""
    fake("print(json.dumps({'error': 'audio: expected finite samples'})); sys.exit(2)")
    with pytest.raises(RuntimeError, match=r"^rest_fast: audio: expected finite samples$"):
        run(nodes)


def test_no_environment(nodes, monkeypatch, tmp_path):
    monkeypatch.setenv("REST_FAST_PYTHON", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match="expected its Python in REST_FAST_PYTHON"):
        run(nodes)


@pytest.mark.slow
def test_on_comfyui_itself(inputs, tmp_path):
    """Its loader, its executor, its Save Video: a run, a cancelled one, wrong inputs, a worker that is not one."""
    python, checkout = COMFYUI / "bin" / "python", COMFYUI / "ComfyUI"
    if not (python.exists() and checkout.exists()):
        pytest.skip(f"no ComfyUI in {COMFYUI}: make comfyui")
    command = [str(python), str(ROOT / "tests" / "kit" / "comfyui_runs.py"), str(checkout)]
    environment = os.environ | {"REST_FAST_PYTHON": sys.executable}
    done = subprocess.run(
        [*command, str(tmp_path / "work"), str(inputs / "toy")], capture_output=True, text=True, env=environment
    )
    assert not done.returncode, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    output, temporary = tmp_path / "work" / "output", tmp_path / "work" / "temp"
    assert "execution_success" in told["made"]["told"] and told["made"]["pictures"] == 7
    saved = output / "saved_00001_.mp4"
    assert len(media.read_video(saved)[0]) == 50
    with av.open(str(saved)) as film:
        assert film.metadata["comment"] == provenance.NOTE
    assert "execution_interrupted" in told["cancelled"]["told"] and told["cancelled"]["error"] is None
    (kept,) = (output / "rest_fast").iterdir()
    assert 8 <= len(media.read_video(kept)[0]) < 2250
    assert "speech: expected one AUDIO" in told["empty"]["error"]["message"]
    assert told["unknown"]["refused"]["type"] == "prompt_outputs_failed_validation"
    assert "the worker failed with exit code 1" in told["dead"]["error"]["message"]
    assert len([path for path in temporary.rglob("*") if path.is_file()]) == 1  # the VIDEO of the first run
