"""``rest_fast._cuda`` on a GPU: the op that no table dispatches to yet, by raw addresses, against the reference.

The first tests put ``rest_fast._cpu`` through the same calls: what is known to be right without a GPU.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import native
from tests.kernels import cuda_module, kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.qk_norm_rope_cache import FP32, SIZES, written_slots

NAME = "qk_norm_rope_cache"
REST_512 = {
    "heads": 32,
    "dim": 64,
    "frames": 3,
    "grid": (16, 16),
    "rows": (1, 0),
    "banks": (0, 0),
    "slots": (256, 1024),
    "base": (4, 0),
    "cache": (2, 1, 1792),
}
ODD = {"heads": 3, "dim": 22, "frames": 1, "grid": (3, 3)}  # pairs instead of vectors, which are of 16 bytes
SHAPES = SIZES | {"odd": ODD, "rest-512": REST_512}

cpp = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")


def on_gpu(test):
    """The mark by which the GPU suite finds a test, and the reasons for which it cannot run."""
    if not torch.cuda.is_available():
        reason = "no CUDA device"
    else:
        reason = "" if importlib.util.find_spec("rest_fast._cuda") else "rest_fast._cuda was not built"
    return pytest.mark.gpu(pytest.mark.skipif(bool(reason), reason=reason or "it can run")(test))


def poisoned(call: calls.Call) -> calls.Call:
    """NaN in the slots that the call has to write; the queries have it already."""
    for name in ("k_cache", "v_cache"):
        call[name] = call[name].clone()
        call[name][written_slots(call)] = torch.nan
    return call


def by_module(call: calls.Call, device: str) -> calls.Call:
    """What the module leaves behind, on the CPU."""
    copy = kit.copied(call, device)
    assert cuda_module.run(copy) == 0
    return kit.copied(copy, "cpu")


def by_reference(call: calls.Call) -> calls.Call:
    copy = kit.copied(call, "cpu")
    with ops.use_backend("reference"):
        calls.invoke(NAME, copy)
    return copy


def compare(call: calls.Call, device: str) -> None:
    """Queries and keys within the op's tolerance, values and everything outside the written slots bit for bit."""
    got, want = by_module(call, device), by_reference(call)
    mask = written_slots(call)
    assert_same_bits(got["v_cache"], want["v_cache"], "values, which are copied")
    assert_same_bits(got["k_cache"][~mask], call["k_cache"][~mask], "keys outside the written slots")
    exact = by_reference(kit.widened(NAME, call))
    for mine, theirs, truth in zip(*([c["q_out"], c["k_cache"][mask]] for c in (got, want, exact))):
        if mine.dtype == torch.float32:
            # The units of the C++ tests; rsqrtf, which CUDA bounds by two, is within the eight of the statistics.
            assert_close(mine, theirs, atol=FP32 * float(theirs.abs().max()), reason="12 fp32 roundings of a pair")
        else:
            twice_eager(mine, theirs, truth, tiny=1e-6)


@cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one_still_pair", "odd", "rest-512"])
def test_the_raw_call_is_the_op(name, dtype):
    compare(poisoned(calls.qk_norm_rope_cache(**SHAPES[name], dtype=dtype)), "cpu")


@cpp
def test_a_bad_size_is_an_error_code():
    call = calls.qk_norm_rope_cache()
    assert "slots" in native.module()[0].error_string(cuda_module.run(call, tokens=call["k_cache"].shape[2] + 1))
    assert call["q_out"].isnan().all()


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_on_the_gpu_it_is_the_reference(shape, dtype):
    compare(poisoned(calls.qk_norm_rope_cache(**shape, dtype=dtype)), "cuda")


@on_gpu
def test_it_runs_in_the_current_stream():
    """The inputs are made in a side stream, behind a wait: in another one the op would read what was before."""
    call = calls.qk_norm_rope_cache()
    want = by_module(call, "cuda")
    copy = kit.copied(call, "cuda")
    source, copy["qkv"] = copy["qkv"], torch.zeros_like(copy["qkv"])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        copy["qkv"].copy_(source)
        assert cuda_module.run(copy) == 0
    torch.cuda.synchronize()
    for name in calls.written(NAME):
        assert_same_bits(copy[name].cpu(), want[name], name)


@on_gpu
def test_errors_come_back_as_codes():
    from rest_fast import _cuda

    call = kit.copied(calls.qk_norm_rope_cache(), "cuda")
    many = cuda_module.run(call, tokens=call["k_cache"].shape[2] + 1)
    assert "slots" in _cuda.error_string(many)
    assert "dtype" in _cuda.error_string(cuda_module.run(call, dtype=9))
    nowhere = cuda_module.raw(_cuda, call, 0, torch.cuda.device_count())
    assert _cuda.error_string(nowhere).startswith("CUDA: ")
    torch.cuda.synchronize()
    assert call["q_out"].isnan().all()
