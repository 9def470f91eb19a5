"""The CUDA backends on a GPU, by name: against the reference at real sizes, in any order of lanes, and in a graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rest_fast import ops
from rest_fast.ops import native
from tests.kernels import kit
from tests.kit.compare import assert_same_bits
from tests.ops import calls
from tests.ops.cases import frame_audio_update as audio
from tests.ops.cases import latent_noise as noise
from tests.ops.cases import move_and_paint as painting
from tests.ops.cases import qk_norm_rope_cache as qk
from tests.ops.cases import sink_ring_attention as attention
from tests.ops.cases import x0_renoise_step as renoise

ABSENT = "no CUDA device" if not kit.ON_GPU else native.module("_cuda")[1]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(ABSENT), reason=ABSENT or "it can run")]

ONE_ROW = {"rows": (1, 0), "banks": (0, 0)}
REST = {"heads": 32, "dim": 64}
CALLS = {
    "qk_norm_rope_cache": qk.SIZES["demo"],
    "qk_norm_rope_cache by head": qk.SIZES["flashhead"],
    "frame_audio_update": {"frames": 3, "tokens": 256, "audio": 2, **REST},
    "frame_audio_update four tokens": {"frames": 3, "tokens": 256, "audio": 4, **REST},
    "frame_audio_update odd": audio.SHAPES["one_head"],
    "sink_ring_attention": {"tokens": 768, **REST, **ONE_ROW, "n_valid": (1792, 1024), "cache": (2, 1, 1792)},
    "sink_ring_attention demo": {
        "tokens": 48,
        "heads": 3,
        "dim": 64,
        **ONE_ROW,
        "n_valid": (112, 64),
        "cache": (2, 1, 112),
    },
    "sink_ring_attention 128": {"tokens": 257, "heads": 8, "dim": 128, "n_valid": (900, 513, 1), "cache": (4, 2, 905)},
}
CALLS |= {
    "rotate_context": {"cache": (2, 3, 1, 1792), "sink": 256, "chunk": 768, "rows": (2, 0), "skip": (256, 1024), **REST}
    | {"enabled": (1, 1)},
    "rotate_context odd": {},
    "gate_norm_modulate": {"frames": 3, "tokens": 256, "width": 2048},
    "gate_norm_modulate odd": {"width": 2047},
    "frame_cross_attention text": {"frames": 1, "tokens": 768, "audio": 128, **REST},
    "frame_cross_attention odd": {"audio": 5, "heads": 3, "dim": 7},
    "cfg_euler_step": {"shape": (2, 768, 128)},
    "cfg_euler_step odd": {},
    "x0_renoise_step": {"shape": (2, 1280, 128), "held": (256, 512)},
    "x0_renoise_step odd": {},
    "pixel_norm_silu": {},
    "depth_to_space": {},
    "frames_to_uint8": {},
}
FLOAT32 = {  # these alone have tests of their parity below
    "latent_noise": {"count": 32768},
    "move_and_paint": {"size": (512, 512), "photos": 1, "frames": 8},
}
# Tensor cores cut sums of 16-bit products off, and exp2 adds 2^-22 of a weight: 1e-5 of a log-sum-exp below 10.
FP32 = {"qk_norm_rope_cache": qk.FP32, "frame_audio_update": 2 * 16 * 12 * 2.0**-24, "sink_ring_attention": 1e-5}
# The tolerances of tests/cuda/test_<op>.py; moving and bytes are exact.
FP32 |= {"rotate_context": 3 * 2.0**-24, "gate_norm_modulate": 14 * 2.0**-24, "frame_cross_attention": 192 * 2.0**-24}
FP32 |= {"cfg_euler_step": 200 * 2.0**-24, "pixel_norm_silu": 1e-6, "depth_to_space": 0.0, "frames_to_uint8": 0.0}
FP32 |= {"x0_renoise_step": renoise.FP32}
TINY = 1e-5


def made(case: str, dtype: torch.dtype) -> tuple[str, calls.Call]:
    name = case.partition(" ")[0]
    if name == "sink_ring_attention" and dtype == torch.float32:
        pytest.skip("16-bit only")
    return name, calls.VALID[name](**CALLS[case], dtype=dtype)


@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("case", CALLS)
def test_parity(case, dtype):
    name, call = made(case, dtype)
    kit.compare(name, call, kit.run(name, call, "cuda"), fp32=FP32[name], reason="as on the CPU", tiny=TINY)


def test_noise_is_that_of_64_bits_of_mantissa():
    for call in (calls.latent_noise(count=20_000), noise.near_zero()):
        got, want = kit.run("latent_noise", call, "cuda")["out"], noise.exact(call)
        assert (np.abs(got.numpy().astype(np.longdouble) - want) <= 1.0001 * 2.0**-24 * np.abs(want)).all()


def test_noise_is_the_reference_but_for_borders():
    call = calls.latent_noise(frames=4, count=1 << 18)
    got, want = (kit.run("latent_noise", call, backend)["out"] for backend in ("cuda", "reference"))
    assert noise.neighbours(got, want) <= 1


def test_frames_of_a_photo():
    def run(call: calls.Call) -> torch.Tensor:
        return kit.run("move_and_paint", call, "cuda")["out"]

    painting.check_like_the_reference(run, **FLOAT32["move_and_paint"])
    painting.check_pixels_by_hand(run, (128, 64))
    painting.check_no_flow_leaves_the_photo(run, float("nan"))


@pytest.mark.parametrize("wrong", attention.WRONG, ids=str)
def test_a_lane_with_a_wrong_index_is_left_alone(wrong):
    call = calls.sink_ring_attention(tokens=18, dim=64, cache=(4, 2, 100), n_valid=(63, 100, 1), dtype=torch.float16)
    want = kit.run("sink_ring_attention", call, "cuda")
    got = kit.run("sink_ring_attention", call | {n: calls.ints(*v) for n, v in wrong.items()}, "cuda")
    assert got["out"][1].isnan().all() and got["lse"][1].isnan().all()
    for lane in (0, 2):
        assert_same_bits(got["out"][lane], want["out"][lane], f"lane {lane}")


def test_lanes_in_another_order_have_the_same_bits():
    name, call = made("sink_ring_attention 128", torch.bfloat16)
    want, order = kit.run(name, call, "cuda"), [2, 0, 1]
    lanes = {n: call[n][order] for n in ("q", "out", "lse", "row_index", "bank_index", "n_valid")}
    got = kit.run(name, call | lanes | {"host_n_valid": [call["host_n_valid"][i] for i in order]}, "cuda")
    for output in ("out", "lse"):
        assert_same_bits(got[output], want[output][order], output)


@pytest.mark.parametrize("case", [*CALLS, *FLOAT32])
def test_a_graph_holds_it(case):
    """Captured once, replayed on restored inputs: nothing is allocated, waited for, or read on the host."""
    name, call = (case, calls.VALID[case](**FLOAT32[case])) if case in FLOAT32 else made(case, torch.bfloat16)
    want = kit.run(name, call, "cuda")
    here = kit.copied(call, "cuda")
    graph, before = torch.cuda.CUDAGraph(), {n: here[n].clone() for n in calls.written(name) if here.get(n) is not None}
    with ops.use_backend("cuda"), torch.cuda.graph(graph):
        calls.invoke(name, here)
    for output, value in before.items():
        here[output].copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    for output in before:
        assert_same_bits(here[output].cpu(), want[output], output)
