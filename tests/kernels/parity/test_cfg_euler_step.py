"""``cfg_euler_step`` in Triton against the reference: dtypes, sessions at different steps, sizes beyond one program."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast.kernels import cfg_euler_step as package
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls

NAME = "cfg_euler_step"
KINDS = [(torch.float32, v) for v in (torch.float32, torch.float16)] + [(d, d) for d in kit.LOW]
if kit.ON_GPU:
    KINDS.append((torch.float32, torch.bfloat16))
SHAPES = {"less_than_a_program": (3, 5, 7), "more_than_a_program": (3, 41, 53), "one_element": (1, 1, 1)}
if kit.ON_GPU:
    SHAPES["rest_512"] = (8, 768, 128)


def problem(shape: tuple[int, int, int], latents: torch.dtype, velocity: torch.dtype) -> calls.Call:
    g = torch.Generator().manual_seed(0)
    z, v_cond, v_uncond = (torch.randn(shape, generator=g) for _ in range(3))
    guidance = torch.tensor([6.0, 1.0, 0.0, -2.5])[torch.arange(shape[0]) % 4]
    dt = torch.tensor([-0.125, -0.5, -0.03])[torch.arange(shape[0]) % 3]
    numbers = {"z": z.to(latents), "v_cond": v_cond.to(velocity), "v_uncond": v_uncond.to(velocity)}
    return numbers | {"guidance": guidance, "dt": dt}


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parity(shape, kinds):
    call = problem(shape, *kinds)
    # A difference, a product and a sum of the velocity times dt <= 1/2, and two more: under 5 units of 2^-24 of z.
    kit.check_parity(NAME, call, fp32=6 * 2.0**-24, reason="five fp32 roundings")


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
    for name in ("z", "v_cond", "v_uncond"):
        memory = torch.full((copy[name].numel() + 4,), 77.0, dtype=copy[name].dtype, device=kit.DEVICE)
        copy[name] = memory[offset : offset + copy[name].numel()].view(shape).copy_(copy[name])
        if name == "z":
            around = memory
    args, kwargs = calls.split(NAME, copy)
    package.launch(*args, **kwargs)
    got = copy["z"].cpu()
    if kinds[0] == torch.float32:
        # The velocity, up to 10 times the latents, is rounded before it is made small: bound by both.
        assert_close(got, want, atol=6 * 2.0**-24 * (float(want.abs().max()) + 8), reason="five fp32 roundings")
    else:
        twice_eager(got, want, exact, tiny=1e-6)
    outside = torch.cat([around[:offset], around[offset + got.numel() :]])
    assert len(outside) == 4 and (outside == 77).all()


def test_no_step_changes_nothing():
    call = problem((3, 41, 53), torch.float32, torch.float32)
    call["dt"].zero_()
    assert torch.equal(kit.run(NAME, call, "triton")["z"], call["z"])


def test_guidance_of_one_and_zero_choose_a_branch():
    call = problem((2, 3, 4), torch.float32, torch.float32)
    call["guidance"] = torch.tensor([1.0, 0.0])
    got = kit.run(NAME, call, "triton")["z"]
    chosen = torch.stack([call["v_cond"][0], call["v_uncond"][1]])
    want = call["z"].double() + call["dt"].double()[:, None, None] * chosen.double()
    assert_close(got, want, atol=8 * 2.0**-24 * 4, reason="u + (c - u) is c but for two roundings")


def test_nan_of_one_session_stays_there():
    call = problem((3, 41, 53), torch.float32, torch.float32)
    want = kit.run(NAME, call, "triton")["z"]
    call["v_cond"][1], call["guidance"][1] = torch.nan, torch.nan
    got = kit.run(NAME, call, "triton")["z"]
    assert got[1].isnan().all()
    assert_same_bits(got[[0, 2]], want[[0, 2]], "the other sessions")


def test_memory_around_z_stays():
    call = kit.copied(problem((2, 41, 53), torch.float32, torch.float32))
    memory = torch.full((4, 41, 53), 77.0, device=kit.DEVICE)
    call["z"] = memory[1:3].copy_(call["z"])
    args, kwargs = calls.split(NAME, call)
    package.launch(*args, **kwargs)
    assert (memory[[0, 3]] == 77).all()


def test_float64_is_refused():
    spec = kit.ops.dispatch.Spec("cpu", torch.float32, (("velocity", "torch.float64"),))
    assert package.supports(spec) == (False, "velocities of float32, bfloat16 and float16 only, got torch.float64")
    assert package.supports(spec._replace(dims=()))[0]
    assert not package.supports(spec._replace(dims=(), dtype=torch.float64))[0]


def test_nothing_to_do_no_launch():
    call = kit.copied(problem((2, 3, 4), torch.float32, torch.float32))
    call |= {name: call[name][:, :0] for name in ("z", "v_cond", "v_uncond")}
    args, kwargs = calls.split(NAME, call)
    package.launch(*args, **kwargs)
