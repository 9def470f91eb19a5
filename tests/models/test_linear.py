"""Linear layers through oneDNN: the numbers of the layer and of torch's GELU, and the layer itself where it cannot."""

from __future__ import annotations

import copy

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


def test_a_changed_weight_counts_at_once(case):
    """In place, by a checkpoint, by another dtype and back, by an optimiser: the order kept beside it is made anew."""
    layer, x, _ = case
    before = linear(layer, x)
    layer.weight.mul_(2), layer.bias.mul_(2)
    torch.testing.assert_close(linear(layer, x), 2 * before)
    layer.load_state_dict({name: -tensor for name, tensor in layer.state_dict().items()})
    torch.testing.assert_close(linear(layer, x), -2 * before)
    layer.double().to(x.dtype)
    torch.testing.assert_close(linear(layer, x), -2 * before)
    layer.requires_grad_(True)
    layer.weight.grad, layer.bias.grad = layer.weight.detach().clone(), layer.bias.detach().clone()
    torch.optim.SGD(layer.parameters(), lr=1).step()
    with torch.no_grad():
        assert torch.equal(linear(layer, x), torch.zeros_like(before))
    layer.requires_grad_(False)


def test_what_is_kept_is_no_part_of_a_checkpoint_or_copy(case):
    layer, x, _ = case
    names, want = set(layer.state_dict()), linear(layer, x)
    assert set(layer.state_dict()) == names and len(list(layer.parameters())) == 2
    twin = copy.deepcopy(layer)
    twin.weight.zero_(), twin.bias.zero_()
    assert torch.equal(linear(twin, x), torch.zeros_like(want)) and torch.equal(linear(layer, x), want)


def test_large_weights_stay_as_they_are(case, monkeypatch):
    layer, x, _ = case
    want = linear(layer, x)
    fresh = copy.deepcopy(layer)
    fresh.__dict__.pop("reordered", None)
    monkeypatch.setattr(module, "SMALL", 10)
    torch.testing.assert_close(linear(fresh, x), want)
    assert "reordered" not in fresh.__dict__


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
