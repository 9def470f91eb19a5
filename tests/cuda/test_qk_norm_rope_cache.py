"""``qk_norm_rope_cache`` in CUDA, on the CPU: against the reference, and against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rest_fast.ops.dispatch import OpError, Spec
from tests.cuda_shim import built
from tests.kernels import kit
from tests.ops import calls
from tests.ops.cases.qk_norm_rope_cache import FP32, SIZES

NAME = "qk_norm_rope_cache"


@pytest.fixture(scope="module")
def cuda_on_cpu():
    return built.module()


ROWS, BANKS, POSITIONS, EPS = 4, 2, 9, 1e-6
INTERLEAVED = (0, 0, 0)  # pairs of a head, of its time and rows: none, so the axes alternate
SEED = 20251211


def make_case(lanes, tokens, grid_h, grid_w, heads, head_dim, dtype):
    rng = np.random.default_rng(SEED)
    width, slots = heads * head_dim, 2 * tokens + 1

    def table(rows):
        angle = rng.uniform(-3, 3, (rows, width // 6))
        return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)

    def cache():  # a slice of a bigger tensor, so the strides are not those of its shape
        return np.full((ROWS, BANKS, 2, slots, width), np.nan, dtype)

    return {
        "qkv": rng.normal(0, 2, (lanes, tokens, 3 * width)).astype(dtype),
        "q_weight": rng.normal(1, 0.2, width).astype(dtype),
        "k_weight": rng.normal(1, 0.2, width).astype(dtype),
        "rope_t": table(POSITIONS),
        "rope_y": table(grid_h),
        "rope_x": table(grid_w),
        "k_cache": cache(),
        "v_cache": cache(),
        "q_out": np.full((lanes, tokens, width), np.nan, dtype),
        "row_index": rng.permutation(ROWS)[:lanes].astype(np.int32),
        "bank_index": rng.integers(0, BANKS, lanes, dtype=np.int32),
        "write_slot": rng.integers(0, slots - tokens + 1, lanes, dtype=np.int32),
        "base": rng.integers(0, POSITIONS - tokens // (grid_h * grid_w), lanes, dtype=np.int32),
    }


def expected(case, channels, weight, grid_h, grid_w):
    """q or k in float64, [lanes, tokens, width]."""
    lanes, tokens, width = channels.shape
    n = width // 6
    pad = width // 2 - 3 * n
    x = channels.astype(np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight.astype(np.float64)
    token = np.arange(tokens)
    frame, y, col = token // (grid_h * grid_w), token // grid_w % grid_h, token % grid_w
    turn = np.zeros((lanes, tokens, width // 2), np.complex128)
    turn[:, :, :pad] = 1
    for lane in range(lanes):
        axes = (case["rope_t"][case["base"][lane] + frame], case["rope_y"][y], case["rope_x"][col])
        for axis, table in enumerate(axes):
            turn[lane, :, pad + axis :: 3] = table[..., 0] + 1j * table[..., 1].astype(np.float64)
    rotated = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([rotated.real, rotated.imag], -1).reshape(lanes, tokens, width)


def call(module, case, lanes, tokens, grid_h, grid_w, heads, head_dim, device=0):
    k_cache = case["k_cache"][:, :, 1]
    row_stride, bank_stride = (s // k_cache.itemsize for s in k_cache.strides[:2])
    views = dict(case, k_cache=k_cache, v_cache=case["v_cache"][:, :, 1])
    dtype = {"float32": 0, "float16": 2}[case["qkv"].dtype.name]
    sizes = (lanes, tokens, heads * head_dim, POSITIONS, grid_h, grid_w)
    cache = (ROWS, BANKS, k_cache.shape[2], row_stride, bank_stride)
    pointers = (array.ctypes.data for array in views.values())
    return module.qk_norm_rope_cache(*pointers, *sizes, *cache, *INTERLEAVED, EPS, dtype, 0, device)


# lanes, tokens, grid_h, grid_w, heads, head_dim
CASES = {
    "demo": (2, 9, 2, 2, 6, 32),  # one vector a thread; a last frame that is not full
    "odd_width": (3, 4, 1, 2, 1, 34),  # pairs instead of vectors, two pairs unrotated
    "wide": (1, 2, 1, 2, 32, 64),  # rest-512
    "wider": (1, 1, 1, 1, 96, 64),  # several vectors a thread
}


# In units in the last place; outputs below 0.25 count as 0.25, because the rotation cancels.
# float32: the sum over the width and six roundings after it. float16: one rounding at the end, so
# half a unit and a little for what float32 did before it.
@pytest.mark.parametrize("dtype, units", [(np.float32, 8.0), (np.float16, 0.51)])
@pytest.mark.parametrize("shape", CASES.values(), ids=CASES.keys())
def test_kernel_on_the_cpu(cuda_on_cpu, shape, dtype, units):
    case = make_case(*shape, dtype)
    assert call(cuda_on_cpu, case, *shape) == 0

    lanes, tokens, grid_h, grid_w, heads, head_dim = shape
    width = heads * head_dim
    q, k, v = np.split(case["qkv"], 3, axis=-1)
    q_true = expected(case, q, case["q_weight"], grid_h, grid_w)
    k_true = expected(case, k, case["k_weight"], grid_h, grid_w)

    written = np.zeros(case["k_cache"].shape[:4], bool)
    k_new = np.empty((lanes, tokens, width), dtype)
    for lane in range(lanes):
        first = case["write_slot"][lane]
        at = (case["row_index"][lane], case["bank_index"][lane], 1, slice(first, first + tokens))
        written[at] = True
        k_new[lane] = case["k_cache"][at]
        np.testing.assert_array_equal(case["v_cache"][at], v[lane])
    for cache in (case["k_cache"], case["v_cache"]):
        assert np.isnan(cache[~written]).all(), "wrote outside the lanes' slots"

    for name, got, true in (("q", case["q_out"], q_true), ("k", k_new, k_true)):
        unit = np.spacing(np.maximum(np.abs(true), 0.25).astype(dtype)).astype(np.float64)
        worst = (np.abs(got.astype(np.float64) - true) / unit).max()
        assert worst <= units, f"{name}: {worst:.2f} units in the last place"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [s for s in SIZES.values() if s["heads"] <= 32], ids=str)
def test_the_backend_is_the_reference(shape, dtype):
    call = calls.qk_norm_rope_cache(**shape, dtype=dtype)
    kit.compare(NAME, call, built.run(NAME, call), fp32=FP32, reason="12 fp32 roundings of a pair")


FAR = 2**31 - 1
LIMITS = {"row_index": ROWS, "bank_index": BANKS, "write_slot": 6, "base": POSITIONS - 1}  # of the shape below


@pytest.mark.parametrize("beyond", [0, FAR, None, -FAR - 1], ids=["next", "far", "before", "far_before"])
@pytest.mark.parametrize("argument", LIMITS)
def test_a_lane_out_of_range_writes_nothing(cuda_on_cpu, argument, beyond):
    """Its queries included, inside the caches or around them; the other lane does its work to the last bit."""
    shape = (2, 5, 1, 4, 2, 32)  # two frames, of which the last is not full; 11 slots
    case = make_case(*shape, np.float32)
    case |= {"row_index": np.int32([2, 1]), "write_slot": np.int32([6, 0]), "base": np.int32([POSITIONS - 2, 0])}
    want = {name: array.copy() for name, array in case.items()}
    assert call(cuda_on_cpu, want, *shape) == 0
    assert np.isfinite(want["q_out"]).all()  # the last slot, position and row are in range
    case[argument][1] = {0: LIMITS[argument] + (argument == "write_slot"), None: -1}.get(beyond, beyond)
    assert call(cuda_on_cpu, case, *shape) == 0

    want["q_out"][1] = np.nan
    for name in ("k_cache", "v_cache"):
        want[name][1] = np.nan  # its row
    for name in ("q_out", "k_cache", "v_cache"):
        np.testing.assert_array_equal(case[name].view(np.int32), want[name].view(np.int32), name)


@pytest.mark.parametrize("dtype, most", [(torch.float32, 8192), (torch.bfloat16, 16384)], ids=str)
def test_rows_wider_than_a_block_holds_are_refused_by_name(dtype, most):
    backend = next(b for b in calls.OPS[NAME].backends if b.name == "cuda")
    assert f"rows of at most {most} channels" in backend.supports(Spec("cuda", dtype, (("width", most + 2),)))[1]
    assert "channels" not in backend.supports(Spec("cuda", dtype, (("width", most),)))[1]
    wide = calls.qk_norm_rope_cache(heads=1, dim=most, frames=1, grid=(1, 1), dtype=dtype)
    built.run(NAME, wide)
    with pytest.raises(OpError, match="too wide"):
        built.run(NAME, calls.qk_norm_rope_cache(heads=1, dim=most + 8, frames=1, grid=(1, 1), dtype=dtype))


def test_launcher_reports_errors(cuda_on_cpu):
    shape = (2, 4, 2, 2, 1, 32)
    case = make_case(*shape, np.float32)
    assert cuda_on_cpu.error_string(call(cuda_on_cpu, case, *shape, device=1)).startswith("CUDA: ")
    too_many = (2, 12, 2, 2, 1, 32)
    code = call(cuda_on_cpu, case, *too_many)
    assert "slots" in cuda_on_cpu.error_string(code)
    assert np.isnan(case["q_out"]).all()
