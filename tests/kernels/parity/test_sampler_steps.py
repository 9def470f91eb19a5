"""The steps of a sampler in Triton: what holds for each of them, sizes beyond one program and any start in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.kernels import cfg_euler_step, x0_renoise_step
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls
from tests.ops.cases.sampler_steps import STEPS, placed

PACKAGES = {"cfg_euler_step": cfg_euler_step, "x0_renoise_step": x0_renoise_step}
KINDS = [(torch.float32, v) for v in (torch.float32, torch.float16)] + [(d, d) for d in kit.LOW]
if kit.ON_GPU:
    KINDS.append((torch.float32, torch.bfloat16))
SHAPES = {"less_than_a_program": (3, 5, 7), "more_than_a_program": (3, 41, 53), "one_element": (1, 1, 1)}
if kit.ON_GPU:
    SHAPES |= {"rest_512": (8, 768, 128), "flashhead": (4, 1280, 128)}
# Of the largest result. A difference, a product and a sum of the velocity times dt <= 1/2, and two more: under 5 units
# of 2^-24 of z. What a step with noise adds up is below 8.
FP32 = {"cfg_euler_step": 6 * 2.0**-24, "x0_renoise_step": STEPS["x0_renoise_step"].FP32}


def bound(name: str, want: torch.Tensor) -> float:
    """The same for any numbers: a guided velocity, up to 10 times the latents, is rounded before it is made small."""
    return FP32[name] * (float(want.abs().max()) + 8) if name == "cfg_euler_step" else FP32[name]


def launch(name: str, call: calls.Call) -> None:
    args, kwargs = calls.split(name, call)
    PACKAGES[name].launch(*args, **kwargs)


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", STEPS)
def test_parity(name, shape, kinds):
    kit.check_parity(name, STEPS[name].problem(shape, *kinds), fp32=FP32[name], reason="five or six fp32 roundings")


@pytest.mark.parametrize("name", STEPS)
@settings(max_examples=100 if kit.ON_GPU else 15, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 100)),
    kinds=st.sampled_from(KINDS),
    offset=st.integers(0, 3),
)
def test_any_shape_and_start(name, shape, kinds, offset):
    """Tensors that start in the middle of 16 bytes, too; the numbers before z and behind it stay."""
    call = STEPS[name].problem(shape, *kinds)
    want, exact = (kit.run(name, c, "reference")["z"] for c in (call, kit.widened(name, call)))
    copy = kit.copied(call)
    for latents in STEPS[name].LATENTS[1:]:
        copy[latents], _ = placed(copy[latents], offset)
    copy["z"], around = placed(copy["z"], offset)
    launch(name, copy)
    got = copy["z"].cpu()
    if kinds[0] == torch.float32:
        assert_close(got, want, atol=bound(name, want), reason="five or six fp32 roundings")
    else:
        twice_eager(got, want, exact, tiny=1e-6)
    assert all((memory == 77).all() for memory in around)


@pytest.mark.parametrize("name, argument", [("cfg_euler_step", "guidance"), ("x0_renoise_step", "now")])
def test_nan_of_one_session_stays_there(name, argument):
    call = STEPS[name].problem((3, 41, 53), torch.float32, torch.float32)
    want = kit.run(name, call, "triton")["z"]
    call[STEPS[name].LATENTS[1]][1], call[argument][1] = torch.nan, torch.nan
    got = kit.run(name, call, "triton")["z"]
    assert got[1].isnan().all()
    assert_same_bits(got[[0, 2]], want[[0, 2]], "the other sessions")


@pytest.mark.parametrize("name", STEPS)
def test_memory_around_z_stays(name):
    call = kit.copied(STEPS[name].problem((2, 41, 53), torch.float32, torch.float32))
    memory = torch.full((4, 41, 53), 77.0, device=kit.DEVICE)
    launch(name, call | {"z": memory[1:3].copy_(call["z"])})
    assert (memory[[0, 3]] == 77).all()


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_float64_is_refused(package):
    spec = kit.ops.dispatch.Spec("cpu", torch.float32, (("velocity", "torch.float64"),))
    assert package.supports(spec) == (False, "velocities of float32, bfloat16 and float16 only, got torch.float64")
    assert package.supports(spec._replace(dims=()))[0]
    assert not package.supports(spec._replace(dims=(), dtype=torch.float64))[0]


@pytest.mark.parametrize("name", STEPS)
def test_nothing_to_do_no_launch(name):
    call = kit.copied(STEPS[name].problem((2, 3, 4), torch.float32, torch.float32))
    launch(name, call | {latents: call[latents][:, :0] for latents in STEPS[name].LATENTS})
