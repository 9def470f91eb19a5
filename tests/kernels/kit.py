"""Run kernels beside the reference: those of Triton (in its interpreter, or on a GPU) and those in CUDA C++."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import triton_kernels
from tests.kit.compare import assert_close, twice_eager
from tests.ops import calls

ON_GPU = torch.cuda.is_available() and not triton_kernels.interpreted()
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter's bf16 products are wrong without a word; float16 goes through the same lines of a kernel.
LOW = (torch.bfloat16, torch.float16) if ON_GPU else (torch.float16,)
DTYPES = (torch.float32, *LOW)


def slow(*values: Any) -> list[Any]:
    """Parameters of tests that ``make test`` leaves out, since the interpreter takes seconds for each."""
    return [pytest.param(value, marks=() if ON_GPU else pytest.mark.slow) for value in values]


# Where a test has many cases: lower precision goes through the same lines, and every kernel has tests of it besides.
FIRST_DTYPE = (torch.float32, *slow(*LOW))


def copied(call: calls.Call, device: str = DEVICE) -> calls.Call:
    """The same call on copies of its tensors."""
    return {n: v.detach().clone().to(device) if isinstance(v, torch.Tensor) else v for n, v in call.items()}


def run(name: str, call: calls.Call, backend: str) -> calls.Call:
    """What the call leaves behind, on the CPU; the call itself stays as it is."""
    copy = copied(call, DEVICE if backend in ("triton", "cuda") else "cpu")
    with ops.use_backend(backend):
        calls.invoke(name, copy)
    return copied(copy, "cpu")


def widened(name: str, call: calls.Call) -> calls.Call:
    """The same numbers in float64, where the op takes them so."""
    return {n: v.double() if n in WIDE[name].split() and v is not None else v for n, v in call.items()}


WIDE = {
    "qk_norm_rope_cache": "qkv q_weight k_weight k_cache v_cache q_out",
    "sink_ring_attention": "q k_cache v_cache out",
    "rotate_context": "k_cache",
    "gate_norm_modulate": "x branch gate scale shift out",
    "frame_cross_attention": "q q_weight k v out",
    "frame_audio_update": "x q keys base update null",
    "cfg_euler_step": "z v_cond v_uncond",
    "pixel_norm_silu": "x scale shift out",
    "depth_to_space": "x out",
    "frames_to_uint8": "x",
}


def check_parity(name: str, call: calls.Call, *, fp32: float, reason: str, tiny: float = 1e-6) -> calls.Call:
    """:func:`compare` for Triton; returns what Triton left."""
    got = run(name, call, "triton")
    compare(name, call, got, fp32=fp32, reason=reason, tiny=tiny)
    return got


def compare(name: str, call: calls.Call, got: calls.Call, *, fp32: float, reason: str, tiny: float = 1e-6) -> None:
    """What a backend left of the call against the reference, for everything the op writes.

    float32: within ``fp32`` of the largest result, for this reason. Lower precision: at most twice the error of the
    reference at that precision, against the reference in float64. NaN must stand where the reference has it.
    """
    eager, exact = run(name, call, "reference"), run(name, widened(name, call), "reference")
    for output in calls.written(name):
        if call.get(output) is None:
            continue
        mine, theirs, truth = got[output], eager[output], exact[output].double()
        unknown = theirs.isnan()
        assert torch.equal(mine.isnan(), unknown), f"{output}: NaN where the reference has none, or the reverse"
        mine, theirs, truth = (x[~unknown] for x in (mine, theirs, truth))
        if mine.dtype == torch.float32 and call_dtype(call) == torch.float32:
            assert_close(mine, theirs, atol=fp32 * float(theirs.abs().max()), reason=reason)
        elif mine.is_floating_point():
            twice_eager(mine, theirs, truth, tiny=tiny)
        else:
            assert torch.equal(mine, theirs), f"{output}: integers differ"


def call_dtype(call: calls.Call) -> torch.dtype:
    """The dtype of the call's first tensor: what it computes in."""
    return next(v.dtype for v in call.values() if isinstance(v, torch.Tensor))
