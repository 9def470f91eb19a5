"""FlashHead's step: captured or not, alone or with others, it is the network's functional pass and the formula."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rest_fast.config.flashhead import FlashHeadSamplingConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.flashhead import FlashHead
from rest_fast.models.flashhead.sampling import levels
from rest_fast.streaming import memory
from rest_fast.streaming.flashhead import FlashHeadSampler, Job
from rest_fast.streaming.windows import Turn, Window, WindowStep, lane_bytes, slot_bytes
from tests.kit import flashhead
from tests.kit.captured import NothingBetween, StandIn
from tests.kit.compare import assert_same_bits
from tests.kit.models import randomise

F64 = torch.float64
# Rotations and noise levels are float32 numbers in the step: 2^-24 of values below 10, through two blocks and 4 steps.
NEAR = {"rtol": 0, "atol": 2e-5}
# A product of more rows may round otherwise, 2^-53 of values below 100, through as much.
SAME = {"rtol": 0, "atol": 1e-11}
FOUR, TWO = FlashHeadSamplingConfig(), FlashHeadSamplingConfig(steps=2)


@pytest.fixture(scope="module")
def model() -> FlashHead:
    return flashhead.toy_model(F64)


def window(model, seed, motion=2, steps=4) -> Window:
    """A chunk of random numbers, with so many motion latents."""
    config, g = model.config, torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(1, *shape, generator=g, dtype=F64)

    tokens, channels = config.tokens, config.vae.latent_channels
    whole = config.stream.window * tokens
    noise = tuple(drawn(whole, channels) for _ in range(steps))
    return Window(drawn(whole, channels), drawn(motion * tokens, channels), drawn(*model.dit.heard_shape), noise)


def plain(model, given: Window, sampling=FOUR) -> torch.Tensor:
    """A chunk by the functional pass, and the sampler's formula: clean latents, and fresh noise again."""
    z, held = given.noise[0].clone(), given.motion.shape[1]
    audio = model.dit.hear(given.heard)
    for i, level in enumerate(levels(sampling)):
        z[:, :held] = given.motion
        v = model.dit(z, given.reference, torch.tensor(level.timestep, dtype=F64), audio)
        fresh = given.noise[i + 1] if i + 1 < sampling.steps else torch.zeros_like(z)
        z = (1 - level.after) * (z - level.now * v) + level.after * fresh
    z[:, :held] = given.motion
    return z


def pool(model, *, slots=3, lanes=3, graph=None, chunk=0) -> WindowStep:
    step = WindowStep(model, [*levels(FOUR), *levels(TWO)], 4, slots=slots, lanes=lanes)
    if graph is not None:
        step.capture(graph, evaluations=chunk)
    return step


def jobs(windows) -> list[Job]:
    return [Job(slot, given, None) for slot, given in enumerate(windows)]


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("motion", [1, 2])
def test_a_chunk_is_the_functional_pass_and_the_formula(model, motion, captured):
    given = window(model, 1, motion)
    sampler = FlashHeadSampler(pool(model, slots=1, lanes=1, graph=StandIn() if captured else None, chunk=4), FOUR)
    got, want = sampler.run(jobs([given])), plain(model, given)
    torch.testing.assert_close(got, want, **NEAR)
    assert torch.equal(got[:, : given.motion.shape[1]], given.motion)
    assert (got - plain(model, window(model, 2, motion))).abs().max() > 0.1


@pytest.mark.parametrize("captured", [False, True])
def test_sessions_at_other_steps_with_other_motion_share_an_evaluation(model, captured):
    """One of two steps, and two of four with one motion latent and two; each begins when it likes, in any lane."""
    step = pool(model, graph=StandIn() if captured else None)
    given = [window(model, 1, 1), window(model, 2, 2), window(model, 3, 2)]
    samplings = [FOUR, FOUR, TWO]
    running = {s: FlashHeadSampler(step, samplings[s]).turns(Job(s, given[s], None)) for s in range(3)}
    at: dict[int, Turn] = {}
    made: dict[int, torch.Tensor] = {}

    def advance(s):
        try:
            at[s] = next(running[s])
        except StopIteration as end:
            made[s] = end.value
            at.pop(s, None)

    for together in ([2], [2, 0], [0], [1, 0], [0, 1], [1], [1]):
        for s in together:
            if s not in at and s not in made:
                advance(s)
        step.run([at[s] for s in together if s in at])
        for s in together:
            if s in at:
                advance(s)
    assert sorted(made) == [0, 1, 2]
    for s, latents in made.items():
        torch.testing.assert_close(latents[None], plain(model, given[s], samplings[s]), **NEAR)


