"""``x0_renoise_step`` in Triton against the reference: dtypes, counts of motion, sizes beyond one program."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.kernels import x0_renoise_step as package
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.x0_renoise_step import FP32, WHY

NAME = "x0_renoise_step"
KINDS = [(torch.float32, v) for v in (torch.float32, torch.float16)] + [(d, d) for d in kit.LOW]
if kit.ON_GPU:
    KINDS.append((torch.float32, torch.bfloat16))
SHAPES = {"less_than_a_program": (3, 5, 7), "more_than_a_program": (3, 41, 53), "one_element": (1, 1, 1)}
if kit.ON_GPU:
    SHAPES["flashhead"] = (4, 1280, 128)


def problem(shape: tuple[int, int, int], latents: torch.dtype, velocity: torch.dtype) -> calls.Call:
    tokens = shape[1]
    return calls.x0_renoise_step(latents, velocity, shape, held=(tokens // 5, 0, 2 * tokens // 5, tokens))


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parity(shape, kinds):
    call = problem(shape, *kinds)
    got = kit.check_parity(NAME, call, fp32=FP32, reason=WHY)
    for s, count in enumerate(call["held"].tolist()):
        assert_same_bits(got["z"][s, :count], call["z"][s, :count], "tokens that stay")


@settings(max_examples=100 if kit.ON_GPU else 15, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 100)),
    kinds=st.sampled_from(KINDS),
    offset=st.integers(0, 3),
)
def test_any_shape_and_start(shape, kinds, offset):
    """Tensors that start in the middle of 16 bytes, too; the numbers before z and behind it stay."""
    call = problem(shape, *kinds)
    want, exact = (kit.run(NAME, c, "reference")["z"] for c in (call, kit.widened(NAME, call)))
    copy = kit.copied(call)
    for name in ("z", "velocity", "noise"):
        memory = torch.full((copy[name].numel() + 4,), 77.0, dtype=copy[name].dtype, device=kit.DEVICE)
        copy[name] = memory[offset : offset + copy[name].numel()].view(shape).copy_(copy[name])
        if name == "z":
            around = memory
    args, kwargs = calls.split(NAME, copy)
    package.launch(*args, **kwargs)
    got = copy["z"].cpu()
    if kinds[0] == torch.float32:
        assert_close(got, want, atol=FP32, reason=WHY)
    else:
        twice_eager(got, want, exact, tiny=1e-6)
    outside = torch.cat([around[:offset], around[offset + got.numel() :]])
    assert len(outside) == 4 and (outside == 77).all()


def test_nan_of_one_session_stays_there():
    call = problem((3, 41, 53), torch.float32, torch.float32)
    want = kit.run(NAME, call, "triton")["z"]
    call["velocity"][1], call["now"][1] = torch.nan, torch.nan
    got = kit.run(NAME, call, "triton")["z"]
    assert got[1].isnan().all()
    assert_same_bits(got[[0, 2]], want[[0, 2]], "the other sessions")


def test_float64_is_refused():
    spec = kit.ops.dispatch.Spec("cpu", torch.float32, (("velocity", "torch.float64"),))
    assert package.supports(spec) == (False, "velocities of float32, bfloat16 and float16 only, got torch.float64")
    assert package.supports(spec._replace(dims=()))[0]
    assert not package.supports(spec._replace(dims=(), dtype=torch.float64))[0]


def test_nothing_to_do_no_launch():
    call = kit.copied(problem((2, 3, 4), torch.float32, torch.float32))
    call |= {name: call[name][:, :0] for name in ("z", "velocity", "noise")}
    args, kwargs = calls.split(NAME, call)
    package.launch(*args, **kwargs)
