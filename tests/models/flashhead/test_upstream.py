"""What the published code gave at full width, sampled and stored by ``tools/flashhead_upstream.py``: so do we."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rest_fast.checkpoint import Unfilled
from rest_fast.config import ConvVAEConfig
from rest_fast.config.flashhead import FlashHeadConfig, FlashHeadDiTConfig
from rest_fast.convert import convert_flashhead
from rest_fast.convert.flashhead import joined, names
from rest_fast.models.flashhead.audio import windows
from rest_fast.models.flashhead.dit import FlashHeadDiT
from rest_fast.models.vae import to_latents, to_tokens
from tests.kit import flashhead_folder as made

STORED = {side: json.loads((Path(__file__).parent / f"upstream_{side}.json").read_text()) for side in (128, 512)}
TOLERANCE = 2e-4  # of the largest stored number: both compute in float32, sums have up to 110,592 terms


def close(ours: torch.Tensor, theirs: list[float], tolerance: float = TOLERANCE) -> None:
    got, want = np.array(made.sampled(ours)), np.array(theirs)
    assert want.std() > 1e-2
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), np.abs(got - want).max()


@pytest.mark.slow
def test_an_evaluation_at_full_width():
    """Width 1536, 12 heads of 128, two blocks with a narrow MLP, 80 tokens, 32 audio tokens a latent frame."""
    f = made.FULL
    dit = FlashHeadDiTConfig(layers=f.layers, mlp_width=f.ffn)
    config = FlashHeadConfig("full", 128, 128, ConvVAEConfig(), dit=dit)
    shapes = dict(made.model_shapes(f))
    with Unfilled():
        model = FlashHeadDiT(config)
    state = {
        ours: joined(lambda name: made.numbers(made.SEED, name, shapes[name]), ours, theirs)
        for ours, theirs in names(config)
    }
    model.load_state_dict(state, assign=True)
    given = made.evaluation_inputs()
    stored = STORED[128]["evaluation"]
    with torch.no_grad():
        heard = model.hear(model.audio(given["input.features"]))
        t = torch.tensor(stored["timestep"], dtype=torch.float64)
        velocity = model(to_tokens(given["input.z"]), to_tokens(given["input.reference"]), t, heard)
    close(to_latents(velocity, config.grid), stored["velocity"])


@pytest.mark.slow
@pytest.mark.parametrize("side", STORED)
def test_chunks_through_decode_colour_and_encode_back(side, tmp_path):
    """The folder is converted; wav2vec, sampler, VAE, colour match and what the next chunk begins with follow: two
    chunks of small pictures, one of 512 x 512."""
    import rest_fast
    from rest_fast.streaming.flashhead import FlashHeadSampler, FlashHeadStream, Networks

    whole = STORED[side]
    published, wav2vec = made.write(tmp_path / "given", made.FULL, whole["seed"])
    convert_flashhead(published, tmp_path / "head", wav2vec=wav2vec, size=side)
    model = rest_fast.load(tmp_path / "head", device="cpu")
    avatar = model.prepare(made.picture(side), crop="center")
    close(to_latents(avatar.reference[None], model.config.grid), whole["reference"])
    sampling = model.config.replace(sampling__rounding="none").sampling  # it ran in float32, where nothing is rounded
    stream = FlashHeadStream(Networks(model), avatar, FlashHeadSampler.of(model, sampling), seed=whole["seed"])
    stream.push(made.sound(len(whole["chunks"])))
    stream.push(np.zeros(15360, np.float32))  # of the chunk that begins with the last one's frames
    job = stream.next_chunk()
    for i, stored in enumerate(whole["chunks"]):
        heard = stream.timeline.sound.window16((i + 1) * 15360 - 128000, (i + 1) * 15360, 1 << 60)
        close(windows(model.speech(torch.from_numpy(heard)[None]), 33, 5), stored["audio"])
        with torch.inference_mode():
            latents = stream.sampler.run([job])[0]
            close(model.frames(latents[None], stream.photo), stored["video"], 2e-3)
        stream.accept(job, latents)
        while stream.has_block():
            stream.make_block()
            stream.deliver()
        job = stream.next_chunk()
        close(to_latents(job.window.motion, model.config.grid), stored["motion"])
