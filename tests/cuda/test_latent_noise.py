"""``latent_noise`` in CUDA, on the CPU: the integers exactly, the numbers of the reference but for borders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rest_fast import ops
from tests.cuda_shim import built
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.latent_noise import exact, near_zero, neighbours

NAME = "latent_noise"


def reference(call: calls.Call) -> torch.Tensor:
    out = torch.empty_like(call["out"])
    with ops.use_backend("reference"):
        ops.latent_noise(out, call["words"])
    return out


def test_close_to_the_exact_numbers():
    """Against 64 bits of mantissa: half a unit of float32, and next to it nothing that a rounding could hide."""
    call = calls.latent_noise(count=20_000)
    got, want = built.run(NAME, call)["out"], exact(call)
    error = np.abs(got.numpy().astype(np.longdouble) - want)
    assert (error <= 1.0001 * 2.0**-24 * np.abs(want)).all()  # relative: near zero crossings, too


def test_next_to_zeros_of_the_cosine():
    """Without the angle's own rounding some of these are other numbers."""
    call = near_zero()
    want = torch.from_numpy(exact(call).astype(np.float64))
    assert_close(built.run(NAME, call)["out"], want, rtol=1.0001 * 2.0**-24, reason="one rounding to float32")


@pytest.mark.parametrize("count", [1, 3, 4, 511, 512, 513, 2048])
def test_any_count_and_a_prefix_of_the_longest(count):
    call = calls.latent_noise(frames=4, count=count)
    got = built.run(NAME, call)["out"]
    assert neighbours(got, reference(call)) == 0  # expected of a few in 10^9
    longest = built.run(NAME, calls.latent_noise(frames=4, count=2051))["out"]
    assert_same_bits(got, longest[:, :count].contiguous(), f"{count} numbers")


@pytest.mark.parametrize("count", [515, 516])
@pytest.mark.parametrize("start", [1, 2, 4])
def test_any_start_in_memory(start, count):
    """Numbers instead of vectors where these would begin inside of one: the same bits, and nothing else is written."""
    call = calls.latent_noise(frames=2, count=count)
    memory = torch.full((2 * count + 8,), 77.0)
    out = memory[start : start + 2 * count].view(2, count)
    built.run(NAME, call | {"out": out}, in_place=True)
    assert_same_bits(out, built.run(NAME, call)["out"], "out")
    assert (memory[:start] == 77).all() and (memory[start + 2 * count :] == 77).all()


def test_nothing_to_do():
    for frames, count in ((0, 37), (3, 0)):
        assert built.run(NAME, calls.latent_noise(frames=frames, count=count))["out"].shape == (frames, count)
