"""The loop of every stage: what is resumed is what was never interrupted, and what goes wrong is said."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rest_fast import media, processor
from rest_fast.training import states
from rest_fast.training.config import Stage, training_preset
from rest_fast.training.distributed import World
from rest_fast.training.loop import DivergedError, Trainer, learning_rate
from rest_fast.training.reports import Reports, read_log, write_sample
from tests.kit.compare import assert_same_bits

STEPS = 12
STAGE = Stage(STEPS, 0.1, 8, 1, warmup=5, constant=0.5, weight_decay=0.01, ema=0.6)
CONFIG = training_preset("toy").replace(report_every=2, save_every=3)


class Net(nn.Module):
    """Learns the sine of a batch [n, 4]; ``break_at`` makes the loss of a step something else."""

    def __init__(self, width: int = 6):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 2))
        self.breaking = lambda loss: loss

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = self.breaking((self.layers(x) - x[:, :2].sin()).square().mean())
        return {"loss": loss, "half": loss / 2}


def batches(step: int, rows: range, batch: int = STAGE.batch) -> torch.Tensor:
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(step))[rows.start : rows.stop]


def breaking(net: Net, at: int, by):
    """The same batches; at step ``at`` the net's loss is ``by(loss)``."""

    def broken(step: int, rows: range) -> torch.Tensor:
        net.breaking = by if step == at else lambda loss: loss
        return batches(step, rows)

    return broken


