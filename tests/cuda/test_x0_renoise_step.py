"""``x0_renoise_step`` in CUDA, on the CPU, against the reference and fractions rounded once."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.cuda_shim import built
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.x0_renoise_step import FP32, WHY, exact

NAME = "x0_renoise_step"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {"odd": (3, 5, 7), "vectors": (2, 3, 16), "more_than_a_block": (2, 9, 128), "one_number": (1, 1, 1)}


@pytest.mark.parametrize("dtype, velocity", list(itertools.product(DTYPES, DTYPES)), ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parity(shape, dtype, velocity):
    call = calls.x0_renoise_step(dtype, velocity, shape)
    got = built.run(NAME, call)
    kit.compare(NAME, call, got, fp32=FP32, reason=WHY, tiny=1e-5)
    if dtype == torch.float32:
        assert_close(got["z"], exact(call), atol=FP32, reason=WHY)
    for s, count in enumerate(call["held"].tolist()):
        assert_same_bits(got["z"][s, :count], call["z"][s, :count], "tokens that stay")


@pytest.mark.parametrize("numbers", [1, 3])
def test_latents_that_are_not_aligned(numbers):
    """A view that begins inside of a vector: numbers instead, with the same bits, and nothing around is written."""
    call = calls.x0_renoise_step(shape=(2, 3, 16))
    want = built.run(NAME, call)["z"]
    memory = torch.full((2 * 48 + 8,), 77.0)
    z = memory[numbers : numbers + 96].view(2, 3, 16).copy_(call["z"])
    built.run(NAME, call | {"z": z}, in_place=True)
    assert_same_bits(z, want, "z")
    assert (memory[:numbers] == 77).all() and (memory[numbers + 96 :] == 77).all()


def test_sessions_do_not_mix():
    call = calls.x0_renoise_step(shape=(3, 4, 8), held=(0, 0, 0))
    want = built.run(NAME, call)["z"]
    call["velocity"][1, 2, 3] = torch.nan
    got = built.run(NAME, call)["z"]
    assert got[1, 2, 3].isnan() and got.isnan().sum() == 1
    rest = ~got.isnan()
    assert_same_bits(got[rest], want[rest], "all others")


def test_nothing_to_do():
    call = calls.x0_renoise_step(shape=(2, 0, 7), held=(0, 0))
    assert built.run(NAME, call)["z"].numel() == 0
