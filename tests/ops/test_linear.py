"""``linear``: the reference by sums in float64, C++ against it, and what must not depend on anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import ops
from rest_fast.models import linear as layers
from rest_fast.ops.linear import in_columns
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls, cpp

NAME = "linear"
SIZES = {
    "one number": {"rows": 1, "inputs": 1, "outputs": 1},
    "less than a block": {"rows": 3, "inputs": 9, "outputs": 7},
    "whole blocks": {"rows": 12, "inputs": 16, "outputs": 32},
    "a row more than are taken together": {"rows": 49, "inputs": 33, "outputs": 17},
    "of the demo": {"rows": 96, "inputs": 192, "outputs": 768},
    "back": {"rows": 96, "inputs": 768, "outputs": 192},
}


def by_hand(call: calls.Call) -> torch.Tensor:
    """float64 [M, N]."""
    y = (call["x"].double()[:, None] * call["weight"].double()).sum(2)
    if call["bias"] is not None:
        y = y + call["bias"].double()
    inner = (2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)
    return y / 2 * (1 + torch.tanh(inner)) if call["gelu"] else y


def check(call: calls.Call) -> None:
    """K roundings of partial sums, none of which exceeds the sum of absolute products, do not all point one way; a
    GELU's slope is at most 1.13. Over 48 calls the largest error was two fifths of what is allowed."""
    products = call["x"].double().abs() @ call["weight"].double().abs().T
    largest = float(products.max()) + (0 if call["bias"] is None else float(call["bias"].abs().max()))
    out = cpp.run(NAME, call)["out"]
    allowed = cpp.UNIT * largest * (2 + call["x"].shape[1] ** 0.5 / 2)
    assert_close(out, by_hand(call), atol=allowed, reason="sums of products and a GELU in fp32")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
def test_the_reference_is_the_formula(gelu, bias):
    call = calls.linear(dtype=torch.float64, gelu=gelu)
    call = call if bias else call | {"bias": None}
    with ops.use_backend("reference"):
        calls.invoke(NAME, call)
    assert_close(call["out"], by_hand(call), atol=1e-14, reason="ten float64 roundings below 5")


@cpp.MISSING
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_cpp_at_every_kind_of_size(size, gelu, bias):
    call = calls.linear(**size, gelu=gelu)
    check(call if bias else call | {"bias": None})


@cpp.MISSING
@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_width_of_vectors(size, width):
    call = calls.linear(**size)
    want = cpp.run(NAME, call)["out"]
    assert_close(
        cpp.at_width(NAME, call, width),
        want,
        atol=1e-5,
        reason="sums in the same order, with or without fused products",
    )


@cpp.MISSING
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 100), st.integers(0, 70), st.integers(1, 70), st.booleans(), st.integers(0, 9))
def test_any_shape(rows, inputs, outputs, gelu, seed):
    check(calls.linear(rows, inputs, outputs, gelu=gelu, seed=seed))


@cpp.MISSING
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_threads_and_rows_apart(size):
    call = calls.linear(**size)
    one, three = cpp.by_threads(NAME, call)
    assert_same_bits(three["out"], one["out"], "three threads")
    for r in range(0, len(call["x"]), 7):
        alone = call | {name: call[name][r : r + 1] for name in ("x", "out")}
        assert_same_bits(cpp.run(NAME, alone)["out"][0], one["out"][r], f"row {r} alone")


@cpp.MISSING
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
def test_what_is_large_or_no_number(value):
    call = calls.linear()
    call["x"][2, 3] = value
    got, want = cpp.run(NAME, call)["out"], cpp.run(NAME, call, "reference")["out"]
    assert_same_bits(got[[0, 1, 3, 4]], cpp.run(NAME, calls.linear())["out"][[0, 1, 3, 4]], "other rows")
    finite = want[2].isfinite()
    assert torch.equal(got[2].isfinite(), finite)
    assert_close(got[2][finite], want[2][finite], rtol=1e-6, atol=1e-30, reason="a GELU of large numbers is them or 0")


@cpp.MISSING
def test_a_weight_that_changes_is_read_anew():
    call = calls.linear()
    before = in_columns(call["weight"])
    assert in_columns(call["weight"]) is before
    call["weight"].mul_(-2)
    check(call)


@cpp.MISSING
@pytest.mark.parametrize(
    "changes, text",
    [
        *(({name: -1}, "bad shape") for name in ("rows", "inputs", "outputs")),
        ({"vector_width": 5}, "no vectors of that width"),
        *(({name: 0}, "address of a required tensor is null") for name in ("x", "columns", "out")),
    ],
    ids=str,
)
def test_the_module_refuses_and_writes_nothing(changes, text):
    call = calls.linear()
    assert text in cpp.direct(NAME, call, changes)
    assert call["out"].isnan().all()
    assert cpp.direct(NAME, call, {}) == "ok"
    assert not call["out"].isnan().any()


@cpp.MISSING
def test_nothing_to_do():
    for sizes in ((0, 7, 3), (5, 7, 0)):
        assert cpp.run(NAME, calls.linear(*sizes))["out"].numel() == 0


@cpp.MISSING
@pytest.mark.parametrize("shape", [(96,), (2, 48), (3, 1, 4), ()], ids=str)
@pytest.mark.parametrize("gelu", [True, False])
def test_layers_take_it(monkeypatch, gelu, shape):
    """Whatever is before the last dimension, and as well from a part of another tensor."""
    monkeypatch.setattr(layers, "OURS", True)
    layer = torch.nn.Linear(24, 40).requires_grad_(False)
    x = torch.randn(*shape, 30, generator=torch.Generator().manual_seed(0))[..., 3:27]
    want = layer(x)
    want = torch.nn.functional.gelu(want, approximate="tanh") if gelu else want
    assert_close(layers.linear(layer, x, gelu=gelu), want, atol=3e-6, reason="24 products of 1")
    assert in_columns(layer.weight) is layer.weight.__dict__["columns"].value


@cpp.MISSING
def test_layers_of_many_rows_do_not(monkeypatch):
    monkeypatch.setattr(layers, "OURS", True)
    layer = torch.nn.Linear(24, 40).requires_grad_(False)
    layers.linear(layer, torch.randn(layers.MOST_ROWS + 1, 24))
    assert "columns" not in layer.weight.__dict__
