"""Training data from videos or from drawn clips: ``rest-fast prepare-data``, in parallel and restartable."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from rest_fast import checkpoint
from rest_fast.config import ModelConfig
from rest_fast.errors import ArgumentError
from rest_fast.model import find_checkpoint
from rest_fast.training.preparation import detectors
from rest_fast.training.preparation.crops import least_side
from rest_fast.training.preparation.journal import open_journal
from rest_fast.training.preparation.rules import Report
from rest_fast.training.preparation.units import Unit, find_units, open_clips, read_boxes
from rest_fast.training.preparation.work import Job, ShardMaker, load_features, load_vae
from rest_fast.training.shards import FRAMES, Manifest, encoder_fingerprint, encoder_of
from rest_fast.units import FPS

Entry = dict[str, Any]


def prepare(
    source: Path,
    out: Path,
    *,
    config: ModelConfig,
    weights: str | Path | None = None,
    whisper: str | None = None,
    video: bool | None = None,
    boxes: Path | None = None,
    detector: str = "auto",
    workers: int = 0,
    validation: float = 0.05,
    min_face: int = 0,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Make shards for :class:`rest_fast.training.shards.Shards` of a source, and report what was dropped and why.

    A run that was stopped goes on when it is started again with the same arguments, and ends with the same bytes.

    Args:
        source: folder of videos, one video, a folder of ``rest-fast synth`` or a folder of such folders.
        out: folder to write to; new, empty, or begun by the same call.
        config: height, width, speech features and chunk are what matters here.
        weights: checkpoint whose VAE makes ``latents`` (folder, hub id or ``"demo"``); None: no latents.
        whisper: folder or hub id of a Whisper model of transformers, for a configuration with Whisper features.
        video: whether to keep the pictures; None: where there are no latents.
        boxes: JSON ``{"file name": [left, top, right, bottom]}``, squares in pixels of the upright picture.
        detector: ``opencv``, ``mediapipe`` or ``auto``; with boxes, ``auto`` means these alone.
        workers: processes (0: one for each core, or for each GPU).
        validation: share of the files, by their names, that becomes the split ``validation``.
        min_face: smallest side of a crop in pixels; 0: two thirds of the configuration's.
        device: where latents and Whisper's features are computed; auto: a GPU if there is one.
        progress: called with the number of finished sources and of all.
    Raises: ValueError before any work: bad arguments, nothing to prepare, a folder begun with other arguments.
    """
    _check(config, workers, validation, min_face)
    _check_apart(source, out)
    units, skipped = find_units(source, validation)
    drawn = units[0].count > 0
    if drawn and boxes is not None:
        raise ArgumentError(
            f"boxes: expected none for clips of rest-fast synth, which are taken as they are, got {boxes}"
        )
    given = read_boxes(boxes, units)
    unboxed = not drawn and any(unit.name not in (given or {}) for unit in units)
    job = Job(
        out=out,
        config=config,
        weights=None if weights is None else find_checkpoint(weights),
        whisper=whisper,
        video=weights is None if video is None else video,
        boxes=given,
        detector=detectors.choose(detector) if unboxed and (given is None or detector != "auto") else None,
        least=min_face or least_side(config.height),
        device=("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device,
    )
    if drawn:
        _check_drawn(units, config)
    vae = _check_models(job)
    with open_journal(out, _arguments(job, units, vae, validation)) as journal:
        todo = [unit for unit in units if unit.name not in journal.done]
        for finished, entry in enumerate(_work(job, todo, workers), len(units) - len(todo) + 1):
            journal.add(entry)
            if progress is not None:
                progress(finished, len(units))
        entries = [journal.done[unit.name] for unit in units]
        manifest = Manifest(config.height, config.width, dataclasses.asdict(config.speech), vae)
        manifest.shards = [shard for entry in entries for shard in entry["shards"]]
        report = Report.of(entries, skipped, FRAMES / FPS)
        report.save(out)
        manifest.save(out)  # last: a folder without it is an unfinished one
    return report


def _check(config: ModelConfig, workers: int, validation: float, min_face: int) -> None:
    if config.height != config.width:
        raise ArgumentError(f"config: expected a square model, got {config.height} x {config.width}")
    if workers < 0 or min_face < 0:
        raise ArgumentError(f"prepare-data: expected workers >= 0 and min_face >= 0, got {workers} and {min_face}")
    if not 0 <= validation <= 1:
        raise ArgumentError(f"validation: expected a share in 0..1, got {validation}")


def _check_apart(source: Path, out: Path) -> None:
    a, b = source.resolve(), out.resolve()
    if a == b or a in b.parents:
        raise ArgumentError(f"{out}: expected an output folder outside of {source}, got one inside")
    if b.exists() and not b.is_dir():
        raise ArgumentError(f"{out}: expected a folder to write to, got a file")


def _check_drawn(units: Sequence[Unit], config: ModelConfig) -> None:
    for folder in sorted({unit.path for unit in units}):
        about = open_clips(folder).about
        if (about["size"], about["frames"]) != (config.height, FRAMES):
            got = f"{about['frames']} of {about['size']} px"
            raise ArgumentError(f"{folder}: expected clips of {FRAMES} frames of {config.height} px, got {got}")


def _check_models(job: Job) -> str | None:
    """Load once what every process will load, to find errors early. Returns: the VAE's fingerprint."""
    load_features(job.config, job.whisper, job.device)
    if job.weights is None:
        return None
    config = checkpoint.read_vae_config(job.weights)
    vae = config.vae if isinstance(config, ModelConfig) else config
    want, got = {"vae": encoder_of(job.config.vae)}, {"vae": encoder_of(vae)}
    if isinstance(config, ModelConfig):
        for size, of in ((want, job.config), (got, config)):
            size |= {"height": of.height, "width": of.width}
    for name in want:
        if want[name] != got[name]:
            raise ArgumentError(f"weights {job.weights}: expected a VAE of {name} {want[name]}, got {got[name]}")
    return encoder_fingerprint(load_vae(job.weights, "cpu"))


def _arguments(job: Job, units: Sequence[Unit], vae: str | None, validation: float) -> dict[str, Any]:
    """Everything that the shards depend on."""
    speech = {f"speech.{name}": value for name, value in dataclasses.asdict(job.config.speech).items()}
    return speech | {
        "height": job.config.height,
        "width": job.config.width,
        "stream.chunk": job.config.stream.chunk,
        "vae": vae,
        "whisper": job.whisper,
        "video": job.video,
        "boxes": job.boxes,
        "detector": job.detector,
        "min_face": job.least,
        "validation": validation,
        "device": job.device,
        "files": [[unit.name, unit.bytes] for unit in units],
    }


def _work(job: Job, units: Sequence[Unit], workers: int) -> Iterator[Entry]:
    """Entries of all units as they are finished."""
    # one process for each GPU: it keeps the GPU busy, and a second copy of the models might not fit
    usual = max(1, torch.cuda.device_count()) if job.device == "cuda" else os.cpu_count() or 1
    workers = min(workers or usual, len(units))
    if workers > 1:
        yield from _work_parallel(job, units, workers)
    elif units:
        with _one_thread(), contextlib.closing(ShardMaker(job)) as maker:
            yield from map(maker.run, units)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, as in the processes, since the number of threads may change the last bits of latents."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _work_parallel(job: Job, units: Sequence[Unit], workers: int) -> Iterator[Entry]:
    """Entries from several processes. Each has a pipe of its own, so a killed one is noticed and its source named."""
    context = multiprocessing.get_context("spawn")
    waiting, busy = list(reversed(units)), dict[Any, tuple[Any, Unit]]()
    processes = []
    try:
        for number in range(workers):
            ours, theirs = context.Pipe()
            device = f"cuda:{number % torch.cuda.device_count()}" if job.device == "cuda" else job.device
            own = dataclasses.replace(job, device=device)
            process = context.Process(target=_serve, args=(own, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append((process, ours))
            unit = waiting.pop()
            ours.send(unit)
            busy[ours] = process, unit
        while busy:
            ready: list[Any] = wait(list(busy))
            for pipe in ready:
                process, unit = busy.pop(pipe)
                entry = _receive(pipe, process, unit)
                if waiting:
                    busy[pipe] = process, waiting.pop()
                    pipe.send(busy[pipe][1])
                yield entry
    finally:
        for process, pipe in processes:
            pipe.close()
            process.terminate()
            process.join()


def _receive(pipe: Any, process: Any, unit: Unit) -> Entry:
    try:
        entry: Entry | str = pipe.recv()
    except (EOFError, ConnectionError):
        process.join()
        code = f"exit code {process.exitcode}; killed for its memory?"
        raise RuntimeError(f"{unit.path}: the process that prepared it ended ({code}); the same call goes on") from None
    if isinstance(entry, str):
        raise RuntimeError(f"{unit.path}: {entry}")
    return entry


def _serve(job: Job, pipe: Connection) -> None:
    """What a process does: take units and send entries, or the text of an error, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["OPENCV_FOR_THREADS_NUM"] = "1"  # read when OpenCV is imported; the processes share the cores already
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            with contextlib.closing(ShardMaker(job)) as maker:
                while True:
                    pipe.send(maker.run(pipe.recv()))
        except (EOFError, ConnectionError):
            raise
        except Exception:
            pipe.send(traceback.format_exc())
