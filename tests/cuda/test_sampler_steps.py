"""The steps of a sampler in CUDA, on the CPU, against the reference and fractions rounded once."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.cuda_shim import built
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.sampler_steps import DTYPES, STEPS, moving, placed

SHAPES = {"odd": (3, 5, 7), "vectors": (2, 3, 16), "more_than_a_block": (2, 9, 128), "one_number": (1, 1, 1)}


@pytest.mark.parametrize("dtype, velocity", list(itertools.product(DTYPES, DTYPES)), ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", STEPS)
def test_parity(name, shape, dtype, velocity):
    step, call = STEPS[name], calls.VALID[name](dtype, velocity, shape)
    got = built.run(name, call)
    kit.compare(name, call, got, fp32=step.FP32, reason=step.WHY, tiny=1e-5)
    if dtype == torch.float32:
        assert_close(got["z"], step.exact(call), atol=step.FP32, reason=step.WHY)


@pytest.mark.parametrize("numbers", [1, 3])
@pytest.mark.parametrize("name", STEPS)
def test_latents_that_are_not_aligned(name, numbers):
    """A view that begins inside of a vector: numbers instead, with the same bits, and nothing around is written."""
    call = calls.VALID[name](shape=(2, 3, 16))
    want = built.run(name, call)["z"]
    z, around = placed(call["z"], numbers)
    built.run(name, call | {"z": z}, in_place=True)
    assert_same_bits(z, want, "z")
    assert all((memory == 77).all() for memory in around)


@pytest.mark.parametrize("name", STEPS)
def test_sessions_do_not_mix(name):
    call = moving(name, shape=(3, 4, 8))
    want = built.run(name, call)["z"]
    call[STEPS[name].LATENTS[1]][1, 2, 3] = torch.nan
    got = built.run(name, call)["z"]
    assert got[1, 2, 3].isnan() and got.isnan().sum() == 1
    rest = ~got.isnan()
    assert_same_bits(got[rest], want[rest], "all others")


@pytest.mark.parametrize("name", STEPS)
def test_nothing_to_do(name):
    assert built.run(name, moving(name, shape=(2, 0, 7)))["z"].numel() == 0
