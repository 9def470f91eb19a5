"""What is sent to a GPU goes through pinned memory and is not waited for: the calls, on a machine without one."""

from __future__ import annotations

import pytest
import torch

from rest_fast.ops.transfer import sent


def test_to_the_cpu_it_is_the_tensor_itself():
    tensor = torch.arange(3)
    assert sent(tensor, "cpu") is tensor


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0)], ids=str)
def test_to_cuda_it_is_pinned_and_asynchronous(device, monkeypatch):
    tensor, pinned, there, seen = torch.arange(3), torch.arange(3), torch.arange(3), []

    def pin(self):
        assert self is tensor
        return pinned

    def to(self, *args, **kwargs):
        seen.append((self is pinned, args, kwargs))
        return there

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    assert sent(tensor, device) is there
    assert seen == [(True, (device,), {"non_blocking": True})]


def test_what_is_elsewhere_is_refused():
    with pytest.raises(AssertionError, match="sent: expected a tensor of the CPU, got one on meta"):
        sent(torch.zeros(1, device="meta"), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_is_sent_arrives():
    for n in range(20):
        tensor = torch.full((1000,), n)
        arrived = sent(tensor, "cuda")
        tensor.zero_()
        assert (arrived.cpu() == n).all()
