"""A stream without a session: its jobs, whoever runs them, and its timeline, which is integers and samples."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from rest_fast.config import preset
from rest_fast.streaming.cache import IDContextCache
from rest_fast.streaming.sampler import ChunkSampler, noise_levels
from rest_fast.streaming.step import Branches, Step
from rest_fast.streaming.stream import Stream
from rest_fast.streaming.timeline import Timeline
from tests.kit.streams import play, same
from tests.kit.toys import photo, sound, toy


def blocks_of(stream: Stream) -> list:
    """Blocks that are ready."""
    blocks = []
    while stream.has_block():
        blocks.append(stream.make_block())
        stream.deliver()
        stream.forget()
    return blocks


def test_streams_of_one_pool_show_what_sessions_show(model):
    """Two viewers in scattered rows of one cache, their chunks in turn: bit for bit those of two sessions."""
    avatars = [model.prepare(photo(seed=seed)) for seed in (0, 1)]
    wanted = []
    for seed, avatar in enumerate(avatars):
        with model.session(avatar, seed=seed) as session:
            wanted.append(play(session, sound(16000, 2.5, seed=seed)))

    def run():
        cache = IDContextCache(model.config, 5, dtype=model.dtype, device=model.device)
        step = Step(model.dit, cache, noise_levels(model.config.sampling), text=model.text, slots=3)
        sampler = ChunkSampler(step, model.config.sampling)
        sessions = [Branches(4, 1, 2), Branches(0, 3, 0)]
        streams = [Stream(model, a, sampler, s, seed=i) for i, (a, s) in enumerate(zip(avatars, sessions))]
        shown = [[], []]
        for seed, stream in enumerate(streams):
            stream.push(sound(16000, 2.5, seed=seed))
            stream.end_segment()
        while any(stream.due() for stream in streams):
            for stream, blocks in zip(streams, shown):
                job = stream.next_chunk()
                stream.accept(job, sampler.run([job])[0])
                blocks += blocks_of(stream)
        return shown

    for want, got in zip(wanted, model.compute(run), strict=True):
        same(want, got)


def test_a_job_that_was_not_run_leaves_no_trace(model):
    """Also one that begins with a rebuilt context."""
    avatar = model.prepare(photo())
    with model.session(avatar, seed=4) as session:
        want = play(session, sound(16000, 1.5)) + play(session, sound(16000, 1.5, seed=1))

    def run():
        stream = Stream.alone(model, avatar, model.config.sampling, seed=4)
        shown = []
        for seed in (0, 1):
            stream.push(sound(16000, 1.5, seed=seed))
            stream.end_segment()
            while stream.due():
                first, rebuilt = stream.next_chunk(), stream.stale
                again = stream.next_chunk()
                assert torch.equal(first.codes, again.codes) and torch.equal(first.noise, again.noise)
                assert bool(first.context) == rebuilt
                stream.accept(again, stream.sampler.run([again])[0])
                shown += blocks_of(stream)
            stream.request_idle()
            stream.next_chunk()
            stream.idle_wanted = False
        return shown

    same(want, model.compute(run))


def test_a_job_that_was_run_and_dropped_leaves_a_rebuilt_context(model, monkeypatch):
    """Whether it was run, or only might have been, or was run and could not be taken over: what follows is the same."""
    accept, avatar, samples = Stream.accept, model.prepare(photo()), sound(16000, 2.5)

    def refuse(*_):
        monkeypatch.setattr(Stream, "accept", accept)
        raise MemoryError

    def stream(given_up: str | None):
        one, shown = Stream.alone(model, avatar, model.config.sampling, seed=4), []
        one.push(samples)
        while one.due():
            if given_up == "not accepted" and len(shown) == 3:
                monkeypatch.setattr(Stream, "accept", refuse)
                with pytest.raises(MemoryError):
                    one.generate()
            elif given_up is not None and len(shown) == 3:
                job = one.next_chunk()
                if given_up == "run":
                    one.sampler.run([job])
                one.drop()
            one.generate()
            shown += blocks_of(one)
        return shown

    plain, run, dropped, refused = (model.compute(stream, how) for how in (None, "run", "not run", "not accepted"))
    same(run, dropped)
    same(run, refused)
    same(plain[:3], run[:3])
    assert len(plain) == len(run) == 6
    assert not np.array_equal(plain[3].video, run[3].video)  # a rebuilt context is not bit for bit the natural one


def test_generation_runs_one_chunk_ahead_at_most(model):
    stream = model.compute(Stream.alone, model, model.prepare(photo()), model.config.sampling)
    with pytest.raises(AssertionError, match="a latent that waits to be shown"):
        _ = stream.upcoming
    stream.push(sound(16000, 4.0))
    for _ in range(2):  # the second one could be made when a block of the first was shown
        model.compute(stream.generate)
        stream.timeline.deliver()
    with pytest.raises(AssertionError, match="expected the latest chunk to be seen first"):
        stream.next_chunk()


RATES = [8000, 16000, 22050, 44100, 48000, 96000]


def line(rate: int) -> Timeline:
    return Timeline(rate, chunk=3, lead=3, back=1000, ahead=960)


@pytest.mark.parametrize("rate", RATES)
def test_borders_are_those_of_exact_arithmetic(rate):
    timeline = line(rate)
    for latent in (0, 1, 2, 7, 1001, 10_000_019):
        exact = Fraction(8 * latent * rate, 25)
        assert abs(timeline.border(latent) - exact) <= Fraction(1, 2)


@pytest.mark.parametrize("rate", RATES)
def test_a_chunk_is_due_with_the_last_sample_that_its_features_hear(rate):
    """Frames of 0.96 s and 960 samples at 16 kHz behind them; 10 ms more where the sound is resampled."""
    timeline = line(rate)
    needed = (Fraction(24, 25) + Fraction(960, 16000) + (Fraction(1, 100) if rate != 16000 else 0)) * rate
    timeline.sound.append(np.zeros(int(needed) - 1, np.float32))
    assert not timeline.due()
    timeline.sound.append(np.zeros(2, np.float32))
    assert timeline.due()


def test_a_segment_ends_at_the_next_border_and_its_chunk_hears_nothing_more():
    timeline = line(16000)
    timeline.sound.append(np.ones(5121, np.float32))  # one sample more than a latent
    timeline.end_segment()
    timeline.sound.append(np.ones(100_000, np.float32))
    plan = timeline.plan()
    assert (plan.first, plan.keep, plan.limit, plan.idle) == (0, 2, 2 * 5120, False)
    timeline.accept(plan)
    assert (timeline.generated, timeline.at_segment_end) == (2, True)
    assert (timeline.true_end(0), timeline.true_end(1)) == (None, 5121)
    heard = timeline.sound.window16(0, 2 * 5120, plan.limit)
    assert heard[:5121].all() and not heard[5121:].any()


def test_idle_time_goes_before_what_is_queued():
    timeline = line(16000)
    timeline.sound.append(np.ones(1000, np.float32))
    timeline.accept(timeline.plan(idle=True))
    assert timeline.sound.end == 3 * 5120 + 1000
    assert not timeline.sound.raw(0, 3 * 5120).any() and timeline.sound.raw(3 * 5120, 3 * 5120 + 1000).all()


def test_counts_after_delivery_and_a_way_back():
    timeline = line(16000)
    for _ in range(3):
        timeline.accept(timeline.plan(idle=True))
    for _ in range(8):
        timeline.deliver()
    assert (timeline.floor, timeline.delivered, timeline.waiting) == (5, 8, 1)
    timeline.back_to(6)
    assert (timeline.floor, timeline.delivered, timeline.generated, timeline.epoch) == (5, 6, 6, 1)
    assert timeline.sound.end == 6 * 5120


@pytest.mark.parametrize("failing", ["rotate", "latents"])
def test_a_chunk_that_fails_behind_its_commit_is_dropped(model, failing, monkeypatch):
    """The cache has moved on, or may have: what follows is as after a job that was run and given up."""
    avatar, samples = model.prepare(photo()), sound(16000, 3.5)

    def stream(fails: bool):
        one, shown = Stream.alone(model, avatar, model.config.sampling, seed=4), []
        one.push(samples)
        while one.due():
            if len(shown) == 6 and fails:
                owner = one.cache if failing == "rotate" else one.sampler.step
                with monkeypatch.context() as patch:
                    patch.setattr(owner, failing, lambda *_: (_ for _ in ()).throw(MemoryError))
                    with pytest.raises(MemoryError):
                        one.generate()
            elif len(shown) == 6:
                job = one.next_chunk()
                one.sampler.run([job])
                one.drop()
            one.generate()
            shown += blocks_of(one)
        return shown

    same(model.compute(stream, False), model.compute(stream, True))


def lives(model, mode, seed, ahead):
    """A stream of segments of random lengths, of which random parts are delivered and taken back: its blocks.

    ``ahead``: the next chunk is generated and decoded before each interrupt, which abandons it.
    """
    rng = np.random.default_rng(seed)
    one, shown = Stream.alone(model, model.prepare(photo()), model.config.sampling, seed=4, decode=mode), []

    def take(count):
        while count:
            if one.has_block():
                shown.append(one.make_block())
                one.deliver()
                count -= 1
            elif one.due():
                one.generate()
            else:
                return
            one.forget()

    for _ in range(4):
        for length in rng.integers(1, 8, 4):
            one.push(sound(16000, 0.32 * length - 0.1, seed=int(rng.integers(100))))
            one.end_segment()
        take(int(rng.integers(4, 13)))
        if ahead and one.wants_chunk(early=True):
            if one.undecoded:
                one.decode()
            one.generate()
        if ahead and one.undecoded:
            one.decode()
        one.back_to(one.timeline.delivered - int(rng.integers(0, one.timeline.delivered - one.timeline.floor + 1)))
    return shown


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunks, mode", [(0, None), (1, None), (1, "lookahead(2)"), (0, "lookahead(4)")])
def test_how_far_generation_had_run_ahead_is_not_seen(chunks, mode, seed):
    """An interrupt abandons what nobody saw, and decodes again what was shown since the last border of pieces."""
    causal = preset("toy").replace(vae__causal_decoder=mode is None).vae
    model = toy(vae=causal, stream__context_chunks=chunks)
    same(*(model.compute(lives, model, mode, seed, ahead) for ahead in (False, True)))
