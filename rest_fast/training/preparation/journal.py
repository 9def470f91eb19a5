"""A record of what is done: one line of JSON for each finished source, so that a killed preparation can resume."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rest_fast.errors import ArgumentError
from rest_fast.training.shards import MANIFEST

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

JOURNAL = "journal.jsonl"


class Journal:
    """``done`` maps names of finished sources to their entries; made by :func:`open_journal`."""

    def __init__(self, file: IO[str], done: dict[str, dict[str, Any]]):
        self.done = done
        self._file = file

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry; it is on the disk when this returns."""
        self.done[entry["source"]] = _write(self._file, entry)


@contextlib.contextmanager
def open_journal(folder: Path, arguments: dict[str, Any]) -> Iterator[Journal]:
    """Begin a journal, or go on with one that was begun with the same arguments.

    A last line that a kill left incomplete is removed; sources whose shards are not as recorded are done again.
    Raises: ValueError for other arguments, for a folder that another run writes, and for a folder of something else.
    """
    arguments = json.loads(json.dumps(arguments))
    path = folder / JOURNAL
    if not path.exists() and folder.is_dir() and any(folder.iterdir()):
        raise ArgumentError(
            f"{folder}: expected an empty folder or one begun by prepare-data, found no {JOURNAL} in it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8", newline="\n") as file:
        _lock(folder, file)
        file.seek(0)
        whole = file.read().rpartition("\n")[0]
        lines = _lines(path, whole)
        if lines:
            _compare(folder, lines[0]["arguments"], arguments)
        file.truncate(len(whole.encode()) + 1 if whole else 0)
        if not lines:
            (folder / MANIFEST).unlink(missing_ok=True)
            _write(file, {"arguments": arguments})
        yield Journal(file, {e["source"]: e for e in lines[1:] if _is_there(folder, e)})


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in text.splitlines()]
        if all("arguments" in line if i == 0 else "source" in line for i, line in enumerate(lines)):
            return lines
    except (ValueError, TypeError):
        pass
    raise ArgumentError(f"{path}: expected lines written by prepare-data, got others; remove the folder to begin anew")


def _write(file: IO[str], value: dict[str, Any]) -> dict[str, Any]:
    line = json.dumps(value)
    file.write(line + "\n")
    file.flush()
    os.fsync(file.fileno())
    written: dict[str, Any] = json.loads(line)  # what a later run will read: tuples are lists there
    return written


def _compare(folder: Path, begun: dict[str, Any], now: dict[str, Any]) -> None:
    different = [name for name in sorted({*begun, *now}) if begun.get(name) != now.get(name)]
    if different:
        pairs = "; ".join(f"{name} {_short(begun.get(name))}, got {_short(now.get(name))}" for name in different)
        raise ArgumentError(f"{folder}: begun with other arguments (choose another folder): expected {pairs}")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(value)} entries)"


def _is_there(folder: Path, entry: dict[str, Any]) -> bool:
    shards = [(folder / shard["file"], shard["bytes"]) for shard in entry["shards"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in shards)


def _lock(folder: Path, file: IO[str]) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ArgumentError(
            f"{folder}: expected a folder that no other run writes, got one that is being written"
        ) from None
    except OSError:  # a file system without locks
        pass
