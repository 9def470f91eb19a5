"""``frame_cross_attention`` in Triton against the reference: audio (few keys), text (many), padding, sharing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.kernels import frame_cross_attention as package
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.frame_cross_attention import eager

NAME = "frame_cross_attention"

# Scores are below 16 and off by a dozen units of 2^-24 of that (norm, product, a sum of D by tree or in blocks, exp2's
# own two): a weight is off by 16 * 12 units, relatively, and the result by twice that of the largest value.
FP32, WHY = 2 * 16 * 12 * 2.0**-24, "scores below 16 with a dozen fp32 roundings"

FEW = {
    "odd": {},
    "one_key": {"frames": 2, "tokens": 3, "audio": 1, "heads": 1, "dim": 7},
    "one_token": {"frames": 4, "tokens": 1, "heads": 3, "dim": 2},
    "eight_keys": {"frames": 1, "tokens": 6, "audio": 8, "heads": 3, "dim": 16},
    "demo": {"frames": 2, "tokens": 5, "audio": 4, "heads": 3, "dim": 64},
}
MANY = {
    "nine_keys": {"frames": 2, "tokens": 3, "audio": 9},
    "a_block_of_keys": {"frames": 1, "tokens": 17, "audio": 64, "heads": 2, "dim": 16},
    "keys_and_rows_left_over": {"frames": 2, "tokens": 70, "audio": 67, "heads": 1, "dim": 24},
    "demo": {"frames": 1, "tokens": 48, "audio": 128, "heads": 3, "dim": 64},
}
if kit.ON_GPU:
    FEW["rest_512"] = {"frames": 3, "tokens": 256, "audio": 2, "heads": 32, "dim": 64}
    MANY["rest_512"] = {"frames": 1, "tokens": 768, "audio": 128, "heads": 32, "dim": 64}


def shared(call: calls.Call) -> calls.Call:
    """All lanes see the keys and values of the first."""
    return call | {name: call[name][:1].contiguous() for name in "kv"}


@pytest.mark.parametrize("together", [1, 4], ids=["row_a_program", "four_rows_a_program"])
@pytest.mark.parametrize("dtype", kit.DTYPES, ids=str)
@pytest.mark.parametrize("shape", FEW.values(), ids=FEW)
def test_parity_few_keys(shape, dtype, together, monkeypatch):
    monkeypatch.setattr(package, "FULL", 0 if together == 4 else 1 << 30)
    kit.check_parity(NAME, calls.frame_cross_attention(**shape, dtype=dtype), fp32=FP32, reason=WHY)


@pytest.mark.parametrize("shape", MANY.values(), ids=MANY)
def test_parity_many_keys(shape):
    kit.check_parity(NAME, calls.frame_cross_attention(**shape), fp32=FP32, reason=WHY)


@settings(max_examples=100 if kit.ON_GPU else 15, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
    """Few keys and many, padded heads and channels, lanes that share."""
    names, most = ("frames", "tokens", "audio", "heads", "dim", "lanes"), (3, 20, 20, 3, 40, 2)
    sizes = {name: data.draw(st.integers(1, n), label=name) for name, n in zip(names, most, strict=True)}
    call = calls.frame_cross_attention(**sizes, shared=data.draw(st.booleans()), seed=data.draw(st.integers(0, 99)))
    want, got = (kit.run(NAME, call, backend)["out"] for backend in ("reference", "triton"))
    # One key of a sample this small may hold small values only: bound by those of the whole call.
    assert_close(got, want, atol=FP32 * float(call["v"].abs().max()), reason=WHY)


@pytest.mark.parametrize("dtype", kit.LOW, ids=str)
@pytest.mark.parametrize("shape", MANY.values(), ids=MANY)
def test_many_keys_are_at_most_twice_eager(shape, dtype):
    """Tensor cores take rounded queries and weights, and so does eager attention, which this is compared with."""
    call = calls.frame_cross_attention(**shape, dtype=dtype)
    exact = kit.run(NAME, kit.widened(NAME, call), "reference")["out"]
    twice_eager(kit.run(NAME, call, "triton")["out"], eager(call), exact, tiny=1e-6)


@pytest.mark.parametrize("shape", [FEW["odd"], MANY["nine_keys"]], ids=["few", "many"])
def test_lanes_may_share_keys_and_values(shape):
    call = shared(calls.frame_cross_attention(**shape))
    got = kit.check_parity(NAME, call, fp32=FP32, reason=WHY)
    apart = kit.run(NAME, call | {name: call[name].repeat(2, 1, 1, 1, 1) for name in "kv"}, "triton")
    assert_same_bits(got["out"], apart["out"], "out")


@pytest.mark.filterwarnings("ignore:All-NaN slice")
@pytest.mark.parametrize("shape", [FEW["odd"], MANY["keys_and_rows_left_over"]], ids=["few", "many"])
def test_other_frames_and_lanes_are_not_seen(shape):
    """NaN in the keys of one frame of one lane, and in one query, reach their tokens and no others."""
    call = calls.frame_cross_attention(**shape)
    want = kit.run(NAME, call, "triton")["out"]
    frames, tokens = call["k"].shape[1], call["q"].shape[1] // call["k"].shape[1]
    lost = torch.zeros(want.shape[:2], dtype=torch.bool)
    call["k"][1, frames - 1, -1] = call["v"][1, frames - 1, -1] = torch.nan
    lost[1, (frames - 1) * tokens :] = True
    call["q"][0, tokens, 1], lost[0, tokens] = torch.nan, True
    got = kit.run(NAME, call, "triton")["out"]
    assert got[lost].isnan().all()
    assert_same_bits(got[~lost], want[~lost], "tokens of other frames and lanes")


@pytest.mark.parametrize("shape", [FEW["odd"], MANY["nine_keys"]], ids=["few", "many"])
def test_large_scores(shape):
    """Scores of thousands: one key takes all, and nothing overflows."""
    call = calls.frame_cross_attention(**shape)
    call["k"] *= 1000
    got, want = (kit.run(NAME, call, backend)["out"] for backend in ("triton", "reference"))
    # A rounding of a score of 10^4 is 10^-3: so much a weight may move where two keys are near each other.
    assert_close(got, want, atol=12 * 1e4 * 2.0**-23, reason="scores of 10^4 with a dozen roundings")


@pytest.mark.parametrize("shape", [FEW["odd"], MANY["keys_and_rows_left_over"]], ids=["few", "many"])
def test_memory_around_out_and_inputs_stay(shape):
    call = kit.copied(calls.frame_cross_attention(**shape))
    memory = torch.full((4, *call["out"].shape[1:]), 77.0, device=kit.DEVICE)
    call["out"] = memory[1:3]
    before = {name: call[name].clone() for name in ("q", "q_weight", "k", "v")}
    args, kwargs = calls.split(NAME, call)
    package.launch(*args, **kwargs)
    assert (memory[[0, 3]] == 77).all()
    assert (memory[1:3] != 77).all()
    for name, old in before.items():
        assert_same_bits(call[name].cpu(), old.cpu(), name)


def test_refusals():
    spec = kit.ops.dispatch.Spec("cpu", torch.float32, (("head_dim", 130), ("width", 260)))
    assert package.supports(spec) == (False, "head_dim of at most 128, got 130")
    assert package.supports(spec._replace(dims=()))[0]
    assert not package.supports(spec._replace(dims=(), dtype=torch.float64))[0]
