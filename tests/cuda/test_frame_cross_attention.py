"""``frame_cross_attention`` in CUDA, on the CPU, against the reference: few keys and many, heads of any size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.ops import OpError
from tests.cuda_shim import built
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.frame_cross_attention import eager

NAME = "frame_cross_attention"
FP32, WHY = 12 * 16 * 2.0**-24, "scores below 16 with a dozen fp32 roundings"

SIZES = {
    "odd": {},
    "one_key": {"frames": 2, "tokens": 3, "audio": 1, "heads": 1, "dim": 7},
    "one_token": {"frames": 4, "tokens": 1, "heads": 3, "dim": 2},
    "eight_lanes_a_head": {"frames": 1, "tokens": 5, "audio": 2, "heads": 3, "dim": 64},
    "three_vectors_a_head": {"frames": 1, "tokens": 4, "audio": 9, "heads": 2, "dim": 24},
    "largest_head": {"frames": 1, "tokens": 2, "audio": 3, "heads": 2, "dim": 128, "lanes": 1},
    "largest_head_without_vectors": {"frames": 1, "tokens": 2, "audio": 3, "heads": 1, "dim": 127, "lanes": 1},
    "more_heads_than_a_block": {"frames": 1, "tokens": 1, "audio": 2, "heads": 40, "dim": 64, "lanes": 1},
    "text": {"frames": 1, "tokens": 6, "audio": 67, "heads": 2, "dim": 16},
}


LOW = (torch.bfloat16, torch.float16)
MANY = {  # keys on tensor cores, in 16 bits
    "nine_keys": {"frames": 2, "tokens": 5, "audio": 9, "heads": 2, "dim": 64},
    "a_whole_tile": {"frames": 1, "tokens": 16, "audio": 64, "heads": 1, "dim": 64},
    "keys_and_rows_left_over": {"frames": 2, "tokens": 70, "audio": 67, "heads": 1, "dim": 64},
    "two_blocks": {"frames": 1, "tokens": 131, "audio": 128, "heads": 1, "dim": 64, "lanes": 1},
    "large_head": {"frames": 2, "tokens": 67, "audio": 32, "heads": 2, "dim": 128, "shared": True},
}


def shared(call: calls.Call) -> calls.Call:
    """All lanes see the keys and values of the first."""
    return call | {name: call[name][:1].contiguous() for name in "kv"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_parity(shape, dtype):
    call = calls.frame_cross_attention(**shape, dtype=dtype)
    kit.compare(NAME, call, built.run(NAME, call), fp32=FP32, reason=WHY)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
    """Few keys and many, tiles and warps that are not full, lanes that share."""
    names, most = ("frames", "tokens", "audio", "heads", "dim", "lanes"), (3, 9, 12, 3, 40, 2)
    sizes = {name: data.draw(st.integers(1, n), label=name) for name, n in zip(names, most, strict=True)}
    call = calls.frame_cross_attention(**sizes, shared=data.draw(st.booleans()), seed=data.draw(st.integers(0, 99)))
    got, want = built.run(NAME, call)["out"], kit.run(NAME, call, "reference")["out"]
    # One key of a sample this small may hold small values only: bound by those of the whole call.
    assert_close(got, want, atol=FP32 * float(call["v"].abs().max()), reason=WHY)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", MANY.values(), ids=MANY)
def test_many_keys_are_at_most_twice_eager(shape, dtype):
    """Tensor cores take rounded queries and weights, and so does eager attention, which this is compared with."""
    call = calls.frame_cross_attention(**shape, dtype=dtype)
    exact = kit.run(NAME, kit.widened(NAME, call), "reference")["out"]
    twice_eager(built.run(NAME, call)["out"], eager(call), exact, tiny=1e-6)


def test_many_keys_from_memory_without_vectors_are_the_reference():
    """One number on: the way of few keys, which rounds once."""
    call = calls.frame_cross_attention(**MANY["nine_keys"], dtype=torch.bfloat16)
    memory = torch.full((call["k"].numel() + 1,), torch.nan, dtype=torch.bfloat16)
    call["k"] = memory[1:].view(call["k"].shape).copy_(call["k"])
    kit.compare(NAME, call, built.run(NAME, call), fp32=FP32, reason=WHY)


def test_large_scores_of_many_keys():
    """Nothing overflows, and a mean of values lies among them."""
    call = calls.frame_cross_attention(**MANY["keys_and_rows_left_over"], dtype=torch.bfloat16)
    call["k"] *= 1000
    got = built.run(NAME, call)["out"].view(2, 2, 70, 64)
    low, high = call["v"].flatten(3).amin(2, keepdim=True), call["v"].flatten(3).amax(2, keepdim=True)
    assert ((got >= low - 0.03) & (got <= high + 0.03)).all(), "roundings of numbers below 4 to bf16"


def test_lanes_may_share_keys_and_values():
    call = shared(calls.frame_cross_attention())
    got = built.run(NAME, call)
    kit.compare(NAME, call, got, fp32=FP32, reason=WHY)
    apart = built.run(NAME, call | {name: call[name].repeat(2, 1, 1, 1, 1) for name in "kv"})
    assert_same_bits(got["out"], apart["out"], "out")


@pytest.mark.parametrize("shape", [{"heads": 3, "dim": 16}, {"audio": 12, "dim": 64}], ids=["few", "many"])
def test_a_token_has_the_same_bits_in_any_tile(shape):
    """Alone, or as one of several that a block takes together."""
    call = calls.frame_cross_attention(frames=1, tokens=7, **shape, dtype=torch.float16)
    together = built.run(NAME, call)["out"]
    for token in range(7):
        one = {name: call[name][:, token : token + 1].contiguous() for name in ("q", "out")}
        assert_same_bits(built.run(NAME, call | one)["out"], together[:, token : token + 1], f"token {token}")


@pytest.mark.parametrize(
    "shape",
    [{"dim": 5}, {"dim": 16}, {"dim": 64, "audio": 12, "dtype": torch.float16}],
    ids=["numbers", "vectors", "many"],
)
def test_other_frames_and_lanes_are_not_seen(shape):
    """NaN in the keys of one frame of one lane, and in one query, reach their tokens and no others."""
    call = calls.frame_cross_attention(**shape)
    want = built.run(NAME, call)["out"]
    lost = torch.zeros(want.shape[:2], dtype=torch.bool)
    call["k"][1, 2, -1] = call["v"][1, 2, -1] = torch.nan
    lost[1, 8:] = True
    call["q"][0, 4, 1], lost[0, 4] = torch.nan, True
    got = built.run(NAME, call)["out"]
    assert got[lost].isnan().all()
    assert_same_bits(got[~lost], want[~lost], "tokens of other frames and lanes")


def test_large_scores():
    """Scores of thousands: one key takes all, and nothing overflows."""
    call = calls.frame_cross_attention()
    call["k"] *= 1000
    got, want = built.run(NAME, call)["out"], kit.run(NAME, call, "reference")["out"]
    # A rounding of a score of 10^4 is 10^-3: so much a weight may move where two keys are near each other.
    assert_close(got, want, atol=12 * 1e4 * 2.0**-23, reason="scores of 10^4 with a dozen roundings")


def test_keys_that_are_not_aligned():
    """Numbers instead of vectors where one tensor begins inside of one."""
    call = calls.frame_cross_attention(dim=16)
    want = built.run(NAME, call)["out"]
    memory = torch.full((call["k"].numel() + 1,), torch.nan)
    call["k"] = memory[1:].view(call["k"].shape).copy_(call["k"])
    assert_close(built.run(NAME, call)["out"], want, atol=FP32 * 4, reason=WHY)


@pytest.mark.parametrize("shape", [{}, {"dim": 64, "audio": 12, "dtype": torch.float16}], ids=["few", "many"])
def test_memory_around_out_stays(shape):
    call = calls.frame_cross_attention(tokens=3, **shape)
    memory = torch.full((4, *call["out"].shape[1:]), 77.0, dtype=call["out"].dtype)
    built.run(NAME, call | {"out": memory[1:3]}, in_place=True)
    assert (memory[[0, 3]] == 77).all()
    assert (memory[1:3] != 77).all()


def test_refusals():
    with pytest.raises(OpError, match="bad shape"):
        built.run(NAME, calls.frame_cross_attention(), head_dim=129)
    with pytest.raises(OpError, match="do not divide"):
        built.run(NAME, calls.frame_cross_attention(), frames=5)
