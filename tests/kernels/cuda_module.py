"""Call ``qk_norm_rope_cache`` of a compiled module past the dispatch: what Python hands over, changed at will."""

from __future__ import annotations

from types import ModuleType

import torch

from tests.ops import calls
from tests.ops.cpp import native_arguments

NAME = "qk_norm_rope_cache"


def raw(module: ModuleType, call: calls.Call, *more: int, **changed: int) -> int:
    """The error code. ``more`` comes last (stream and device, for CUDA); ``changed`` replaces sizes."""
    values = native_arguments(NAME, call)
    assert changed.keys() <= values.keys()
    return module.qk_norm_rope_cache(*(values | changed).values(), *more)


def run(call: calls.Call, **changed: int) -> int:
    """On the device of the call's tensors, by ``rest_fast._cuda`` or ``rest_fast._cpu``, in the current stream."""
    device = call["qkv"].device
    if device.type == "cpu":
        from rest_fast import _cpu

        return raw(_cpu, call, **changed)
    from rest_fast import _cuda

    index = device.index or 0
    return raw(_cuda, call, torch.cuda.current_stream(index).cuda_stream, index, **changed)
