"""Shared by everything that reads with FFmpeg: how a file is opened, and which of its streams is taken."""

from __future__ import annotations

from typing import IO, Any

import av

ATTACHED = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover of a song
DEFAULT = 0x1  # AV_DISPOSITION_DEFAULT

# Playlists and concat scripts name other files and addresses; none of them may be opened.
_SAFE: dict[str, Any] = {"options": {"protocol_whitelist": "pipe"}}
if int(av.__version__.split(".")[0]) < 19:  # later ones take any bytes as metadata and have no such argument
    _SAFE["metadata_errors"] = "ignore"


def open_container(file: IO[bytes]) -> Any:
    """A PyAV container for reading, for a ``with``; errors are those of PyAV."""
    return av.open(file, "r", **_SAFE)


def choose(container: Any, kind: str) -> Any | None:
    """The stream of a ``kind`` ("audio", "video") that players take: the first flagged as default, else the first."""
    streams = [s for s in container.streams if s.type == kind and not int(getattr(s, "disposition", 0)) & ATTACHED]
    flagged = [s for s in streams if int(getattr(s, "disposition", 0)) & DEFAULT]
    return next(iter(flagged + streams), None)
