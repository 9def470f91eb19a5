"""Renders one video for the node, in the environment of rest_fast, whose Python runs this file.

The job is a line of JSON on stdin, events are lines of JSON on stdout. When stdin ends, because the run was cancelled
or because ComfyUI is gone, rendering stops behind the block that is being made and the file is closed, so that it
plays.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

PREVIEW = 512  # pixels of a preview's longer side
STOPPED = 3  # exit code
stop = threading.Event()
writing = threading.Event()  # there is video in the file


class Stopped(Exception):
    """Nobody waits for the rest."""


def read_job() -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            sys.exit(STOPPED)
        line += piece
    job: dict[str, Any] = json.loads(line)
    return job


def watch() -> None:
    """Wait for the end of stdin."""
    while os.read(0, 1):  # not sys.stdin, whose lock a thread must not hold when Python ends
        pass
    stop.set()
    if not writing.is_set():
        os._exit(STOPPED)  # loading cannot be interrupted, and there is nothing to lose


def jpeg(picture: Any) -> str:
    """A picture uint8 [H, W, 3], shrunk to :data:`PREVIEW`, as JPEG in base64."""
    from PIL import Image

    image, data = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((PREVIEW, PREVIEW))
    image.save(data, "JPEG", quality=80)
    return base64.b64encode(data.getvalue()).decode()


def join(fragments: str | Path, out: str | Path) -> None:
    """Copy a file of fragments into one with a single index, packet by packet, without decoding.

    ComfyUI takes the number of frames from that index.
    """
    import av

    from rest_fast.media import provenance

    with (
        av.open(str(fragments)) as made,
        av.open(str(out), "w", format="mp4", container_options={"movflags": "faststart"}) as film,
    ):
        film.metadata["comment"] = made.metadata.get("comment", "")
        streams = {stream.index: film.add_stream_from_template(stream) for stream in made.streams}
        for packet in made.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                film.mux(packet)
    kind = provenance.read(fragments)
    if kind is not None:
        provenance.append(out, kind)


def render(job: dict[str, Any], tell: Any) -> None:
    """Make the video of a job; ``tell(**event)`` takes what happens.

    ``job``: ``model``, ``device``, ``photo`` (.npy, uint8 [H, W, 3]), ``crop``, ``sound`` (.npy, float32
    [n, channels]), ``rate`` in Hz, ``seed``, ``paste_back``, ``label``, ``fragments`` (where the video grows), ``out``.
    Raises: :class:`Stopped`, behind a block; what rest_fast raises.
    """
    import numpy as np

    import rest_fast
    from rest_fast.media import Audio

    model = rest_fast.load(job["model"], device=job["device"])
    avatar = model.prepare(np.load(job["photo"]), crop=job["crop"])
    latest: list[Any] = []

    def see(video: Any) -> Any:
        latest[:] = [video[-1]]
        return video

    def progress(done: int, total: int) -> None:
        writing.set()
        tell(done=done, total=total, preview=jpeg(latest[0]))
        if stop.is_set() and done < total:
            raise Stopped

    options = {"seed": job["seed"], "paste_back": job["paste_back"], "label": job["label"] or None}
    speech = Audio(np.load(job["sound"]), job["rate"])
    rest_fast.render(model, avatar, speech, job["fragments"], mark=see, progress=progress, **options)
    join(job["fragments"], job["out"])


def main() -> int:
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no event

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    with contextlib.suppress(OSError):  # Linux: if memory ends all the same, it is this process that goes
        Path("/proc/self/oom_score_adj").write_text("1000")
    warnings.showwarning = lambda message, *_, **__: tell(warning=str(message))
    job = read_job()
    threading.Thread(target=watch, daemon=True).start()
    from torch import OutOfMemoryError

    from rest_fast import RestFastError

    try:
        render(job, tell)
    except Stopped:
        return STOPPED
    except RestFastError as error:
        tell(error=str(error))
        return 2
    except OutOfMemoryError as error:
        tell(error=str(error).splitlines()[0], memory=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