def interrupt(_: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


def trainer(folder: Path, net: nn.Module | None = None, stage: Stage = STAGE, **changes) -> Trainer:
    return Trainer(net or Net(), stage, CONFIG.replace(**changes), folder, World())


def run(folder: Path, net: nn.Module | None = None, stage: Stage = STAGE, **changes) -> Trainer:
    trained = trainer(folder, net, stage, **changes)
    trained.resume()
    trained.run(batches)
    return trained


def same_tensors(a: Trainer, b: Trainer) -> None:
    assert a.tensors.keys() == b.tensors.keys() and a.step == b.step
    for name, tensor in a.tensors.items():
        assert_same_bits(b.tensors[name], tensor, name)


# -- resumed


@pytest.mark.parametrize("at", [1, 3, 8, 11])
def test_a_resumed_training_is_one_that_was_never_interrupted(tmp_path, at):
    """Bit for bit: weights, both moments, averages. Interrupted between two savings, so that steps are repeated."""
    whole = run(tmp_path / "whole")
    net = Net()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", net).run(breaking(net, at, interrupt))
    again = trainer(tmp_path / "parts")
    assert again.resume() == at // 3 * 3
    again.run(batches)
    same_tensors(whole, again)
    assert {name.partition(".")[0] for name in whole.tensors} == {"weight", "average", "exp_avg", "exp_avg_sq", "step"}
    moments = [t for name, t in whole.tensors.items() if name.startswith("exp_avg")]
    assert len(moments) == 8 and all(t.any() for t in moments)
    for p, q in zip(whole.module.parameters(), again.module.parameters()):
        assert torch.equal(p, q) and not p.requires_grad
    assert states.steps(tmp_path / "parts" / "state") == [9, 12]


def test_averages_are_what_a_stage_hands_on(tmp_path):
    """The last state has both: at the end averages and weights have changed places."""
    trained = run(tmp_path)
    state = trainer(tmp_path)
    assert state.resume() == STEPS
    for name, p in trained.module.named_parameters():
        assert torch.equal(p, state.tensors[f"average.{name}"])
        assert not torch.equal(p, state.tensors[f"weight.{name}"])


def test_a_finished_training_does_nothing_more(tmp_path):
    first = run(tmp_path)
    again = trainer(tmp_path)
    again.resume()
    again.run(lambda step, rows: pytest.fail("a step of a finished training"))
    same_tensors(first, again)
    longer = run(tmp_path, stage=dataclasses.replace(STAGE, steps=14))  # a schedule may be lengthened
    assert longer.step == 14 and states.steps(tmp_path / "state") == [12, 14]


def test_the_state_of_another_configuration_is_refused(tmp_path):
    run(tmp_path)
    more, fewer = Net(), Net()
    more.layers.append(nn.Linear(2, 2))
    fewer.layers[2].bias.requires_grad_(False)
    for net in (Net(7), more, fewer):  # other shapes; a layer that was not there; one tensor too many
        with pytest.raises(states.StateError, match=r"state/step_00000012: expected the state of this configuration"):
            trainer(tmp_path, net).resume()
    assert trainer(tmp_path).resume() == STEPS


# -- one step


def test_a_step_is_that_of_torch(tmp_path):
    """Against AdamW, clipping, the rate and the averages written out; the state that is kept is torch's own."""
    trained = run(tmp_path)
    other = Net()
    averages = [p.detach().clone() for p in other.parameters()]
    optimiser = torch.optim.AdamW(other.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    norms, rates = [], [0.02, 0.04, 0.06, 0.08, 0.1, 0.1] + [  # six steps of warm-up and peak; then the cosine
        0.1 * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - 6) / 6))) for step in range(6, 12)
    ]  # fmt: skip
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = rates[step]
        optimiser.zero_grad()
        other(batches(step, range(8)))["loss"].backward()
        norms.append(nn.utils.clip_grad_norm_(other.parameters(), 1.0).item())
        optimiser.step()
        kept = min(0.6, (1 + step) / (10 + step))
        averages = [kept * a + (1 - kept) * p.detach() for a, p in zip(averages, other.parameters())]
    for (name, want), p, average in zip(other.named_parameters(), trained.module.parameters(), averages):
        # of the swap at the end: the module has the averages. The rate is the same up to a rounding of float64
        torch.testing.assert_close(trained.tensors[f"average.{name}"], want, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(p, average, rtol=1e-5, atol=1e-6)
        moment = optimiser.state[want]["exp_avg_sq"]
        torch.testing.assert_close(trained.tensors[f"exp_avg_sq.{name}"], moment, rtol=1e-5, atol=1e-9)
    lines = read_log(tmp_path)
    means = [sum(norms[i : i + 2]) / 2 for i in range(0, 12, 2)]
    assert [line["gradient"] for line in lines] == pytest.approx(means, rel=1e-5)  # six digits are written
    assert [line["rate"] for line in lines] == pytest.approx(rates[1::2], rel=1e-5)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulated_parts_are_one_batch(tmp_path, accumulate):
    """In float64: a mean of means of equal parts, in another order. Adam divides a gradient by its own size, so the
    rounding of 1e-16 may grow where a gradient is nearly 0, and does not by five digits."""
    stages = STAGE, dataclasses.replace(STAGE, accumulate=accumulate)
    runs = []
    for stage in stages:
        trained = trainer(tmp_path / str(stage.accumulate), Net().double(), stage)
        seen: list[range] = []
        trained.run(lambda step, rows, seen=seen: (seen.append(rows), batches(step, rows).double())[1])
        assert len(seen) == STEPS * stage.accumulate and sum(map(len, seen)) == STEPS * 8
        runs.append(trained)
    for a, b in zip(*(r.module.parameters() for r in runs)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    logs = [[line["loss"] for line in read_log(tmp_path / str(stage.accumulate))] for stage in stages]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)  # six digits are written


def test_learning_rate_at_its_corners():
    stage = Stage(1000, 0.5, warmup=100, constant=0.4)
    assert learning_rate(0, stage) == pytest.approx(0.5 / 100)
    assert learning_rate(49, stage) == pytest.approx(0.5 / 2)
    assert learning_rate(99, stage) == learning_rate(100, stage) == 0.5 == learning_rate(400, stage)
    assert learning_rate(700, stage) == pytest.approx(0.5 * 0.51)  # half of the cosine
    assert learning_rate(550, stage) == pytest.approx(0.5 * (0.51 + 0.49 * math.sqrt(0.5)))
    assert learning_rate(1000, stage) == learning_rate(2000, stage) == pytest.approx(0.5 / 50)
    course = [learning_rate(step, stage) for step in range(1001)]
    assert course[:101] == sorted(course[:101]) and course[100:] == sorted(course[100:], reverse=True)
    assert {learning_rate(step, Stage(10, 0.5, warmup=0)) for step in range(11)} == {0.5}  # as in the paper


class Still(nn.Module):
    """A parameter without a slope."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([5.0, 2.0], dtype=torch.float64))

    def forward(self, _) -> dict[str, torch.Tensor]:
        return {"loss": (0 * self.p).sum()}


def test_average_of_a_constant_has_a_closed_form(tmp_path):
    """From a to the constant c: what is left of the distance is the product of all decays."""
    trained = trainer(tmp_path, Still(), dataclasses.replace(STAGE, weight_decay=0.0))
    trained.average[0].copy_(torch.tensor([3.0, -1.0]))
    trained.run(batches)
    left = math.prod(min(0.6, (1 + step) / (10 + step)) for step in range(STEPS))  # young averages forget faster
    want = torch.tensor([5 - 2 * left, 2 - 3 * left], dtype=torch.float64)
    torch.testing.assert_close(trained.module.p.detach(), want, rtol=1e-12, atol=0)
    assert trained.average[0].tolist() == [5, 2]


# -- what goes wrong


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_it(tmp_path, value):
    net = Net()
    with pytest.raises(DivergedError) as error:
        trainer(tmp_path / "stage", net).run(breaking(net, 4, lambda loss: loss * value))
    assert str(error.value).startswith(f"{tmp_path / 'stage'}: expected finite losses and weights, but the loss is nan")
    assert str(error.value).endswith("before step 6; the state of step 3 is kept")
    assert states.steps(tmp_path / "stage" / "state") == [3]
    kept = trainer(tmp_path / "stage")
    assert kept.resume() == 3 and all(t.isfinite().all() for t in kept.tensors.values())
    assert [line["step"] for line in read_log(tmp_path / "stage")] == [2, 4]
    kept.run(batches)  # and can be gone on from
    same_tensors(kept, run(tmp_path / "whole"))


def test_a_gradient_that_is_no_number_stops_it(tmp_path):
    """The root of 0 is a fine loss without a slope: the weights are lost, though no loss has said so yet."""
    net = Net()
    data = breaking(net, 8, lambda loss: loss + (loss * 0).sqrt())
    with pytest.raises(DivergedError, match="a weight is no number before step 9; the state of step 6 is kept"):
        trainer(tmp_path, net).run(data)
    assert states.steps(tmp_path / "state") == [3, 6]


def test_nothing_to_go_back_to(tmp_path):
    net = Net()
    with pytest.raises(DivergedError, match="the loss is nan before step 2; no state was written"):
        trainer(tmp_path, net).run(breaking(net, 0, lambda loss: loss * math.nan))


# -- what it says


def test_the_log_has_every_line_once(tmp_path):
    net = Net()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "a", net).run(breaking(net, 8, interrupt))
    assert [line["step"] for line in read_log(tmp_path / "a")] == [2, 4, 6, 8]
    with (tmp_path / "a" / "log.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')  # killed while it wrote
    run(tmp_path / "a")
    run(tmp_path / "b")
    logs = [read_log(tmp_path / name) for name in "ab"]
    assert [line["step"] for line in logs[0]] == [2, 4, 6, 8, 10, 12]
    assert len((tmp_path / "a" / "log.jsonl").read_text().splitlines()) == 6
    for a, b in zip(*logs):
        assert set(a) == {"step", "loss", "half", "gradient", "rate", "step_seconds"}
        assert all(a[name] == b[name] for name in ("loss", "half", "gradient", "rate"))
        assert a["half"] == pytest.approx(a["loss"] / 2, rel=1e-4)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_the_log_once(tmp_path):
    """Also the steps that a resumed training did again."""
    net, folder = Net(), tmp_path / "teacher"
    with pytest.raises(KeyboardInterrupt):
        trainer(folder, net).run(breaking(net, 8, interrupt))
    run(folder)
    shown, lines = scalars(folder), read_log(folder)
    assert set(shown) == {f"teacher/{name}" for name in ("loss", "half", "gradient", "rate", "step_seconds")}
    for name in ("loss", "rate"):
        assert [step for step, _ in shown[f"teacher/{name}"]] == [2, 4, 6, 8, 10, 12]
        assert [v for _, v in shown[f"teacher/{name}"]] == pytest.approx([line[name] for line in lines], rel=1e-5)


def test_a_sample_does_not_hide_later_scalars(tmp_path):
    """TensorBoard leaves a file of events once a newer one lies beside it."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = np.zeros((4, 32, 32, 3), np.uint8)
    with Reports(tmp_path, 0, 8, World()) as reports:
        reports.write(2, {"loss": 1.0}, 0.1)
        reports.board.flush()
        events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
        write_sample(tmp_path, 2, picture, np.zeros(4 * 640, np.float32), 16_000)
        events.Reload()
        reports.write(4, {"loss": 2.0}, 0.1)
    events.Reload()
    assert [e.step for e in events.Scalars(f"{tmp_path.name}/loss")] == [2, 4]
    pictures = reader.EventAccumulator(str(tmp_path / "tensorboard" / "samples"))
    pictures.Reload()
    assert [e.step for e in pictures.Images(f"{tmp_path.name}/sample")] == [2]


def test_samples_are_made_with_the_averages(tmp_path):
    trained, seen = trainer(tmp_path, sample_every=5), []
    weight = trained.module.layers[0].weight

    def sample(step: int) -> None:
        average = trained.tensors["average.layers.0.weight"]
        seen.append((step, weight.detach().clone(), average.clone()))

    trained.run(batches, sample)
    assert [step for step, *_ in seen] == [5, 10, 12]
    assert torch.equal(seen[-1][1], weight)  # what the stage hands on
    assert not torch.equal(seen[-1][1], seen[-1][2])
    same_tensors(trained, run(tmp_path / "without"))


def test_a_sample_plays(tmp_path):
    """16 frames that grow lighter, and a tone."""
    video = np.full((16, 64, 64, 3), 1, np.uint8) * np.arange(0, 160, 10, np.uint8)[:, None, None, None]
    tone = 0.3 * np.sin(np.arange(16 * 640) * 0.2).astype(np.float32)
    write_sample(tmp_path, 40, video, tone, 16_000)
    frames, rate = media.read_video(tmp_path / "samples" / "step_00000040.mp4")
    assert frames.shape == video.shape and rate == 25
    assert np.abs(frames.mean((1, 2, 3)) - video.mean((1, 2, 3))).max() < 5
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step_00000040.mp4"]


def test_a_log_that_is_no_json_object_ends_there(tmp_path):
    good = json.dumps({"step": 1})
    (tmp_path / "log.jsonl").write_text(f"{good}\n{{\n{good}\n")
    assert read_log(tmp_path) == [{"step": 1}] and read_log(tmp_path / "none") == []


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("has", [True, False])
def test_a_precision_that_the_processor_emulates_is_named(precision, has, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(processor, "features", lambda: frozenset({"intel", "avx512_bf16"} if has else {"intel"}))
    trainer(tmp_path, precision=precision)
    slow = precision == "bf16" and not has
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["precision bf16"] * slow
