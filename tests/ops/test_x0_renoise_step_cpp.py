"""``x0_renoise_step`` in C++ against exact fractions and the reference, in every pair of dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.ops.dispatch import OpError
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls, cpp
from tests.ops.cases.x0_renoise_step import FP32, WHY, exact

NAME = "x0_renoise_step"
pytestmark = cpp.MISSING
DTYPES = (torch.float32, *cpp.LOW)


@pytest.mark.parametrize("velocity", DTYPES, ids=str)
def test_fp32_latents_are_the_formula(velocity):
    call = calls.x0_renoise_step(torch.float32, velocity)
    assert_close(cpp.run(NAME, call)["z"], exact(call), atol=FP32, reason=WHY)


@pytest.mark.parametrize("velocity", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", cpp.LOW, ids=str)
def test_low_latents_are_rounded_once(dtype, velocity):
    call = calls.x0_renoise_step(dtype, velocity)
    got, want = cpp.run(NAME, call)["z"], exact(call)
    assert_close(got, want, rtol=1.01 * cpp.LOW[dtype], atol=FP32, reason="fp32 inside, one rounding at the end")
    twice_eager(got, cpp.run(NAME, call, "reference")["z"], want, tiny=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 40)),
    st.lists(st.integers(0, 9), min_size=4, max_size=4),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
def test_any_shape_and_count(shape, held, velocity, seed):
    call = calls.x0_renoise_step(torch.float32, velocity, shape, tuple(min(n, shape[1]) for n in held), seed)
    got, want = cpp.run(NAME, call)["z"], cpp.run(NAME, call, "reference")["z"]
    assert_close(got, want, atol=2 * FP32, reason="six fp32 roundings on both sides")
    for s, count in enumerate(call["held"].tolist()):
        assert_same_bits(got[s, :count], call["z"][s, :count], "tokens that stay")


@pytest.mark.parametrize("name", ["z", "velocity", "noise", "now", "after"])
def test_nan_of_one_session_stays_there(name):
    call = calls.x0_renoise_step(held=(0, 0, 0))
    clean = cpp.run(NAME, call)["z"]
    call[name][1] = torch.nan
    got = cpp.run(NAME, call)["z"]
    assert got[1].isnan().all()
    assert_same_bits(got[[0, 2]], clean[[0, 2]], "other sessions")


def test_threads():
    one, three = cpp.by_threads(NAME, calls.x0_renoise_step(shape=(3, 333, 101), held=(111, 0, 40)))
    assert_same_bits(three["z"], one["z"], "z")


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"velocity_dtype": -1}, "dtype is not one of"),
        *(({name: -1}, "bad shape") for name in ("sessions", "tokens", "channels")),
        *(
            ({name: 0}, "address of a required tensor is null")
            for name in ("z", "velocity", "noise", "now", "after", "held")
        ),
    ],
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.x0_renoise_step()
    before = call["z"].clone()
    assert text in cpp.direct(NAME, call, changes)
    assert_same_bits(call["z"], before, "z")
    assert cpp.direct(NAME, call, {}) == "ok"
    assert (call["z"] != before).any()


def test_nothing_to_do():
    for shape in ((0, 5, 7), (2, 0, 7), (2, 3, 0)):
        assert cpp.run(NAME, calls.x0_renoise_step(shape=shape, held=(0, 0)))["z"].shape == shape


def test_it_is_the_default_where_it_is_compiled():
    double = torch.float64
    for z, velocity, name in ((torch.float32, torch.bfloat16, "cpp"), (torch.float32, double, "reference")):
        args, kwargs = calls.split(NAME, calls.x0_renoise_step(z, velocity))
        assert ops.x0_renoise_step.choose(ops.x0_renoise_step.check(*args, **kwargs), None).name == name
    with pytest.raises(OpError, match=r"'cpp' cannot run .*velocity dtype torch.float64 is not compiled in"):
        cpp.run(NAME, calls.x0_renoise_step(torch.float32, double))
