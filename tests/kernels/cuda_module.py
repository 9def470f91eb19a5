"""Call ``qk_norm_rope_cache`` of a compiled module past the dispatch: addresses, sizes, strides in, error code out."""

from __future__ import annotations

from types import ModuleType

import torch

from rest_fast.ops import native
from tests.ops import calls

ARRAYS = (
    *("qkv", "q_weight", "k_weight", "rope_t", "rope_y", "rope_x", "k_cache", "v_cache", "q_out"),
    *("row_index", "ring_index", "write_slot", "base"),
)


def raw(module: ModuleType, call: calls.Call, *more: int, **changed: int) -> int:
    """The error code. ``more`` comes last (stream and device, for CUDA); ``changed`` replaces sizes."""
    lanes, tokens = call["qkv"].shape[:2]
    cache = call["k_cache"]
    rows, rings, slots, heads, dim = cache.shape
    sizes = {
        "lanes": lanes,
        "tokens": tokens,
        "heads": heads,
        "dim": dim,
        "positions": call["rope_t"].shape[0],
        "grid_h": call["rope_y"].shape[0],
        "grid_w": call["rope_x"].shape[0],
        "rows": rows,
        "rings": rings,
        "slots": slots,
        "row_stride": cache.stride(0),
        "ring_stride": cache.stride(1),
        "eps": call["eps"],
        "dtype": native.DTYPES[call["qkv"].dtype],
    }
    assert changed.keys() <= sizes.keys()
    pointers = (call[name].data_ptr() for name in ARRAYS)
    return module.qk_norm_rope_cache(*pointers, *(sizes | changed).values(), *more)


def run(call: calls.Call, **changed: int) -> int:
    """On the device of the call's tensors, by ``rest_fast._cuda`` or ``rest_fast._cpu``, in the current stream."""
    device = call["qkv"].device
    if device.type == "cpu":
        from rest_fast import _cpu

        return raw(_cpu, call, **changed)
    from rest_fast import _cuda

    index = device.index or 0
    return raw(_cuda, call, torch.cuda.current_stream(index).cuda_stream, index, **changed)
