"""Cases of ``frame_cross_attention``, for the tests of all its backends."""

from __future__ import annotations

import torch

from rest_fast.ops.functional import rms_norm
from tests.ops import calls

SHAPES = {
    "odd": {},
    "one_frame": {"frames": 1, "tokens": 5, "audio": 3},
    "one_key": {"frames": 2, "audio": 1, "heads": 1, "dim": 7},
    "one_token": {"frames": 4, "tokens": 1, "heads": 3, "dim": 2},
}


def eager(call: calls.Call) -> torch.Tensor:
    """Unfused, in the call's dtype: normed queries rounded, softmax in fp32, its weights rounded for the product."""
    _, frames, _, heads, dim = call["v"].shape
    dtype, lanes = call["q"].dtype, len(call["q"])
    q = rms_norm(call["q"], call["q_weight"], call["eps"]).to(dtype)
    q = q.view(lanes * frames, -1, heads, dim).transpose(1, 2)
    k, v = (call[name].expand(lanes, -1, -1, -1, -1).flatten(0, 1).transpose(1, 2) for name in "kv")
    weights = (q @ k.transpose(-1, -2) * dim**-0.5).float().softmax(-1).to(dtype)
    return (weights @ v).transpose(1, 2).reshape(call["q"].shape)
