"""What callers and computations may do to a session of FlashHead: any order of calls, and pieces that fail."""

from __future__ import annotations

import pytest

from rest_fast.model import FlashHeadModel
from tests.kit import flashhead
from tests.kit.scripts import long_script
from tests.kit.streams import perform, play, same
from tests.kit.toys import photo, sound


@pytest.fixture(scope="module")
def model() -> FlashHeadModel:
    return flashhead.small()


@pytest.fixture(scope="module")
def avatar(model):
    return model.prepare(photo(), crop="center")


def equal(one: list, other: list) -> None:
    """Blocks, and where streams went on between them."""
    assert [x for x in one if isinstance(x, str)] == [x for x in other if isinstance(x, str)]
    same(*([x for x in shown if not isinstance(x, str)] for shown in (one, other)))


def test_a_long_stream_does_not_depend_on_who_computes_it(model, avatar):
    """40 blocks with interrupts at every place, idling, short segments and moves, at a rate that is resampled: alone,
    and never moved beside a neighbour in an engine that runs ahead."""
    script, options = long_script(24000), {"sample_rate": 24000, "seed": 6}
    want = perform(script, lambda **o: model.session(avatar, **o), **options)
    assert len(want) > 40
    still = [step for step in script if step[0] != "move"]
    with model.engine(sessions=2, admission=False) as engine:
        neighbour = engine.session(avatar, seed=1)
        neighbour.push_audio(sound(16000, 2.0))
        equal(want, perform(still, lambda **o: engine.session(avatar, **o), **options))


SAMPLES = sound(16000, 2.2)


@pytest.fixture(scope="module")
def whole_stream(model, avatar):
    with model.session(avatar, seed=3) as s:
        return play(s, SAMPLES)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("piece", ["hear", "encode", "show", "load", "run"])
def test_a_piece_that_fails_is_told_once_and_made_again(model, avatar, whole_stream, monkeypatch, piece, at):
    """Nothing is lost, repeated or drawn with other noise."""
    calls = []
    with model.session(avatar, seed=3) as s:
        owner = s.stream.networks if piece in ("hear", "encode", "show") else s.stream.sampler.step
        whole = getattr(owner, piece)

        def failing(*given):
            calls.append(None)
            if len(calls) == at:
                raise RuntimeError("no memory")
            return whole(*given)

        monkeypatch.setattr(owner, piece, failing)
        s.push_audio(SAMPLES)
        s.end_segment()
        got = []
        with pytest.raises(RuntimeError, match="no memory"):
            got.extend(s.blocks())  # those before the failure are kept
        same(whole_stream, got + list(s.blocks()))


def test_a_snapshot_whose_decoding_fails_changes_nothing(model, avatar, whole_stream, monkeypatch):
    with model.session(avatar, seed=3) as s:
        stream = s.stream
        stream.push(SAMPLES[:15360])
        job = stream.next_chunk()
        stream.accept(job, stream.sampler.run([job])[0])
        whole, tries = stream.networks.show, []
        monkeypatch.setattr(stream.networks, "show", lambda *given: tries.append(1) or (1 / 0))
        with pytest.raises(ZeroDivisionError):
            s.snapshot()
        monkeypatch.setattr(stream.networks, "show", whole)
        assert tries and stream.undecoded
        same(whole_stream[:3], list(s.blocks()))
