"""``rotate_context`` in C++: the time pairs of the moving slots, and not one bit elsewhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rest_fast import ops
from rest_fast.ops.dispatch import OpError
from tests.kit.compare import assert_close, assert_same_bits, twice_eager
from tests.ops import calls, cpp
from tests.ops.cases.rotate_context import CASES, problems

NAME = "rotate_context"
pytestmark = cpp.MISSING
# Two products and a sum, on both sides, of pairs whose parts add up to at most 1.42 of the largest.
FP32 = 9 * cpp.UNIT
SIZES = CASES | {
    "demo": {"heads": 3, "dim": 64, "sink": 16, "chunk": 48, "skip": (16, 64, 40), "cache": (2, 5, 2, 112)},
    "wide": {"heads": 32, "dim": 64, "cache": (1, 5, 1, 11)},
}


def moving(call: calls.Call) -> torch.Tensor:
    """bool like k_cache: what may change. Independent of the reference: one slot and pair at a time."""
    cache, chunk = call["k_cache"], call["chunk"]
    pairs = cache.shape[-1] * cache.shape[-2] // 2
    mask = torch.zeros(*cache.shape[:4], pairs, 2, dtype=torch.bool)
    for row, skip, enabled in zip(*(call[n].tolist() for n in ("row_index", "skip_slot", "enabled"))):
        for slot in range(call["sink"], cache.shape[3]) if enabled else ():
            if not skip <= slot < skip + chunk:
                mask[:, row, :, slot, pairs - 3 * (2 * pairs // 6) :: 3] = True
    return mask.view(cache.shape)


def check_fp32(call: calls.Call) -> None:
    got, want, mask = cpp.run(NAME, call)["k_cache"], cpp.run(NAME, call, "reference")["k_cache"], moving(call)
    assert_same_bits(got[~mask], call["k_cache"][~mask], "what stays")
    largest = float(call["k_cache"].abs().max())
    assert_close(got[mask], want[mask], atol=FP32 * largest, reason="two products and a sum in fp32")


@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
def test_fp32_is_the_reference(case):
    check_fp32(calls.rotate_context(**case))


@pytest.mark.parametrize("dtype", cpp.LOW, ids=str)
@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
def test_low_precision_is_at_most_twice_eager(case, dtype):
    call = calls.rotate_context(**case, dtype=dtype)
    mask, got = moving(call), cpp.run(NAME, call)["k_cache"]
    assert_same_bits(got[~mask], call["k_cache"][~mask], "what stays")
    if not mask.any():
        return
    eager = cpp.run(NAME, call, "reference")["k_cache"]
    exact = cpp.run(NAME, cpp.widened(call, "k_cache"), "reference")["k_cache"]
    twice_eager(got[mask], eager[mask], exact[mask], tiny=1e-6)
    reason = "fp32 inside, one rounding at the end"
    assert_close(got[mask], exact[mask], rtol=1.01 * cpp.LOW[dtype], atol=1e-6, reason=reason)


@pytest.mark.parametrize("dtype", [torch.float32, *cpp.LOW], ids=str)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -0.0])
def test_what_stays_is_not_even_computed(poison, dtype):
    """Multiplying by one and adding zero times a neighbour would turn infinities into NaN and -0 into 0."""
    call = calls.rotate_context(dtype=dtype)
    mask = moving(call)
    clean = cpp.run(NAME, call)["k_cache"]
    call["k_cache"][~mask] = poison
    got = cpp.run(NAME, call)["k_cache"]
    assert_same_bits(got[mask], clean[mask], "what moves")
    assert_same_bits(got[~mask], call["k_cache"][~mask], "what stays")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(problems())
def test_any_shape_row_and_slot(call):
    check_fp32(call)


def test_there_and_back_is_where_it_was():
    call = calls.rotate_context(**SIZES["demo"])
    back = cpp.run(NAME, call)
    back["shift"] = call["shift"] * torch.tensor([1.0, -1.0])
    back = cpp.run(NAME, back)
    # Six roundings, and the table's own: c^2 + s^2 is one but for 2^-23.
    assert_close(back["k_cache"], call["k_cache"], atol=12 * cpp.UNIT * 5, reason="two rotations of |k| < 5")


def test_disabled_lanes_may_share_a_row():
    call = calls.rotate_context(rows=(4, 4, 1), skip=(2, 2, 8), enabled=(0, 0, 1))
    assert cpp.direct(NAME, call | {"k_cache": call["k_cache"].clone()}, {}) == "ok"
    got = cpp.run(NAME, call)["k_cache"]
    assert_same_bits(got[:, 4], call["k_cache"][:, 4], "the scratch row")


@pytest.mark.parametrize("enabled", [(1, 1, 1), (1, 0, 1), (0, 1, 0)], ids=str)
def test_the_row_of_an_enabled_lane_is_no_other_lane_s(enabled):
    call = calls.rotate_context(rows=(4, 4, 1), skip=(2, 2, 8), enabled=enabled)
    before = call["k_cache"].clone()
    for backend in ("cpp", "reference"):
        with pytest.raises(
            OpError, match=r"row_index: expected a row of its own for each enabled lane, got \[4, 4, 1\]"
        ):
            cpp.run(NAME, call, backend)
    assert "row_index of an enabled lane is also that of another lane" in cpp.direct(NAME, call, {})
    assert_same_bits(call["k_cache"], before, "k_cache")


def test_threads():
    one, three = cpp.by_threads(NAME, calls.rotate_context(**SIZES["demo"] | {"cache": (8, 5, 2, 112)}))
    assert_same_bits(three["k_cache"], one["k_cache"], "k_cache")


@pytest.mark.parametrize(
    "argument, value, text",
    [
        ("row_index", 5, "row_index is outside the cache rows"),
        ("row_index", -2, "row_index is outside the cache rows"),
        ("skip_slot", 9, "outside the context slots"),
        ("skip_slot", 1, "outside the context slots"),
    ],
)
def test_the_module_checks_indices_itself_before_it_writes(argument, value, text):
    """The bad lane is the last one, and not even the first is written."""
    call = calls.rotate_context()
    call[argument][2] = value
    before = call["k_cache"].clone()
    assert text in cpp.direct(NAME, call, {})
    assert_same_bits(call["k_cache"], before, "k_cache")


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"dtype": 3}, "dtype is not one of"),
        ({"dtype": -1}, "dtype is not one of"),
        ({"width": 19}, "bad shape"),
        ({"width": 0}, "bad shape"),
        *(({name: -1}, "bad shape") for name in ("batch", "layers", "rows", "banks", "slots")),
        ({"slots": 4}, "outside the context slots"),
        ({"sink": -1}, "outside the context slots"),
        ({"chunk": 0}, "outside the context slots"),
        ({"chunk": 10}, "outside the context slots"),
        ({"chunk": 2**62, "sink": 2**62}, "outside the context slots"),
        *(
            ({name: 0}, "address of a required tensor is null")
            for name in ("k_cache", "shift", "row_index", "skip_slot", "enabled")
        ),
    ],
    ids=str,
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.rotate_context()
    before = call["k_cache"].clone()
    assert text in cpp.direct(NAME, call, changes)
    assert_same_bits(call["k_cache"], before, "k_cache")
    assert cpp.direct(NAME, call, {}) == "ok"
    assert (call["k_cache"] != before).any()


def test_it_is_the_default_where_it_is_compiled():
    for dtype, name in ((torch.float32, "cpp"), (torch.float16, "cpp"), (torch.float64, "reference")):
        args, kwargs = calls.split(NAME, calls.rotate_context(dtype=dtype))
        assert ops.rotate_context.choose(ops.rotate_context.check(*args, **kwargs), None).name == name