def test_captured_lanes_do_not_see_each_other(model):
    """The same bits beside nobody, beside others, and beside one whose numbers are no numbers."""
    results = []
    for others in ([], [5], [7]):
        step = pool(model, lanes=2, slots=2, graph=StandIn())
        windows = [window(model, 1), *(window(model, seed) for seed in others)]
        if others == [7]:
            windows[1] = dataclasses.replace(windows[1], heard=torch.full_like(windows[1].heard, torch.nan))
        results.append(FlashHeadSampler(step, FOUR).run(jobs(windows)))
    for found in results[1:]:
        assert_same_bits(found[0], results[0][0], "latents")
    assert results[2][1].isnan().any() and not results[1][1].isnan().any()


def test_eager_lanes_are_near_those_that_are_computed_alone(model):
    windows = [window(model, 1), window(model, 2, 1)]
    together = FlashHeadSampler(pool(model), FOUR).run(jobs(windows))
    for slot, given in enumerate(windows):
        alone = FlashHeadSampler(pool(model), FOUR).run([Job(slot, given, None)])
        torch.testing.assert_close(together[slot : slot + 1], alone, **SAME)


def test_nothing_between_replays_and_poison_in_every_buffer(model):
    """A chunk makes no tensor outside of its replays, and buffers hold nothing from one replay to the next."""
    made: list[WindowStep] = []

    def poison():
        for step in made:
            work = step.work
            for buffer in (work.x, work.y, work.q, work.out, work.k, work.v, step.z[-1]):
                buffer.fill_(torch.nan)

    graph, given = StandIn(poison), window(model, 4)
    made.append(pool(model, slots=2, lanes=2, graph=graph))
    turns = FlashHeadSampler(made[0], FOUR).turns(Job(1, given, None))
    turn = next(turns)
    with NothingBetween(graph):
        for following in [*range(3), None]:
            made[0].run([turn])
            if following is not None:
                turn = next(turns)
    torch.testing.assert_close(made[0].latents(1), plain(model, given), **NEAR)
    assert graph.replays == 1 + 4  # what is heard, and an evaluation each


def test_an_idle_replay_changes_nothing(model):
    graph = StandIn()
    step = pool(model, graph=graph)
    step.load(0, window(model, 1))
    before = [x.clone() for x in (step.z[:-1], step.fresh, step.reference, *(x for kv in step.audio for x in kv))]
    graph.made[0]()
    for now, then in zip((step.z[:-1], step.fresh, step.reference, *(x for kv in step.audio for x in kv)), before):
        assert torch.equal(now, then)
    step.warm()  # as on a GPU without graphs
    assert torch.equal(step.z[:-1], before[0])


def test_refusals(model):
    step, given = pool(model, lanes=2), window(model, 1)
    turn = Turn(0, levels(FOUR)[0], 1, 4)
    for turns, words in (
        ([], "turns: expected 1..2"),
        ([turn, dataclasses.replace(turn, slot=1), dataclasses.replace(turn, slot=2)], "its lanes, got 3"),
        ([turn, turn], "slots: expected different ones"),
        ([dataclasses.replace(turn, slot=3)], r"slots: expected different ones in 0\.\.2"),
        ([dataclasses.replace(turn, fresh=4)], r"noise in 0\.\.3"),
        ([dataclasses.replace(turn, held=99)], "motion of at most 20 tokens"),
        ([dataclasses.replace(turn, level=levels(FlashHeadSamplingConfig(shift=2))[1])], "expected a timestep among"),
    ):
        with pytest.raises(ArgumentError, match=words):
            step.run(turns)
    for changes, words in (
        ({"reference": given.reference[:, :3]}, "step: reference: expected"),
        ({"noise": (given.noise[0], given.noise[1][..., :2])}, "step: noise: expected"),
        ({"noise": given.noise * 2}, "noise for at most 4 steps"),
        ({"heard": given.heard[:, :2]}, "step: window: expected what is heard as"),
        ({"motion": given.motion[:, :0]}, "motion of 1.."),
    ):
        with pytest.raises(ArgumentError, match=words):
            step.load(0, dataclasses.replace(given, **changes))
    with pytest.raises(ArgumentError, match=r"slot: expected 0\.\.2, got 3"):
        step.load(3, given)


def test_weights_that_changed_are_refused():
    mine = FlashHead(flashhead.toy(), threads=1)
    randomise(mine, 5)
    step = WindowStep(mine.requires_grad_(False).to(F64), levels(FOUR), 4)
    step.load(0, window(mine, 1))
    with torch.no_grad():
        mine.dit.table.add_(1)
    with pytest.raises(ArgumentError, match="weights: expected those that it was made with"):
        step.load(0, window(mine, 1))


def test_memory_that_is_not_there_is_refused(model, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(ArgumentError, match="step: 3 lanes and 3 slots: expected at most what fits"):
        pool(model)


def test_bytes_are_those_of_the_tensors(model):
    step = pool(model, slots=3, lanes=2)
    pools = (step.z, step.fresh, step.reference, *(x for kv in step.audio for x in kv))
    assert sum(x.nbytes for x in pools) == 4 * slot_bytes(model.dit, 4)
    work = step.work
    assert sum(x.nbytes for x in (work.x, work.y, work.q, work.out, work.k, work.v)) < 2 * lane_bytes(model.dit)
