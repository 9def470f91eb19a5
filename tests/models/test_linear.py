"""Linear layers through oneDNN: the numbers of the layer and of torch's GELU, and the layer itself where it cannot."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.models import linear as module
from rest_fast.models.linear import PRODUCT, linear
from tests.kit.compare import twice_eager


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def case(request):
    """(layer, x, the result of both in float64)."""
    torch.manual_seed(0)
    layer, x = nn.Linear(70, 33).to(request.param).requires_grad_(False), torch.randn(3, 5, 70).to(request.param)
    return layer, x, F.linear(x.double(), layer.weight.double(), layer.bias.double())


def test_product(case):
    layer, x, exact = case
    twice_eager(linear(layer, x), layer(x), exact, tiny=1e-7)


def test_product_and_gelu(case):
    layer, x, exact = case
    eager = F.gelu(layer(x), approximate="tanh")
    twice_eager(linear(layer, x, gelu=True), eager, F.gelu(exact, approximate="tanh"), tiny=1e-7)


def test_large_and_small_values_through_gelu():
    layer = nn.Linear(1, 9).requires_grad_(False)
    layer.weight.fill_(1), layer.bias.copy_(torch.tensor([-1e4, -20, -3, -1e-6, 0, 1e-6, 3, 20, 1e4]))
    got, want = linear(layer, torch.zeros(1, 1), gelu=True), F.gelu(layer.bias.double(), approximate="tanh")
    torch.testing.assert_close(got[0].double(), want, rtol=1e-4, atol=1e-6)


def test_the_weights_are_read_at_every_call(case):
    """Nothing is packed away: a trained weight counts at once."""
    layer, x, _ = case
    before = linear(layer, x)
    layer.weight.mul_(2), layer.bias.mul_(2)
    torch.testing.assert_close(linear(layer, x), 2 * before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=["fp64", "fp16"])
def test_other_dtypes_take_the_layer(dtype):
    layer, x = nn.Linear(7, 4).to(dtype).requires_grad_(False), torch.randn(2, 7).to(dtype)
    assert torch.equal(linear(layer, x, gelu=True), F.gelu(layer(x), approximate="tanh"))


def test_without_onednn(case, monkeypatch):
    layer, x, _ = case
    monkeypatch.setattr(module, "PRODUCT", None)
    assert torch.equal(linear(layer, x), layer(x))


def test_gradients_take_the_layer(case):
    layer, x, _ = case
    layer.requires_grad_(True)
    linear(layer, x, gelu=True).sum().backward()
    got = layer.weight.grad.clone()
    layer.zero_grad()
    F.gelu(layer(x), approximate="tanh").sum().backward()
    assert torch.equal(got, layer.weight.grad)
    layer.requires_grad_(False)
    assert linear(layer, x.clone().requires_grad_(True)).requires_grad


def test_onednn_is_what_runs_here():
    assert PRODUCT is not None or not torch.backends.mkldnn.is_available()
