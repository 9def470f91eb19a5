"""``move_and_paint`` in CUDA, on the CPU: pixels by hand, the reference, and a flow that is no number."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops import OpError
from tests.cuda_shim import built
from tests.kit.compare import assert_same_bits
from tests.ops import calls
from tests.ops.cases import move_and_paint as cases

NAME = "move_and_paint"


def run(call: calls.Call) -> torch.Tensor:
    return built.run(NAME, call | {"out": torch.full_like(call["out"], 77)})["out"]


def test_nothing_moved_and_nothing_painted_is_the_photo():
    cases.check_nothing_moved_and_nothing_painted_is_the_photo(run)


def test_a_flow_by_whole_pixels():
    cases.check_a_flow_by_whole_pixels(run)


@pytest.mark.parametrize("size", cases.SIZES, ids=str)
def test_pixels_by_hand(size):
    cases.check_pixels_by_hand(run, size)


@pytest.mark.parametrize("window", cases.WINDOWS, ids=str)
def test_the_reference(window):
    """A row of 320 pixels takes a block's 256 threads twice."""
    cases.check_like_the_reference(run, size=(64, 320), window=window, frames=2)


def test_frames_alone():
    cases.check_frames_alone(run, (64, 64))


@pytest.mark.parametrize("value", cases.NO_FLOWS)
def test_no_flow_leaves_the_photo(value):
    cases.check_no_flow_leaves_the_photo(run, value)


def test_an_output_between_two_words():
    """Single bytes instead of words: the same ones, and nothing around is written."""
    call = calls.move_and_paint(size=(64, 64), photos=1, frames=1)
    memory = torch.full((64 * 64 * 3 + 2,), 77, dtype=torch.uint8)
    out = memory[1:-1].view(1, 64, 64, 3)
    built.run(NAME, call | {"out": out}, in_place=True)
    assert_same_bits(out, run(call), "out")
    assert memory[0] == memory[-1] == 77


def test_maps_that_do_not_fit_into_shared_memory_are_refused():
    call = calls.move_and_paint(size=(64, 64), photos=1, frames=1)
    call |= {"flow": torch.zeros(1, 2, 1, 2048), "paint": torch.zeros(1, 4, 1, 2048)}
    args, kwargs = calls.split(NAME, call)
    spec = calls.OPS[NAME].check(*args, **kwargs)._replace(device="cuda")
    supported, reason = next(b for b in calls.OPS[NAME].backends if b.name == "cuda").supports(spec)
    assert not supported
    assert reason == f"rows of all maps and of bytes: at most 49152 bytes, got {24 * 2048 + 40 * 4 + 3 * 64}"
    with pytest.raises(OpError, match="bad shape"):
        run(call)


def test_no_frames():
    call = calls.move_and_paint(size=(64, 64), frames=0)
    assert run(call).shape == (0, 64, 64, 3)
