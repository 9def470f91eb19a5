"""The steps of a sampler in C++: what holds for each of them. Their formulas are in files of their own."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops.dispatch import OpError
from tests.kit.compare import assert_same_bits
from tests.ops import calls, cpp
from tests.ops.cases.sampler_steps import STEPS, moving, numbers

pytestmark = cpp.MISSING

DTYPE, SIZE, ADDRESS = "dtype is not one of", "bad shape", "address of a required tensor is null"
REFUSED = [
    (name, changes, text)
    for name, step in STEPS.items()
    for changes, text in [
        *(({argument: value}, DTYPE) for argument in ("dtype", "velocity_dtype") for value in (3, -1)),
        *(({size: -1}, SIZE) for size in step.SIZES),
        *(({tensor: 0}, ADDRESS) for tensor in calls.VALID[name]()),
    ]
]


@pytest.mark.parametrize("name, argument", [(name, n) for name in STEPS for n in numbers(calls.VALID[name]())])
def test_nan_of_one_session_stays_there(name, argument):
    call = moving(name)
    clean = cpp.run(name, call)["z"]
    call[argument][1] = torch.nan
    got = cpp.run(name, call)["z"]
    assert got[1].isnan().all()
    assert_same_bits(got[[0, 2]], clean[[0, 2]], "other sessions")


@pytest.mark.parametrize("name, more", [("cfg_euler_step", {}), ("x0_renoise_step", {"held": (111, 0, 40)})])
def test_threads(name, more):
    one, three = cpp.by_threads(name, calls.VALID[name](shape=(3, 333, 101), **more))
    assert_same_bits(three["z"], one["z"], "z")


@pytest.mark.parametrize("name, changes, text", REFUSED)
def test_the_module_refuses_and_writes_nothing(name, changes, text):
    call = calls.VALID[name]()
    before = call["z"].clone()
    assert text in cpp.direct(name, call, changes)
    assert_same_bits(call["z"], before, "z")
    assert cpp.direct(name, call, {}) == "ok"
    assert (call["z"] != before).any()


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_nothing_to_do(name, shape):
    assert cpp.run(name, moving(name, shape=shape))["z"].shape == shape


@pytest.mark.parametrize("name", STEPS)
def test_it_is_the_default_where_it_is_compiled(name):
    op, double = calls.OPS[name], torch.float64
    for velocity, backend in ((torch.bfloat16, "cpp"), (double, "reference")):
        args, kwargs = calls.split(name, calls.VALID[name](torch.float32, velocity))
        assert op.choose(op.check(*args, **kwargs), None).name == backend
    with pytest.raises(OpError, match=r"'cpp' cannot run .*velocity dtype torch.float64 is not compiled in"):
        cpp.run(name, calls.VALID[name](torch.float32, double))
