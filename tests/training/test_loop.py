"""The loop of every training: what is resumed is what was never interrupted, and what goes wrong is said."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rest_fast.training.loop import Ema, Training, learning_rate

STEPS = 12


def network(width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 2)).requires_grad_(False)


class Run:
    """A network that is being trained, its state in ``path``."""

    def __init__(self, path: Path, module: nn.Module | None = None, parameters: list[nn.Parameter] | None = None):
        self.module = module or network()
        self.training = Training(path, parameters or list(self.module.parameters()), 0.1, 0.01)

    def loss(self, step: int) -> torch.Tensor:
        """Depends on the step's number and on nothing else."""
        g = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=g)
        return (self.module(x) - x[:, :2].sin()).square().mean()

    def breaking(self, at: int, by: object):
        """The same loss until step ``at``, which raises ``by`` or gives that number."""

        def loss(step: int) -> torch.Tensor:
            if step == at and isinstance(by, BaseException):
                raise by
            return self.loss(step) * by if step == at else self.loss(step)

        return loss


def test_a_resumed_training_is_one_that_was_never_interrupted(tmp_path):
    """Bit for bit: weights, both moments, averages. Interrupted between two savings, so that steps are repeated."""
    whole = Run(tmp_path / "whole.safetensors")
    whole.training.run(whole.loss, STEPS, every=3)

    first = Run(tmp_path / "parts.safetensors")
    with pytest.raises(KeyboardInterrupt):
        first.training.run(first.breaking(8, KeyboardInterrupt()), STEPS, every=3)
    again = Run(tmp_path / "parts.safetensors")
    assert again.training.step == 6
    again.training.run(again.loss, STEPS, every=3)

    states = [load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "parts")]
    assert set(states[0]) == set(states[1])
    assert {name.partition(".")[0] for name in states[0]} == {"parameter", "ema", "exp_avg", "exp_avg_sq", "step"}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    moments = [t for name, t in states[0].items() if name.startswith("exp_avg")]
    assert len(moments) == 8 and all(t.any() for t in moments)
    whole.training.finish(), again.training.finish()
    for p, q in zip(whole.module.parameters(), again.module.parameters()):
        assert torch.equal(p, q) and not p.requires_grad


def test_a_step_is_that_of_torch(tmp_path):
    """Against AdamW, clipping, the rate and the averages written out; the state that is kept is torch's own."""
    run, other = Run(tmp_path / "state.safetensors"), network().requires_grad_(True)
    run.training.run(run.loss, STEPS)
    averages = [p.detach().clone() for p in other.parameters()]
    optimiser = torch.optim.AdamW(other.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = 0.1 * (step + 1) / 100
        optimiser.zero_grad()
        Run.loss(type("other", (), {"module": other}), step).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        optimiser.step()
        kept = (1 + step) / (10 + step)
        averages = [kept * a + (1 - kept) * p.detach() for a, p in zip(averages, other.parameters())]
    for i, (p, want) in enumerate(zip(run.module.parameters(), other.parameters())):
        torch.testing.assert_close(p, want, rtol=0, atol=0)
        torch.testing.assert_close(run.training.tensors[f"ema.{i}"], averages[i])
        torch.testing.assert_close(run.training.tensors[f"exp_avg_sq.{i}"], optimiser.state[want]["exp_avg_sq"])


def test_a_finished_training_does_nothing_more(tmp_path):
    path = tmp_path / "state.safetensors"
    run = Run(path)
    run.training.run(run.loss, 4)
    written = path.read_bytes()
    again = Run(path)
    again.training.run(lambda step: pytest.fail("a step of a finished training"), 4)
    again.training.finish()
    assert path.read_bytes() == written
    averages = load_file(path)
    assert all(torch.equal(p, averages[f"ema.{i}"]) for i, p in enumerate(again.module.parameters()))
    longer = Run(path)  # a schedule may be lengthened
    longer.training.run(longer.loss, 6)
    assert longer.training.step == int(load_file(path)["step"]) == 6


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_it(tmp_path, value):
    path = tmp_path / "state.safetensors"
    run = Run(path)
    with pytest.raises(ValueError, match=r"state\.safetensors: the loss is nan before step 6; the last state"):
        run.training.run(run.breaking(4, value), STEPS, every=3)
    kept = load_file(path)
    assert int(kept["step"]) == 3 and all(t.isfinite().all() for t in kept.values())
    sound = Run(path)  # and can be gone on from
    sound.training.run(sound.loss, STEPS, every=3)
    assert sound.training.step == STEPS


def test_a_gradient_that_is_no_number_stops_it(tmp_path):
    """The root of 0 is a fine loss without a slope: the weights are lost, though no loss has said so yet."""
    path = tmp_path / "state.safetensors"
    run = Run(path)
    with pytest.raises(ValueError, match="a weight is no number before step 6; the last state is kept"):
        run.training.run(lambda s: run.loss(s) + (run.loss(s) * 0).sqrt() if s == 5 else run.loss(s), 6, every=3)
    assert int(load_file(path)["step"]) == 3


def test_the_state_of_another_configuration_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    run = Run(path)
    run.training.run(run.loss, 2)
    for other in (network(7), nn.Sequential(network(), nn.Linear(2, 2))):  # other shapes; a layer that was not there
        with pytest.raises(ValueError, match=r"state\.safetensors: the state of another configuration: .*; remove it"):
            Run(path, other)
    module = network()
    with pytest.raises(ValueError, match=r"another configuration: [a-z_]+\.3;"):  # and one too many
        Run(path, module, list(module.parameters())[:3])
    assert Run(path).training.step == 2


def test_nothing_half_written_is_left(tmp_path):
    run = Run(tmp_path / "state.safetensors")
    run.training.run(run.loss, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_learning_rate_at_its_corners():
    steps, peak = 1000, 0.5
    assert learning_rate(0, steps, peak) == pytest.approx(peak / 100)
    assert learning_rate(49, steps, peak) == pytest.approx(peak / 2)
    assert learning_rate(99, steps, peak) == learning_rate(100, steps, peak) == peak
    assert learning_rate(400, steps, peak) == peak
    assert learning_rate(700, steps, peak) == pytest.approx(peak * 0.51)  # half of the cosine
    assert learning_rate(550, steps, peak) == pytest.approx(peak * (0.51 + 0.49 * math.sqrt(0.5)))
    assert learning_rate(1000, steps, peak) == pytest.approx(peak / 50)
    course = [learning_rate(step, steps, peak) for step in range(steps + 1)]
    assert course[:101] == sorted(course[:101]) and course[100:] == sorted(course[100:], reverse=True)


def test_average_of_a_constant_has_a_closed_form():
    """From a to the constant c: what is left of the distance is the product of all decays."""
    p = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    ema = Ema([p], decay=0.6)
    p.data = torch.tensor([5.0, 2.0], dtype=torch.float64)
    left = 1.0
    for step in range(20):
        ema.update(step)
        left *= min(0.6, (1 + step) / (10 + step))  # young averages forget faster
        want = torch.tensor([5 - 2 * left, 2 - 3 * left], dtype=torch.float64)
        torch.testing.assert_close(ema.average[0], want, rtol=1e-12, atol=0)
    ema.swap()
    torch.testing.assert_close(p.detach(), want, rtol=1e-12, atol=0)
    assert ema.average[0].tolist() == [5, 2]
    ema.swap()
    assert p.tolist() == [5, 2]
