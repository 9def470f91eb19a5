"""Linear layers through oneDNN: the numbers of the layer and of torch's GELU, and the layer itself where it cannot."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.models import linear as module
from rest_fast.models.linear import DTYPES, linear
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
    for _ in range(20):  # the allocator likes to give the same address again
        linear(layer, x)
        layer.to(torch.float8_e5m2).to(x.dtype)
        torch.testing.assert_close(linear(layer, x), layer(x))
        layer.load_state_dict({name: 1.1 * tensor for name, tensor in layer.state_dict().items()})


def test_optimisers_whose_steps_pytorch_does_not_count():
    """Fused ones leave the version of a weight alone: a weight that learns is never kept in another order."""
    layer, x = nn.Linear(40, 40), torch.randn(3, 40)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(linear(layer, x), layer(x))
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()


def test_a_layer_that_is_more_than_its_product_is_called():
    layer, x = nn.Linear(8, 8).requires_grad_(False), torch.randn(2, 8)
    layer.bias.requires_grad_(True)
    linear(layer, x).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((8,), 2.0))
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(layer, x).dtype == torch.bfloat16
    hook = layer.register_forward_hook(lambda module, args, out: out + 1)
    torch.testing.assert_close(linear(layer, x), F.linear(x, layer.weight, layer.bias) + 1)
    hook.remove()

    class Adapted(nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    adapted = Adapted(8, 8).requires_grad_(False)
    assert torch.equal(linear(adapted, x), adapted(x))


def test_processors_whose_bfloat16_onednn_does_not_know():
    """As on a machine with AVX2 alone: the layer itself, no crash."""
    code = """
import torch
from rest_fast.models.linear import DTYPES, linear
layer = torch.nn.Linear(8, 8).bfloat16().requires_grad_(False)
x = torch.randn(2, 8).bfloat16()
assert torch.bfloat16 not in DTYPES, DTYPES
assert torch.equal(linear(layer, x), layer(x))
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
    monkeypatch.setattr(module, "DTYPES", ())
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
    assert DTYPES or not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_product_and_gelu_on_a_gpu(dtype):
    """It has to be the tanh form: the other one is off by up to 5e-4, hundreds of times as much as fp32."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 256).to("cuda", dtype).requires_grad_(False)
    x = 3 * torch.randn(2, 48, 64, device="cuda", dtype=dtype)
    exact = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate="tanh")
    eager = F.gelu(layer(x), approximate="tanh")
    twice_eager(linear(layer, x, gelu=True), eager, exact, tiny=1e-6)


def test_what_is_called_on_a_gpu(monkeypatch):
    """The call that has the GELU inside, with the layer's bias, for any number of leading axes."""
    layer, x, calls = nn.Linear(6, 4).requires_grad_(False), torch.randn(2, 3, 6), []

    class OnGpu:
        """x, which says that it is on a GPU."""

        is_cpu, is_cuda, dtype, device, shape, requires_grad = False, True, x.dtype, x.device, x.shape, False

        def flatten(self, *axes):
            return x.flatten(*axes)

    def product(bias, flat, weight, use_gelu):
        calls.append((bias is layer.bias, use_gelu))
        return F.gelu(torch.addmm(bias, flat, weight), approximate="tanh")

    monkeypatch.setattr(torch, "_addmm_activation", product)
    want = F.gelu(layer(x), approximate="tanh")
    torch.testing.assert_close(linear(layer, OnGpu(), gelu=True), want)
    assert calls == [(True, True)]
