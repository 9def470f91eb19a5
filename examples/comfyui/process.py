"""Runs the worker: a process in an environment of its own, which holds no memory between two runs.

It ends when the run is cancelled, when memory gets short, and, since its stdin ends then, with ComfyUI itself.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

WORKER = Path(__file__).with_name("worker.py")
RESERVE = 1 << 30  # bytes of the machine's memory that the worker has to leave free
GRACE = 10.0  # seconds in which a worker that was told to stop closes its file
TICK = 0.1  # seconds between two looks at ComfyUI's cancel button and at the memory


class Cancelled(Exception):
    """The user has stopped the run."""


class WorkerError(RuntimeError):
    """The worker refused the job or has died; ``memory``: because the device has not enough."""

    def __init__(self, message: str, memory: bool = False):
        super().__init__(message)
        self.memory = memory


def find_python() -> str:
    """The Python of rest_fast's environment: ``REST_FAST_PYTHON``, else that of ``.venv`` in this folder.

    No workflow names it, since a workflow may come from anybody. Raises: WorkerError.
    """
    named = os.environ.get("REST_FAST_PYTHON")
    inside = WORKER.parent / ".venv"
    candidates = [Path(named)] if named else [inside / "bin" / "python", inside / "Scripts" / "python.exe"]
    for path in candidates:
        if path.is_file():
            return str(path)
    raise WorkerError(f"rest_fast: expected its Python in REST_FAST_PYTHON or as {candidates[0]}; see docs/comfyui.md")


def run(
    job: dict[str, Any],
    log: Path,
    cancelled: Callable[[], bool],
    free: Callable[[], int],
    shown: Callable[[int, int, bytes], None],
    warned: Callable[[str], None],
) -> None:
    """Have a worker do a job (:func:`worker.render`); no process is left when this returns or raises.

    Args:
        log: file for what the worker prints.
        cancelled: is asked ten times a second.
        free: bytes of the machine's memory that are free; below :data:`RESERVE` the worker is not started, or is
            stopped.
        shown: is called with frames done, frames in all, and a preview as JPEG.
        warned: is called with what the user should know.
    Raises: Cancelled; WorkerError.
    """
    _require_memory(free)
    command = [find_python(), "-I", str(WORKER)]  # without ComfyUI's PYTHONPATH
    with log.open("wb") as err:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err)
    assert process.stdin is not None and process.stdout is not None
    lines: queue.Queue[bytes] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it has died already, which its exit code tells
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        refusal = _follow(lines, cancelled, free, shown, warned)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)  # its stdin is open meanwhile, so that it ends by itself, with its own exit code
    finally:
        _end(process)
        reader.join()
        process.stdout.close()
    code = process.returncode
    if refusal:
        raise WorkerError("rest_fast: " + refusal["error"], refusal.get("memory", False))
    if code:
        raise WorkerError(f"rest_fast: {_how(code)}{_last_line(log)}")


def _require_memory(free: Callable[[], int]) -> None:
    left = free()
    if left < RESERVE:
        raise WorkerError(
            f"rest_fast: memory: expected {RESERVE / 2**30:.1f} GiB that stay free on this machine, got "
            f"{left / 2**30:.1f} GiB; the worker was stopped so that ComfyUI is not"
        )


def _read(stdout: IO[bytes], lines: queue.Queue[bytes]) -> None:
    for line in stdout:
        lines.put(line)
    lines.put(b"")


def _follow(
    lines: queue.Queue[bytes],
    cancelled: Callable[[], bool],
    free: Callable[[], int],
    shown: Callable[[int, int, bytes], None],
    warned: Callable[[str], None],
) -> dict[str, Any] | None:
    """Take events until the last one. Returns: the worker's refusal, if it refuses."""
    refusal = None
    while True:
        if cancelled():
            raise Cancelled
        _require_memory(free)
        try:
            line = lines.get(timeout=TICK)
        except queue.Empty:
            continue
        if not line:
            return refusal
        event = json.loads(line)
        if "done" in event:
            shown(event["done"], event["total"], base64.b64decode(event["preview"]))
        elif "warning" in event:
            warned(event["warning"])
        else:
            refusal = event


def _end(process: subprocess.Popen[bytes]) -> None:
    """Tell the worker to stop, give it time to close its file, and end it."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _how(code: int) -> str:
    if code < 0:
        return f"the worker was killed by signal {-code}" + (" (often for want of memory)" if code == -9 else "")
    return f"the worker failed with exit code {code}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ""
