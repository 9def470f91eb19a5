"""``latent_noise`` in C++: the integers exactly, the numbers of the reference but for borders, error codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import noise, ops
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls, cpp
from tests.ops.cases.latent_noise import exact, near_zero, neighbours

NAME = "latent_noise"
pytestmark = cpp.MISSING


def test_close_to_the_exact_numbers():
    """Against 64 bits of mantissa: half a unit of float32, and next to it nothing that a rounding could hide."""
    call = calls.latent_noise(count=20_000)
    got, want = cpp.run(NAME, call)["out"], exact(call)
    error = np.abs(got.numpy().astype(np.longdouble) - want)
    assert (error <= 1.0001 * 2.0**-24 * np.abs(want)).all()  # relative: near zero crossings, too


def test_the_reference_but_for_borders():
    """Both are within 10 units of 2^-53: one of 10^8 numbers may be the neighbour, here none was."""
    call = calls.latent_noise(frames=4, count=1 << 18)
    got, want = cpp.run(NAME, call)["out"], cpp.run(NAME, call, "reference")["out"]
    assert neighbours(got, want) <= 1


def test_next_to_zeros_of_the_cosine():
    """Without the angle's own rounding, which a compiler may fuse away, some of these are other numbers."""
    call = near_zero()
    got = cpp.run(NAME, call)["out"]
    want = torch.from_numpy(exact(call).astype(np.float64))
    assert (want.abs().amin(1) < 3e-8).all(), "each frame has such a number"
    assert_close(got, want, rtol=1.0001 * 2.0**-24, reason="one rounding to float32")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    frames=st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
        min_size=1,
        max_size=4,
    ),
    count=st.integers(1, 1500),
)
def test_any_words_and_count(frames, count):
    words = torch.tensor([noise.words(*frame) for frame in frames], dtype=torch.int32)
    call = {"out": calls.nans(len(frames), count), "words": words}
    got = cpp.run(NAME, call)["out"]
    assert_close(
        got, cpp.run(NAME, call, "reference")["out"], rtol=2.0**-23, reason="the same float32 or its neighbour"
    )


def test_a_prefix_does_not_depend_on_the_count():
    longest = cpp.run(NAME, calls.latent_noise(count=2000))["out"]
    for count in (1, 3, 255, 256, 257, 1999):
        got = cpp.run(NAME, calls.latent_noise(count=count))["out"]
        assert_same_bits(got, longest[:, :count].contiguous(), f"{count} numbers")


def test_threads_and_frames_apart():
    call = calls.latent_noise(frames=5, count=40_000)
    one, three = cpp.by_threads(NAME, call)
    assert_same_bits(three["out"], one["out"], "out")
    alone = {"out": call["out"][2:3], "words": call["words"][2:3].clone()}
    assert_same_bits(cpp.run(NAME, alone)["out"][0], one["out"][2], "frame 2")


def test_memory_around_the_output_stays():
    memory = torch.full((4, 37), 77.0)
    calls.invoke(NAME, calls.latent_noise(frames=2) | {"out": memory[1:3]})
    assert (memory[[0, 3]] == 77).all() and (memory[1:3] != 77).all()


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"frames": -1}, "bad shape"),
        ({"count": -1}, "bad shape"),
        ({"count": 2**34 + 1}, "bad shape"),
        ({"out": 0}, "address of a required tensor is null"),
        ({"words": 0}, "address of a required tensor is null"),
    ],
    ids=str,
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.latent_noise()
    assert text in cpp.direct(NAME, call, changes)
    assert call["out"].isnan().all()
    assert cpp.direct(NAME, call, {}) == "ok"
    assert call["out"].isfinite().all()


def test_nothing_to_do():
    for frames, count in ((0, 37), (3, 0)):
        assert cpp.run(NAME, calls.latent_noise(frames=frames, count=count))["out"].shape == (frames, count)


def test_it_is_the_default_where_it_is_compiled():
    args, kwargs = calls.split(NAME, calls.latent_noise())
    assert ops.latent_noise.choose(ops.latent_noise.check(*args, **kwargs), None).name == "cpp"
