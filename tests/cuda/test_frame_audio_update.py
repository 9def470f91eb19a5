"""``frame_audio_update`` in CUDA, on the CPU: against the reference, and what each lane may touch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.ops.dispatch import OpError
from tests.cuda_shim import built
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.frame_audio_update import SHAPES

NAME = "frame_audio_update"
# Scores are below 16 and off by a dozen units of 2^-24 of that: a share is off by 16 * 12 units, relatively, and the
# result by twice that, as no more than one update vector a head is added up.
FP32, WHY = 2 * 16 * 12 * 2.0**-24, "scores below 16 with a dozen fp32 roundings"
SIZES = SHAPES | {
    "demo": {"frames": 2, "tokens": 16, "audio": 4, "heads": 3, "dim": 64},
    "tokens_left_over": {"frames": 2, "tokens": 19, "heads": 5, "dim": 24},
    "heads_of_three_vectors": {"frames": 1, "tokens": 9, "heads": 12, "dim": 24},
    "two_parts_of_a_row": {"frames": 1, "tokens": 3, "audio": 3, "heads": 18, "dim": 64},
    "vectors_of_one_number": {"frames": 1, "tokens": 9, "audio": 6, "heads": 4, "dim": 37},
    "head_beyond_a_warp": {"frames": 1, "tokens": 2, "heads": 2, "dim": 149},
}


def check(call: calls.Call) -> torch.Tensor:
    got = built.run(NAME, call)
    # The tiny error of 16 bits: two fp32 sums in another order, where luck makes the reference exact.
    kit.compare(NAME, call, got, fp32=FP32, reason=WHY, tiny=1e-5)
    return got["x"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_parity(shape, dtype):
    check(calls.frame_audio_update(**shape, dtype=dtype))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_any_shape(data):
    names, most = ("frames", "tokens", "heads", "dim", "lanes", "slots"), (3, 20, 5, 40, 3, 3)
    sizes = {name: data.draw(st.integers(1, n), label=name) for name, n in zip(names, most, strict=True)}
    hearing = data.draw(st.integers(1, sizes["lanes"]), label="hearing")
    one = st.integers(-1, sizes["slots"] - 1)
    slot = tuple(data.draw(st.lists(one, min_size=hearing, max_size=hearing), label="slot"))
    audio, seed = data.draw(st.integers(2, 5), label="audio"), data.draw(st.integers(0, 99))
    call = calls.frame_audio_update(**sizes, audio=audio, slot=slot, seed=seed)
    got, want = built.run(NAME, call)["x"], kit.run(NAME, call, "reference")["x"]
    scale = max(float(torch.nan_to_num(call[name]).abs().max()) for name in ("x", "base", "update"))
    assert_close(got, want, atol=FP32 * scale * sizes["heads"], reason=WHY)


def test_rows_that_are_not_aligned():
    """Whole vectors by their sizes, but x begins one number later: one channel at a time, the same result."""
    call = calls.frame_audio_update(**SIZES["demo"], dtype=torch.bfloat16)
    want = built.run(NAME, call)["x"]
    memory = torch.zeros(call["q"].numel() + 1, dtype=torch.bfloat16)
    memory[1:] = call["q"].flatten()
    call["q"] = memory[1:].view(call["q"].shape)
    step = 2.0**-7
    got = built.run(NAME, call)["x"]
    assert_close(got, want, rtol=step, atol=1e-4, reason="another order of a dot product: a rounding to bf16 may flip")


@pytest.mark.parametrize("slot", [(2, 3, -2), (2, 2**31 - 1, -(2**31))], ids=str)
def test_a_slot_out_of_range_writes_nothing(slot):
    call = calls.frame_audio_update(slot=slot)
    got = built.run(NAME, call)["x"]
    assert_same_bits(got[1:], call["x"][1:], "lanes of no slot")
    assert not torch.equal(got[0], call["x"][0])


def test_other_frames_lanes_and_slots_are_not_heard():
    """NaN in a frame's keys and in one query reach their tokens and no others, whose bits stay."""
    call = calls.frame_audio_update(slot=(2, 0, -1))
    want = built.run(NAME, call)["x"]
    call["keys"][0, 1, -1, 1, 2], call["q"][0, 4, 1] = torch.nan, torch.nan
    lost = torch.zeros(want.shape[:2], dtype=torch.bool)
    lost[1, 4:8], lost[0, 4] = True, True
    got = built.run(NAME, call)["x"]
    assert got[lost].isnan().all()
    assert_same_bits(got[~lost], want[~lost], "tokens of other frames and lanes")


def test_a_lane_alone_has_the_same_bits():
    call = calls.frame_audio_update(**SIZES["demo"], slot=(2, 0, 1))
    want = built.run(NAME, call)["x"]
    for lane in range(3):
        alone = call | {name: call[name][lane : lane + 1].clone() for name in ("x", "q", "slot")}
        assert_same_bits(built.run(NAME, alone)["x"][0], want[lane], f"lane {lane}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores_choose_one_token(dtype):
    """Scores of 1e5: every share but the largest is zero, and the first token's score is zero."""
    call = calls.frame_audio_update(frames=1, tokens=20, audio=4, heads=1, dim=16, slot=(0,), slots=1, dtype=dtype)
    call["x"].zero_(), call["base"].zero_()
    sign = torch.tensor([1.0, -1.0, 0.5])[:, None]
    call["q"][:] = call["q"][:, :1, :].abs()
    call["keys"][0, 0, :, 0] = (3e4 * sign * call["q"][0, 0].sign().float()).to(dtype)
    got = built.run(NAME, call)["x"]
    assert_same_bits(got[0], call["update"][0, 0, 0].expand(20, -1), "the token of the largest score")
    call["keys"][:, :, [0, 2]] = -call["keys"][:, :, [0, 2]].abs()
    assert not built.run(NAME, call)["x"][0].any(), "all scores below zero: the first token alone"


def test_memory_around_x_and_inputs_stay():
    call = calls.frame_audio_update(tokens=5)
    memory = torch.full((5, *call["x"].shape[1:]), 77.0)
    memory[1:4] = call["x"]
    before = {name: v.clone() for name, v in call.items() if isinstance(v, torch.Tensor) and name != "x"}
    call["x"] = memory[1:4]
    built.run(NAME, call, in_place=True)
    assert (memory[[0, 4]] == 77).all() and (memory[1:4] != 77).all()
    for name, old in before.items():
        assert_same_bits(call[name], old, name)


def test_what_the_launcher_refuses():
    call = calls.frame_audio_update()
    for changed, says in (
        ({"x": 0}, "null"),
        ({"width": 0}, "bad shape"),
        ({"frames": 5}, "do not divide"),
        ({"others": 257}, "bad shape"),  # a rank over 512
        ({"hearing": 4}, "bad shape"),
        ({"dtype": 7}, "dtype"),
    ):
        with pytest.raises(OpError, match=says):
            built.run(NAME, call, **changed)
