"""The reports of a running stage: a progress bar, ``log.jsonl``, and TensorBoard if it is installed."""

from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from rest_fast.training.distributed import World

log = logging.getLogger("rest_fast.training")
LOG = "log.jsonl"


class Reports:
    """Written by the first process only. Lines of steps that a resumed run repeats are removed first."""

    def __init__(self, folder: Path, step: int, steps: int, world: World):
        self.folder, self.first, self.steps = folder, world.first, steps
        self.start, self.begun = time.monotonic(), step
        if not self.first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(folder) if line["step"] <= step]
        partial = folder / f"{LOG}.partial"
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(folder / LOG)
        self.board = _board(folder / "tensorboard", step + 1)
        self.bar = tqdm(initial=step, total=steps, desc=folder.name, unit="step", disable=None, dynamic_ncols=True)

    def tick(self) -> None:
        if self.first:
            self.bar.update()

    def write(self, step: int, means: dict[str, float], rate: float) -> None:
        if not self.first:
            return
        seconds = (time.monotonic() - self.start) / max(step - self.begun, 1)
        values = {**means, "rate": rate, "step_seconds": seconds}
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in values.items()}}) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{self.folder.name}/{name}", value, step)
        self.bar.set_postfix(loss=f"{means['loss']:.4g}")
        if self.bar.disable:  # without a terminal: a line instead of the bar
            shown = f"loss {means['loss']:.4g}, {seconds:.2f} s a step"
            log.info("%s: step %d of %d, %s", self.folder.name, step, self.steps, shown)

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *_: object) -> None:
        if self.first:
            self.bar.close()
            if self.board is not None:
                self.board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a stage's log, without a last one that was cut off."""
    path = folder / LOG
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_sample(folder: Path, step: int, video: NDArray[np.uint8], samples: NDArray[np.float32], rate: int) -> None:
    """A generated video [n, H, W, 3] with its sound, as mp4 in ``samples/`` and as a moving picture in TensorBoard."""
    from rest_fast import media

    place = folder / "samples"
    place.mkdir(parents=True, exist_ok=True)
    height, width = video.shape[1:3]
    with media.VideoWriter(place / f"step_{step:08d}.mp4", width, height, 25, rate) as writer:
        writer.write(video, samples)
    # In a folder of its own: TensorBoard reads only the newest file of a folder and would miss later scalars.
    board = _board(folder / "tensorboard" / "samples")
    if board is None:
        return
    from tensorboard.compat.proto.summary_pb2 import Summary

    frames = [Image.fromarray(frame) for frame in video[::2]]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=80, loop=0)
    picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
    summary = Summary(value=[Summary.Value(tag=f"{folder.name}/sample", image=picture)])
    board._get_file_writer().add_summary(summary, step)
    board.close()


def _board(folder: Path, first: int | None = None) -> Any:
    """A TensorBoard writer, or None if the package is not installed. What was written from step ``first`` on is hidden,
    because those steps are repeated."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first)
