"""Runs SoulX-FlashHead's published code on made weights and stores a sample of what it gives, for our tests.

    git clone https://github.com/Soul-AILab/SoulX-FlashHead upstream && git -C upstream checkout 12467ce
    python -m tools.flashhead_upstream upstream tests/models/flashhead/upstream_128.json
    python -m tools.flashhead_upstream upstream tests/models/flashhead/upstream_512.json --side 512 --chunks 1

It needs the published code's transformers 4.57, diffusers below 0.36 and einops, and neither a GPU nor a download: in
the place of xfuser, loguru, torchvision and pyloudnorm stand what it calls of them, its compile flags are off, it
computes in float32, and its random numbers are those of :mod:`rest_fast.noise` under the keys that our sessions use.
The published code stays outside of this repository.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import types
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rest_fast import noise
from tests.kit import flashhead_folder as made

COMMIT, STEPS = "12467ce", 4
SIDE, CHUNKS = 128, 2


def stand_ins() -> None:
    """What the published code imports and, on one CPU without a compiler, does not need.

    The libraries that it does need look for torchvision, so they are imported before.
    """
    from diffusers import ModelMixin  # noqa: F401
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # noqa: F401
    from diffusers.models.embeddings import PixArtAlphaCombinedTimestepSizeEmbeddings  # noqa: F401
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model  # noqa: F401

    def module(name: str, **values: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        for key, value in values.items():
            setattr(sys.modules[name], key, value)

    none = {name: None for name in ("get_sequence_parallel_rank", "get_sequence_parallel_world_size", "get_sp_group")}
    module("xfuser")
    module("xfuser.core")
    module("xfuser.core.distributed", init_distributed_environment=None, initialize_model_parallel=None, **none)
    module("xfuser.core.long_ctx_attention", xFuserLongContextAttention=None)
    module("loguru", logger=types.SimpleNamespace(info=print, error=print))
    module("pyloudnorm")
    crop = types.SimpleNamespace(center_crop=lambda tensor, size: tensor)  # of a picture that has this size
    module("torchvision.transforms", functional=crop)
    module("torchvision", transforms=sys.modules["torchvision.transforms"])
    module("flash_head.utils.facecrop", process_image=None)
    torch.cuda.synchronize = lambda *_: None


def latent_noise(first: int, count: int, purpose: int, side: int) -> torch.Tensor:
    """[128, count, h, w] under our keys: tokens of a latent frame, then channels."""
    cells = side // 32
    rows = [
        noise.normal(made.SEED * (purpose != noise.PHOTO), first + k, cells**2 * 128, purpose) for k in range(count)
    ]
    return torch.stack(rows).view(count, cells, cells, 128).permute(3, 0, 1, 2).contiguous()


class Numbers:
    """Draws what the published code draws, in its order: the photo's posterior, then for each chunk the initial noise,
    four fresh ones (the last counts nothing) and the posterior of the frames shown."""

    def __init__(self, side: int):
        self.side, self.chunk = side, 0
        self.order = self._order()

    def _order(self) -> Iterator[torch.Tensor]:
        yield latent_noise(0, 5, noise.PHOTO, self.side)
        while True:
            first = 3 * self.chunk
            yield latent_noise(first, 5, noise.LATENT, self.side)
            for step in range(STEPS):
                yield latent_noise(first, 5, noise.at_step(noise.RENOISE, step), self.side)
            yield latent_noise(first + 3, 2, noise.POSTERIOR, self.side)
            self.chunk += 1

    def __call__(self, *_: Any, **__: Any) -> torch.Tensor:
        return next(self.order)


def evaluation(model: Any) -> dict[str, Any]:
    given = made.evaluation_inputs()
    centre = torch.arange(4, 37)[:, None] + torch.arange(-2, 3)
    context = given["input.features"][:, centre.clamp(0, 36)]
    with torch.no_grad():
        velocity = model(
            x=given["input.z"], timestep=torch.tensor([624.0]), context=context, y=given["input.reference"]
        )
    return {"timestep": 624.0, "velocity": made.sampled(velocity)}


def chunks(pipeline: Any, inference: Any, side: int, count: int) -> list[dict[str, Any]]:
    """The loop of ``generate_video.py`` in its mode ``stream``."""
    seconds = inference.infer_params["cached_audio_duration"]
    queue, found = deque([0.0] * 16000 * seconds, maxlen=16000 * seconds), []
    for part in made.sound(count).reshape(count, -1):
        queue.extend(part.tolist())
        audio = inference.get_audio_embedding(pipeline, np.array(queue), seconds * 25 - 33, seconds * 25)
        video = pipeline.generate(audio)
        shown = {"audio": audio, "video": video, "motion": pipeline.latent_motion_frames}
        found.append({name: made.sampled(tensor) for name, tensor in shown.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("upstream", type=Path, help=f"a checkout of the published code at {COMMIT}")
    parser.add_argument("out", type=Path, help="JSON to write")
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--chunks", type=int, default=CHUNKS)
    args = parser.parse_args()
    head = subprocess.run(
        ["git", "-C", args.upstream, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert head.startswith(COMMIT), f"{args.upstream}: expected a checkout at {COMMIT}, got {head}"
    out = args.out.absolute()
    stand_ins()
    with tempfile.TemporaryDirectory() as folder:
        published, wav2vec = made.write(Path(folder), made.FULL, made.SEED)
        from PIL import Image

        face = Path(folder) / "face.png"
        Image.fromarray(made.picture(args.side)).save(face)
        os.chdir(args.upstream)  # it reads a file by a relative path
        sys.path.insert(0, str(Path.cwd()))
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from flash_head import inference
        from flash_head.src.pipeline import flash_head_pipeline as code

        code.COMPILE_MODEL = code.COMPILE_VAE = False
        pipeline = code.FlashHeadPipeline(str(published), "lite", str(wav2vec), device="cpu", param_dtype=torch.float32)
        facts: dict[str, Any] = {"commit": head, "seed": made.SEED, "side": args.side, "torch": torch.__version__}
        facts["evaluation"] = evaluation(pipeline.model)
        numbers = Numbers(args.side)
        DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mean + self.std * numbers()[None]
        torch.randn = numbers
        inference.infer_params |= {
            "motion_frames_num": 9,
            "sample_steps": STEPS,
            "height": args.side,
            "width": args.side,
        }
        inference.get_base_data(pipeline, str(face), made.SEED, False)
        facts["reference"] = made.sampled(pipeline.ref_img_latent)
        facts["chunks"] = chunks(pipeline, inference, args.side, args.chunks)
    out.write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
