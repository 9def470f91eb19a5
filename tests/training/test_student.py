"""Student and ASD: their forward is the sampler's computation; whose context a chunk sees; what the teacher is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rest_fast.model import Model
from rest_fast.models.clip_attention import Context
from rest_fast.streaming.schedule import sigmas
from rest_fast.streaming.step import Branches
from rest_fast.training.asd import ASD
from rest_fast.training.config import TrainingConfig, training_preset
from rest_fast.training.distributed import World
from rest_fast.training.flow import Batch, FlowData, Network, clip_codes
from rest_fast.training.loop import Trainer
from rest_fast.training.shards import Shards
from rest_fast.training.student import Student
from tests.kit.clips import small, write_clips
from tests.kit.compare import assert_same_bits
from tests.kit.models import F64, PoolSampler, Spy, Stream, open_cache, randomise, toy

STEPS, CHUNKS = 3, 4


def model_of(config, seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """Weights that do something in the two parts that are trained; frozen."""
    torch.manual_seed(seed)
    model = Model(config).to(dtype).requires_grad_(False)
    randomise(model.dit, seed)
    return model


def config_of(**changes) -> TrainingConfig:
    return training_preset("toy").replace(model=small(), precision="fp32", **changes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return Shards(write_clips(tmp_path_factory.mktemp("student"), small(), 4, fields=("features", "latents")))


@pytest.fixture(scope="module")
def batch(shards) -> Batch:
    never = {f"corruption__{name}": 0.0 for name in ("reference", "audio", "both", "synchronous")}
    return FlowData(config_of(**never), shards, shards, 2)(0, range(2))


def small_model(seed: int = 0, **changes) -> Model:
    model = model_of(small().replace(**changes), seed)
    model.dit.requires_grad_(True)
    model.speech.requires_grad_(True)
    return model


# -- training is the sampler


VARIANTS = [
    {},
    {"sink": False},
    {"context_chunks": 0},
    {"context_chunks": 2},
    {"positions": "absolute"},
    {"sink": False, "context_chunks": 2},
    {"sink": False, "context_chunks": 0},
    {"positions": "absolute", "context_chunks": 2, "sink": False},
]


def as_training(reference, levels, inputs, features, keep: float) -> Batch:
    """A batch whose noised latents are given ones: of each chunk its input [N, C] at a level t > 0."""
    t = torch.tensor([0.0] + [level for level in levels for _ in range(3)], dtype=F64)
    z0 = torch.randn(1, 4 * len(t), reference.shape[-1], generator=torch.Generator().manual_seed(8), dtype=F64)
    z0[:, :4] = reference
    wide = t.repeat_interleave(4)[:, None]
    noise = torch.zeros_like(z0)
    noise[0, 4:] = (torch.cat(inputs) - (1 - wide[4:]) * z0[0, 4:]) / wide[4:]
    kept = torch.full((1,), keep, dtype=F64)
    return Batch(z0, noise, t[None], features[:, : 8 * (len(t) - 1)], kept, kept, torch.ones(1))


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: ", ".join(f"{k} {v}" for k, v in changes.items()))
def test_the_student_s_forward_is_the_sampler_s(changes):
    """Every evaluation of ``ChunkSampler.sample``, of both branches, is what the student computes of a clip that ends
    with this chunk's input, earlier chunks standing at the input of their last step: the context in training is "the
    chunk before, noised", that of the sampler ``last_step``. What is dropped in training is the other branch.

    The student's velocities, near 1 and at most 8, are rounded to float32: 5e-7. Keys that the cache turned twice, or
    not at all where the clip turns them once, differ by their float32 tables: some 1e-6 in a velocity.
    """
    config = toy(sampling__steps=STEPS, **{f"stream__{k}": v for k, v in changes.items()})
    assert config.stream.context == "last_step"
    model = model_of(config, dtype=F64)
    stream, spy = Stream.draw(config, CHUNKS, 3), Spy(model.dit)
    g = torch.Generator().manual_seed(4)
    features = torch.randn(1, 24 * CHUNKS, 20, 80, generator=g, dtype=F64)
    codes = clip_codes(model.speech, features)
    assert codes.abs().mean() > 0.02
    cache = open_cache(model.dit, config, [stream.reference, torch.zeros_like(stream.reference)])
    sampler = PoolSampler(model.dit, config.sampling)
    for i in range(CHUNKS):
        sampler.sample(cache, [Branches(0, 1)], stream.noise[i], codes[:, 3 * i : 3 * i + 3])
    levels = sigmas(STEPS, config.sampling.shift_mu).tolist()
    student = Student(model, training_preset("toy").replace(model=config, precision="fp32"))
    inputs, seen = [z for z, _ in spy.calls], [v for _, v in spy.calls]
    assert torch.equal(inputs[0][0], stream.noise[0, 0])  # the first step is at t = 1: pure noise
    for i in range(CHUNKS):
        for step in range(STEPS):
            at = [j * STEPS + STEPS - 1 for j in range(i)] + [i * STEPS + step]
            times = [levels[STEPS - 1]] * i + [levels[step]]
            for branch, keep in enumerate((1.0, 0.0)):
                clip = as_training(stream.reference, times, [inputs[n][branch] for n in at], features, keep)
                got = student.velocity(clip)[0, -12:].double()
                torch.testing.assert_close(got, seen[at[-1]][branch], rtol=0, atol=5e-6)
    assert seen[-1].abs().mean() > 0.2 and seen[-1].abs().max() < 8


# -- whose context


def test_the_student_s_context_is_this_pass_s_own(batch):
    """Ground truth, noised at its own level: the plain streaming pass, whatever becomes of gradients."""
    model = small_model()
    want = Network(model)(batch, "streaming")
    for settings in ({}, {"cache_gradient": False}):
        config = config_of(**{f"student__{k}": v for k, v in settings.items()})
        assert torch.equal(Student(model, config).velocity(batch), want)
    assert not torch.equal(want, Network(model)(batch, "teacher"))


def test_cache_gradient_decides_what_is_learned(batch):
    found = []
    for through in (True, False):
        model = small_model(seed=1)
        student = Student(model, config_of(student__cache_gradient=through))
        student(batch)["loss"].backward()
        found.append(torch.cat([p.grad.flatten() for p in model.dit.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() > 1e-3 * found[0].norm()


def test_a_rolled_out_context_is_the_student_s_own_output(batch):
    """One block: keys and values of a chunk depend on its own input, so the context of chunk i is that of a clip in
    which the chunk before is what one step makes of it, z - t v, noised again to the same level."""
    model = small_model()
    plain = Student(model, config_of()).velocity(batch)
    student = Student(model, config_of(student__self_rollout=1.0))
    got = student.velocity(batch)
    first = 4 * 4
    assert torch.equal(got[:, :first], plain[:, :first])  # the first chunk has no context
    t = batch.t.repeat_interleave(4, 1)[..., None]
    made = batch.noised() - t * plain
    z0 = torch.cat([batch.z0[:, :4], made[:, 4:]], 1).detach()
    own = dataclasses.replace(batch, z0=z0)
    for i in range(1, 4):
        before, here = slice(12 * i - 8, 12 * i + 4), slice(12 * i + 4, 12 * i + 16)
        mixed = batch.z0.clone()
        mixed[:, before] = own.z0[:, before]
        want = Network(model)(dataclasses.replace(batch, z0=mixed), "streaming")[:, here]
        torch.testing.assert_close(got[:, here], want, rtol=1e-5, atol=1e-5)  # fp32 twice
        assert (got - plain)[:, here].abs().max() > 1e-2


def test_no_gradient_reaches_what_the_student_made(batch):
    student = Student(small_model(), config_of(student__self_rollout=1.0))
    for k, v in student.own_context(batch).values():
        assert not k.requires_grad and not v.requires_grad
    student(batch)["loss"].backward()
    assert student.network.dit.proj_out.weight.grad.isfinite().all()


def test_share_of_steps_that_roll_out(shards, monkeypatch):
    """A step rolls out or does not, in all of its parts; as often as the settings say, and never by default."""
    asked = []
    monkeypatch.setattr(Network, "velocity", lambda self, z, batch, layout, context=None: batch.z0)
    monkeypatch.setattr(Student, "own_context", lambda self, batch: asked.append(1) or {})
    data = FlowData(config_of(), shards, shards, 2)
    steps = 150
    for share in (0.0, 0.3, 1.0):
        student, rolled = Student(small_model(), config_of(student__self_rollout=share)), 0
        for step in range(steps):
            counts = []
            for row in range(2):
                asked.clear()
                student.velocity(data(step, range(row, row + 1)))
                counts.append(len(asked))
            assert counts[0] == counts[1]
            rolled += counts[0]
        assert abs(rolled - share * steps) <= 4 * (share * (1 - share) * steps) ** 0.5


# -- distillation


def trained(stage, settings, data, folder, config) -> Trainer:
    trainer = Trainer(stage, settings, config, folder, World())
    trainer.run(data)
    return trainer


def test_without_its_terms_asd_is_the_student(shards, tmp_path):
    """The same settings and contrastive = smooth = 0: bit for bit, step by step."""
    config = config_of(asd__contrastive=0.0, asd__smooth=0.0)
    config = dataclasses.replace(config, report_every=1)
    assert dataclasses.asdict(config.student).items() <= dataclasses.asdict(config.asd).items()
    data = FlowData(config, shards, shards, 2)
    models = small_model(1), small_model(1)
    stages = Student(models[0], config), ASD(models[1], model_of(small(), 2), config)
    logs = []
    for stage, settings, name in zip(stages, (config.student, config.asd), ("a", "b")):
        trainer = trained(stage, settings, data, tmp_path / name, config)
        logs.append([line.split(', "rate"')[0] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()])
        assert len(logs[-1]) == 4 and trainer.step == 4
    for name, tensor in models[0].state_dict().items():
        assert_same_bits(models[1].state_dict()[name], tensor, name)
    fresh = small_model(1).state_dict()
    assert not torch.equal(models[0].dit.proj_out.weight, fresh["dit.proj_out.weight"])


def test_the_teacher_is_frozen(shards, tmp_path):
    config = config_of()
    teacher = model_of(small(), 2)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    stage = ASD(small_model(1), teacher, config)
    trainer = trained(stage, config.asd, FlowData(config, shards, shards, 2), tmp_path, config)
    assert not any("teacher" in name for name in trainer.names)
    assert {name.split(".")[1] for name in trainer.names} == {"dit", "speech"}
    for name, tensor in teacher.state_dict().items():
        assert_same_bits(tensor, before[name], name)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_teacher_and_student_see_the_same(shards):
    """Noise, timesteps and dropouts; in their own layouts. Each term has its weight."""
    config = config_of(asd__contrastive=0.3, asd__smooth=0.7, corruption__reference=0.4, corruption__audio=0.4)
    teacher = model_of(small(), 2)
    stage = ASD(small_model(1), teacher, config)
    stage.network.speech.load_state_dict(teacher.speech.state_dict())
    calls = {}
    for who, dit in (("student", stage.network.dit), ("teacher", teacher.dit)):
        dit.register_forward_pre_hook(lambda _, args, who=who: calls.update({who: args}))
    batch = FlowData(config, shards, shards, 4)(0, range(4))
    terms = stage(batch)
    for mine, theirs in zip(calls["student"][:3], calls["teacher"][:3]):
        assert torch.equal(mine, theirs)
    assert (calls["student"][3], calls["teacher"][3]) == ("streaming", "teacher")
    assert isinstance(calls["student"][4], Context) and calls["teacher"][4] is None
    want = terms["flow"] + 0.3 * terms["contrastive"] + 0.7 * terms["smooth"]
    torch.testing.assert_close(terms["loss"], want, rtol=1e-6, atol=0)
    assert min(terms["contrastive"], terms["smooth"]) > 0.1


def test_a_student_that_is_the_teacher_has_nothing_to_smooth():
    """The terms of one velocity, with itself and with what differs by a straight line in time."""
    config = config_of()
    stage = ASD(small_model(1), model_of(small(), 2), config)
    v = torch.randn(2, 13 * 4, 12, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(v)
    batch = Batch(zeros, v, torch.ones(2, 13), zeros, torch.ones(2), torch.ones(2), torch.ones(2))  # v is the truth
    terms = stage.losses(v, v, batch)
    assert terms["flow"] == 0 == terms["smooth"] and 0 < terms["contrastive"] < 0.1
    garbage = v.clone()
    garbage[:, :4] = 1e6  # the reference's velocity means nothing, in any term
    assert all(
        torch.equal(a, b) for a, b in zip(terms.values(), stage.losses(garbage, -garbage + 2 * v, batch).values())
    )
    line = torch.arange(13.0).repeat_interleave(4)[:, None]
    assert stage.losses(v, v + 0.01 * line, batch)["smooth"] < 1e-10
    assert stage.losses(v, v.roll(4, 1), batch)["contrastive"] > 1
