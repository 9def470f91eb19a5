"""A whole stream in CUDA, on the CPU, from sound to pictures: noise, steps, commits, and frames made of latents."""

from __future__ import annotations

import numpy as np
import pytest

from rest_fast import ops
from rest_fast.config import MotionVAEConfig
from tests.cuda_shim import built
from tests.kit.streams import alone
from tests.kit.toys import photo, sound, toy

RATE = 16000
MOTION = MotionVAEConfig(
    latent_channels=16,
    patch_size=32,
    encoder_channels=(4, 6, 8, 8),
    photo_channels=(6, 8, 8, 8),
    flow_channels=(6, 8, 8, 8),
    code_width=12,
)
# All of a stream in float32, for which attention has no CUDA kernel.
STREAM = {
    "latent_noise",
    "qk_norm_rope_cache",
    "gate_norm_modulate",
    "frame_cross_attention",
    "frame_audio_update",
    "cfg_euler_step",
    "rotate_context",
}
MODELS = {
    "convolutions": ({}, {"pixel_norm_silu"}),
    "motion": ({"vae": MOTION, "height": 128, "width": 128}, {"move_and_paint"}),
}


def test_every_op_has_a_cuda_kernel_but_those_of_libraries():
    """cuBLAS and cuDNN multiply and convolve with ``REST_FAST_BACKEND=cuda,library,reference``."""
    left = [op.name for op in ops.ALL if all(b.name != "cuda" for b in op.backends)]
    assert left == ["linear", "causal_conv3d", "conv3x3"]


@pytest.mark.filterwarnings("ignore:no face was found")
@pytest.mark.parametrize("kind", MODELS)
def test_frames_are_those_of_the_reference(kind):
    """Sums in another order, over chunks that hear one another: a byte differs where a value lies between two."""
    changes, decode = MODELS[kind]
    model, heard = toy(**changes), sound(RATE, 2.0)

    def frames() -> np.ndarray:
        blocks = alone(model, model.prepare(photo()), heard, sample_rate=RATE, seed=3)
        return np.concatenate([block.video for block in blocks]).astype(int)

    with built.everywhere() as ran:
        mine = frames()
    assert set(ran) == STREAM | decode
    with ops.use_backend("reference"):
        want = frames()
    away = abs(mine - want)
    assert want.std() > 20, "there is something to see"
    assert away.max() <= 1 and (away > 0).mean() < 1e-3
