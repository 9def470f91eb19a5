"""Ops: in-place faces here (caller-owned outputs, fast backends), references in :mod:`rest_fast.ops.functional`."""

from rest_fast.ops import oldest_torch  # isort: skip  # before what an older one lacks
from rest_fast.ops import functional
from rest_fast.ops.causal_conv3d import causal_conv3d
from rest_fast.ops.cfg_euler_step import cfg_euler_step
from rest_fast.ops.conv3x3 import conv3x3
from rest_fast.ops.depth_to_space import depth_to_space
from rest_fast.ops.dispatch import Op, OpError, Spec, use_backend
from rest_fast.ops.frame_audio_update import frame_audio_update
from rest_fast.ops.frame_cross_attention import frame_cross_attention
from rest_fast.ops.frames_to_uint8 import frames_to_uint8
from rest_fast.ops.gate_norm_modulate import gate_norm_modulate
from rest_fast.ops.latent_noise import latent_noise
from rest_fast.ops.linear import linear
from rest_fast.ops.move_and_paint import move_and_paint
from rest_fast.ops.pixel_norm_silu import pixel_norm_silu
from rest_fast.ops.qk_norm_rope_cache import qk_norm_rope_cache
from rest_fast.ops.rotate_context import rotate_context
from rest_fast.ops.sink_ring_attention import sink_ring_attention
from rest_fast.ops.x0_renoise_step import x0_renoise_step

ALL: tuple[Op, ...] = (
    qk_norm_rope_cache,
    sink_ring_attention,
    rotate_context,
    gate_norm_modulate,
    frame_cross_attention,
    frame_audio_update,
    cfg_euler_step,
    x0_renoise_step,
    latent_noise,
    linear,
    causal_conv3d,
    pixel_norm_silu,
    depth_to_space,
    frames_to_uint8,
    conv3x3,
    move_and_paint,
)

__all__ = [
    "ALL",
    "Op",
    "OpError",
    "Spec",
    "causal_conv3d",
    "cfg_euler_step",
    "conv3x3",
    "depth_to_space",
    "frame_audio_update",
    "frame_cross_attention",
    "frames_to_uint8",
    "functional",
    "gate_norm_modulate",
    "latent_noise",
    "linear",
    "move_and_paint",
    "oldest_torch",
    "pixel_norm_silu",
    "qk_norm_rope_cache",
    "rotate_context",
    "sink_ring_attention",
    "use_backend",
    "x0_renoise_step",
]
