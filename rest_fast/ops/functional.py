"""The functional references of all ops: plain PyTorch, differentiable, new tensors. The specification."""

from rest_fast.ops.causal_conv3d import causal_convolution, mirrored
from rest_fast.ops.cfg_euler_step import guided_euler
from rest_fast.ops.conv3x3 import convolved
from rest_fast.ops.depth_to_space import functional_depth_to_space as depth_to_space
from rest_fast.ops.depth_to_space import space_to_depth
from rest_fast.ops.frame_audio_update import audio_constants, audio_update
from rest_fast.ops.frame_cross_attention import frame_attention
from rest_fast.ops.frames_to_uint8 import to_uint8
from rest_fast.ops.gate_norm_modulate import gated_residual, norm_modulate
from rest_fast.ops.move_and_paint import moved_and_painted
from rest_fast.ops.pixel_norm_silu import normed_silu
from rest_fast.ops.qk_norm_rope_cache import qk_norm_rope, rms_norm
from rest_fast.ops.rotate_context import shift_keys
from rest_fast.ops.sink_ring_attention import attention
from rest_fast.ops.x0_renoise_step import renoised

__all__ = [
    "attention",
    "audio_constants",
    "audio_update",
    "causal_convolution",
    "convolved",
    "depth_to_space",
    "frame_attention",
    "gated_residual",
    "guided_euler",
    "mirrored",
    "moved_and_painted",
    "norm_modulate",
    "normed_silu",
    "qk_norm_rope",
    "renoised",
    "rms_norm",
    "shift_keys",
    "space_to_depth",
    "to_uint8",
]
