"""What is derived from frozen weights: once, anew after every change that can be seen, and never in a copy."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

from rest_fast.ops.derived import derived, forget


@pytest.fixture
def layer():
    return nn.Linear(3, 2).requires_grad_(False)


def total(layer, *what):
    """A sum that tells how often it was computed."""

    def make():
        layer.made = getattr(layer, "made", 0) + 1
        return layer.weight.sum() + layer.bias.sum() + sum(what)

    return derived(layer, "total", (layer.weight, layer.bias), make, *what)


def true_total(layer):
    return layer.weight.double().sum() + layer.bias.double().sum()


def test_once(layer):
    assert total(layer) is total(layer)
    assert layer.made == 1
    torch.testing.assert_close(total(layer).double(), true_total(layer), rtol=1e-6, atol=1e-6)


def test_what_else_it_depends_on(layer):
    a, b = total(layer, 1), total(layer, 2)
    torch.testing.assert_close(b - a, torch.tensor(1.0), rtol=1e-5, atol=1e-5)
    assert layer.made == 2


def in_place(layer):
    layer.bias.add_(1)


def loaded(layer):
    layer.load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()})


def replaced(layer):
    layer.bias = nn.Parameter(layer.bias + 1, requires_grad=False)


def through_data(layer):
    layer.bias.data = layer.bias + 1


def another_dtype(layer):
    layer.bfloat16()


@pytest.mark.parametrize("change", [in_place, loaded, replaced, through_data, another_dtype])
def test_changes_are_seen(layer, change):
    for n in range(2, 12):  # again and again: the allocator likes to give the same address
        total(layer)
        change(layer)
        torch.testing.assert_close(total(layer).double(), true_total(layer), rtol=1e-2, atol=1e-2)
        assert layer.made == n or change is another_dtype


def test_nothing_is_kept_of_weights_that_learn(layer):
    layer.bias.requires_grad_(True)
    total(layer), total(layer)
    assert layer.made == 2 and "total" not in vars(layer)
    with torch.inference_mode():
        made_here = nn.Linear(3, 2).requires_grad_(False)
    total(made_here), total(made_here)
    assert made_here.made == 2 and "total" not in vars(made_here)


def test_steps_of_a_fused_optimiser_between_two_freezes_are_seen(layer):
    """They do not count as changes: what was derived before is dropped as soon as it is asked for meanwhile."""
    total(layer)
    layer.requires_grad_(True)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.5, fused=True)
    total(layer).backward()
    optimiser.step()
    layer.requires_grad_(False)
    torch.testing.assert_close(total(layer).double(), true_total(layer), rtol=1e-6, atol=1e-6)


def test_a_change_while_it_is_made_is_a_change(layer):
    def make():
        value = layer.weight.sum()
        layer.weight.add_(1)  # as another thread would
        return value

    before = derived(layer, "sum", (layer.weight,), make)
    after = derived(layer, "sum", (layer.weight,), layer.weight.sum)
    torch.testing.assert_close(after - before, torch.tensor(6.0), rtol=1e-5, atol=1e-5)


def test_weights_that_learn_may_give_something_else(layer):
    layer.weight.requires_grad_(True)
    assert derived(layer, "sum", (layer.weight,), layer.weight.sum, learning=layer.weight) is layer.weight
    assert "sum" not in vars(layer)


def test_it_is_an_ordinary_tensor_wherever_it_was_asked_for(layer):
    with torch.inference_mode():
        value = total(layer)
    assert not value.is_inference() and not value.requires_grad
    value.add_(1)


def test_copies_and_checkpoints_are_without_it(layer):
    total(layer)
    twin = copy.deepcopy(layer)
    file = io.BytesIO()
    torch.save(layer, file)
    read = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert set(layer.state_dict()) == {"weight", "bias"}
    for other in (twin, read):
        other.bias.add_(1)
        torch.testing.assert_close(total(other).double(), true_total(other), rtol=1e-6, atol=1e-6)


def test_forgetting_frees_the_memory_of_values_and_sources():
    module = nn.Sequential(nn.Linear(3, 2)).requires_grad_(False)
    value = weakref.ref(derived(module, "a", (module[0].weight,), lambda: torch.zeros(3)))
    of_weight = weakref.ref(derived(module[0].weight, "b", (module[0].weight,), lambda: torch.zeros(3)))
    assert value() is not None and of_weight() is not None
    forget(module)
    gc.collect()
    assert value() is None and of_weight() is None
