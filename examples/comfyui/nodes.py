"""The node: a picture and a sound become a VIDEO, which is on disk from its first second on.

The model runs in a process of its own (``process.py``), so nothing of rest_fast is imported here.
"""

from __future__ import annotations

import io as streams
import logging
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

import av
import comfy.model_management as management
import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyAPISync, ComfyExtension, InputImpl, io
from PIL import Image

from . import process

LOG = logging.getLogger(__name__)


def find_models() -> dict[str, str]:
    """The shipped model, and folders of weights in ComfyUI's ``models/rest_fast``."""
    folder = Path(folder_paths.models_dir) / "rest_fast"
    return {"demo": "demo"} | {path.parent.name: str(path.parent) for path in sorted(folder.glob("*/config.json"))}


def as_picture(image: Any) -> np.ndarray:
    """IMAGE float [1, H, W, 3 or 4] in 0..1 as uint8 [H, W, 3]. Raises: ValueError."""
    if getattr(image, "ndim", 0) != 4 or image.shape[0] != 1 or image.shape[3] not in (3, 4):
        raise ValueError(f"photo: expected one IMAGE [1, H, W, 3], got {list(getattr(image, 'shape', []))}")
    return np.rint(image[0, :, :, :3].float().clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)


def as_sound(audio: Any) -> tuple[np.ndarray, int]:
    """AUDIO with float [1, channels, n] as float32 [n, channels] and its rate in Hz. Raises: ValueError."""
    wave = audio.get("waveform") if isinstance(audio, dict) else None
    shape = list(getattr(wave, "shape", []))
    if wave is None or len(shape) != 3 or shape[0] != 1 or not 1 <= shape[1] <= 8 or not shape[2]:
        raise ValueError(f"speech: expected one AUDIO [1, 1..8 channels, samples], got {shape}")
    return wave[0].T.float().cpu().contiguous().numpy(), int(audio["sample_rate"])


class RestFastTalkingHead(io.ComfyNode):
    """One photo and speech -> VIDEO, 25 frames per second."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RestFastTalkingHead",
            display_name="Talking head (rest_fast)",
            category="video/rest_fast",
            description="A face from one photo speaks a recording. The video is written while it is made.",
            inputs=[
                io.Image.Input("photo", tooltip="One picture of a person who agreed to it."),
                io.Audio.Input("speech"),
                io.Combo.Input("model", options=list(find_models()), tooltip="Folders of models/rest_fast."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
                io.Combo.Input("crop", options=["face", "center"], tooltip="The square that speaks."),
                io.Boolean.Input("paste_back", default=False, tooltip="Show the whole photo, with the face in it."),
                io.String.Input("label", default="", tooltip="A line of text in the lower left corner."),
                io.Combo.Input("device", options=["auto", "cpu", "cuda"]),
            ],
            outputs=[io.Video.Output()],
        )

    @classmethod
    def execute(
        cls, photo: Any, speech: Any, model: str, seed: int, crop: str, paste_back: bool, label: str, device: str
    ) -> io.NodeOutput:
        picture, (sound, rate) = as_picture(photo), as_sound(speech)
        temporary = Path(folder_paths.get_temp_directory())
        temporary.mkdir(parents=True, exist_ok=True)
        out = temporary / f"rest_fast_{secrets.token_hex(6)}.mp4"
        with tempfile.TemporaryDirectory(prefix="rest_fast_", dir=temporary) as name:
            folder = Path(name)
            np.save(folder / "photo.npy", picture)
            np.save(folder / "sound.npy", sound)
            job = {
                "model": find_models()[model],
                "device": device,
                "photo": str(folder / "photo.npy"),
                "crop": None if crop == "face" else crop,
                "sound": str(folder / "sound.npy"),
                "rate": rate,
                "seed": seed,
                "paste_back": paste_back,
                "label": label,
                "fragments": str(folder / "talking.mp4"),
                "out": str(out),
            }
            if device != "cpu" and management.get_torch_device().type == "cuda":
                management.unload_all_models()  # the worker needs the memory, and ComfyUI loads them again
                management.soft_empty_cache()
            try:
                process.run(job, folder / "log", management.processing_interrupted, free_memory, show, LOG.warning)
            except (process.Cancelled, process.WorkerError) as error:
                out.unlink(missing_ok=True)
                raise as_comfy(error, keep(folder / "talking.mp4", out.stem)) from None
        return io.NodeOutput(InputImpl.VideoFromFile(str(out)))


def free_memory() -> int:
    """Bytes of the machine's memory that programs can still have."""
    return int(management.get_free_memory(torch.device("cpu")))


def show(done: int, total: int, preview: bytes) -> None:
    """Progress and the latest picture, on the node."""
    picture = Image.open(streams.BytesIO(preview))
    ComfyAPISync().execution.set_progress(value=done, max_value=total, preview_image=picture)


def keep(fragments: Path, name: str) -> Path | None:
    """Move the video so far to ComfyUI's output folder. Returns: where it is; None if none of it plays."""
    try:
        with av.open(str(fragments)) as made:
            if not any(packet.size for packet in made.demux(video=0)):
                return None
    except (OSError, ValueError, av.FFmpegError):
        return None
    folder = Path(folder_paths.get_output_directory()) / "rest_fast"
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(fragments, folder / f"{name}.partial.mp4"))


def as_comfy(error: Exception, kept: Path | None) -> Exception:
    """The error as ComfyUI knows it: an interrupt, want of memory (it then unloads models), or one line."""
    where = f"; the video so far is {kept}" if kept else ""
    if isinstance(error, process.Cancelled):
        LOG.warning("rest_fast: cancelled%s", where)
        interrupt: Exception = management.InterruptProcessingException()
        return interrupt
    kind = management.OOM_EXCEPTION if getattr(error, "memory", False) else RuntimeError
    made: Exception = kind(f"{error}{where}")
    return made


class RestFastExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [RestFastTalkingHead]


async def comfy_entrypoint() -> RestFastExtension:
    return RestFastExtension()
