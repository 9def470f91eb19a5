"""``cfg_euler_step`` in CUDA, on the CPU, against the reference and fractions rounded once."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.cuda_shim import built
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.cfg_euler_step import exact

NAME = "cfg_euler_step"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A difference, two products and two sums of numbers up to 7 times the largest velocity: 5 units of 2^-24 of 40.
FP32, WHY = 5 * 40 * 2.0**-24, "5 fp32 roundings of numbers below 40"
SHAPES = {"odd": (3, 5, 7), "vectors": (2, 3, 16), "more_than_a_block": (2, 9, 128), "one_number": (1, 1, 1)}


@pytest.mark.parametrize("dtype, velocity", list(itertools.product(DTYPES, DTYPES)), ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parity(shape, dtype, velocity):
    call = calls.cfg_euler_step(dtype, velocity, shape)
    got = built.run(NAME, call)
    kit.compare(NAME, call, got, fp32=FP32, reason=WHY, tiny=1e-5)
    if dtype == torch.float32:
        assert_close(got["z"], exact(call), atol=FP32, reason=WHY)


@pytest.mark.parametrize("numbers", [1, 3])
def test_latents_that_are_not_aligned(numbers):
    """A view that begins inside of a vector: numbers instead, with the same bits, and nothing around is written."""
    call = calls.cfg_euler_step(shape=(2, 3, 16))
    want = built.run(NAME, call)["z"]
    memory = torch.full((2 * 48 + 8,), 77.0)
    z = memory[numbers : numbers + 96].view(2, 3, 16).copy_(call["z"])
    built.run(NAME, call | {"z": z}, in_place=True)
    assert_same_bits(z, want, "z")
    assert (memory[:numbers] == 77).all() and (memory[numbers + 96 :] == 77).all()


def test_guidance_zero_one_and_no_step():
    call = calls.cfg_euler_step(shape=(3, 4, 8))
    call |= {"guidance": torch.tensor([0.0, 1.0, 6.0]), "dt": torch.tensor([1.0, 1.0, 0.0])}
    call["v_cond"][0], call["z"][:2] = 3e38, 0
    got = built.run(NAME, call)["z"]
    assert_close(got[0], call["v_uncond"][0], atol=0.0, reason="guidance 0 sees the unconditional velocity alone")
    assert_close(got[1], call["v_cond"][1], atol=2.0**-22, reason="u + (c - u), numbers below 4")
    assert_same_bits(got[2], call["z"][2], "z after a step of 0")


def test_sessions_do_not_mix():
    call = calls.cfg_euler_step(shape=(3, 4, 8))
    want = built.run(NAME, call)["z"]
    call["v_cond"][1, 2, 3] = torch.nan
    got = built.run(NAME, call)["z"]
    assert got[1, 2, 3].isnan() and got.isnan().sum() == 1
    rest = ~got.isnan()
    assert_same_bits(got[rest], want[rest], "all others")


def test_nothing_to_do():
    call = calls.cfg_euler_step(shape=(2, 0, 7))
    assert built.run(NAME, call)["z"].numel() == 0
