"""``move_and_paint``: flows by whole pixels, constant paint, one pixel by hand, and C++ against the reference."""

from __future__ import annotations

import functools

import pytest
import torch

from rest_fast import ops
from rest_fast.ops import native
from tests.ops import calls
from tests.ops.cases import move_and_paint as cases

NAME = "move_and_paint"
compiled = pytest.mark.skipif(native.module()[0] is None, reason=native.module()[1] or "rest_fast._cpu is there")
BACKENDS = ["reference", pytest.param("cpp", marks=compiled)]


def run(backend: str, call: calls.Call) -> torch.Tensor:
    call = call | {"out": torch.full_like(call["out"], 77)}
    with ops.use_backend(backend):
        calls.invoke(NAME, call)
    return call["out"]


cpp = functools.partial(run, "cpp")


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_moved_and_nothing_painted_is_the_photo(backend):
    cases.check_nothing_moved_and_nothing_painted_is_the_photo(functools.partial(run, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_flow_by_whole_pixels(backend):
    cases.check_a_flow_by_whole_pixels(functools.partial(run, backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", cases.SIZES, ids=str)
def test_pixels_by_hand(backend, size):
    cases.check_pixels_by_hand(functools.partial(run, backend), size)


@compiled
@pytest.mark.parametrize("size", [(64, 128), (192, 64), (256, 256)], ids=str)
@pytest.mark.parametrize("window", cases.WINDOWS, ids=str)
def test_cpp_is_the_reference(size, window):
    cases.check_like_the_reference(cpp, size=size, window=window, frames=6)


@compiled
def test_frames_and_threads_do_not_matter():
    cases.check_frames_alone(cpp, (256, 256))
    call, threads = calls.move_and_paint(size=(256, 256), frames=6), torch.get_num_threads()
    whole = cpp(call)
    try:
        torch.set_num_threads(3)
        assert torch.equal(cpp(call), whole)
    finally:
        torch.set_num_threads(threads)


@compiled
@pytest.mark.parametrize("value", cases.NO_FLOWS)
def test_no_flow_leaves_the_photo(value):
    cases.check_no_flow_leaves_the_photo(cpp, value)


def direct(**change) -> int:
    """Error code of the compiled function; ``out`` must be as it was when there is one."""
    call = calls.move_and_paint()
    tensors = ("photo", "flow", "paint", "inner_flow", "inner_paint", "out")
    arguments = {name: call[name].data_ptr() for name in tensors}
    arguments |= {"shape": (2, 4, 64, 128), "map": (5, 6), "inner_map": (3, 4), "window": (8, 32, 40, 64), "fade": 4}
    code = native.module()[0].move_and_paint(*(arguments | change).values())
    assert bool((call["out"] == 77).all()) == (code != 0)
    return code


@compiled
@pytest.mark.parametrize(
    "change, text",
    [
        ({"shape": (3, 4, 64, 128)}, "bad shape"),
        ({"shape": (2, 4, 1, 128)}, "bad shape"),
        ({"map": (0, 6)}, "bad shape"),
        ({"inner_map": (3, 0)}, "bad shape"),
        ({"window": (30, 32, 40, 64)}, "bad shape"),
        ({"fade": 0}, "bad shape"),
        ({"photo": 0}, "the address of a required tensor is null"),
        ({"inner_paint": 0}, "the address of a required tensor is null"),
    ],
)
def test_the_compiled_function_checks_for_itself(change, text):
    assert direct() == 0
    assert text in native.module()[0].error_string(direct(**change))
