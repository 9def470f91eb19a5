"""Sessions whose VAE decoder looks ahead, as the released LTX-Video decoders do: later, but every frame."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import preset
from rest_fast.models.vae import to_latents
from rest_fast.models.vae.state import StreamState
from rest_fast.streaming.metrics import Stopwatch
from rest_fast.streaming.snapshot import SessionState, StateError
from tests.kit.streams import play, same
from tests.kit.toys import photo, sound, toy

CHUNK = 15360  # samples at 16 kHz
RATE = 16000


@pytest.fixture(scope="module")
def model():
    vae = preset("toy").replace(vae__causal_decoder=False).vae
    return toy(vae=vae)


@pytest.fixture(scope="module")
def avatar(model):
    return model.prepare(photo())


def stream(model, avatar, cuts=(), seconds=3.5, decode="lookahead(2)"):
    with model.session(avatar, seed=7, decode=decode) as s:
        return play(s, sound(RATE, seconds), cuts)


def video(blocks):
    return np.concatenate([b.video for b in blocks])


@pytest.mark.parametrize("ahead", [0, 1, 2, 3, 4])
def test_blocks_come_late_and_none_is_missing(model, avatar, ahead):
    with model.session(avatar, decode=f"lookahead({ahead})") as s, model.session(avatar) as other:
        assert s.lookahead_ms - other.lookahead_ms == pytest.approx(320 * (ahead - 1))  # 1 where nothing is said
        s.push_audio(sound(RATE, 0.96 * 4 + 0.1))  # 0.1: what the features look ahead
        counts = [len(list(s.blocks()))]
        assert counts == [max(0, 12 - ahead)]
        s.end_segment()
        rest = list(s.blocks())
    assert counts[0] + len(rest) == 13 and rest[-1].segment_end
    assert rest[-1].pts == pytest.approx(12 * 0.32) and rest[-1].true_samples == round(0.1 * RATE)


@pytest.mark.parametrize("ahead", [1, 2])
def test_frames_are_those_of_the_plan(model, avatar, ahead):
    """Chunk by chunk what ``decode(mode="lookahead(L)")`` gives for the reference and the session's latents."""
    with model.session(avatar, seed=3, decode=f"lookahead({ahead})") as s:
        made, deliver = [], s.stream.deliver

        def keeping():
            made.append(s.stream.upcoming.z)
            deliver()

        s.stream.deliver = keeping
        got = video(play(s, sound(RATE, 0.96 * 3)))
        s.snapshot()  # the last delivery is read
        reference = s.avatar.reference
    tokens = torch.cat([reference, *made])[None]
    z = to_latents(tokens, model.config.grid)
    want = model.vae.decode(z, mode=f"lookahead({ahead})")[0, :, 1:]
    want = ((want + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    assert got.shape == want.shape == (72, 64, 64, 3)
    assert np.array_equal(got, want)


@settings(max_examples=6, deadline=None)
@given(cuts=st.lists(st.integers(0, 56000), max_size=6))
def test_any_slicing_gives_the_same_frames(model, avatar, cuts):
    same(stream(model, avatar, sorted(cuts)), stream(model, avatar))


@pytest.mark.parametrize("at", [0, 1, 2, 5, 7])
def test_snapshot_continues_bit_equal(model, avatar, at):
    samples, whole = sound(RATE, 3.5), stream(model, avatar)
    with model.session(avatar, seed=7, decode="lookahead(2)") as s:
        s.push_audio(samples[:50000])
        blocks = s.blocks()
        head = [next(blocks) for _ in range(at)]
        state = s.snapshot().to_bytes()
    with model.session(avatar, seed=7, decode="lookahead(2)") as s:
        s.restore(SessionState.from_bytes(state))
        s.push_audio(samples[50000:])
        s.end_segment()
        same(head + list(s.blocks()), whole)


@pytest.mark.parametrize("shown, taken", [(0, (1, 1)), (2, (2, 3)), (3, (3, 4)), (4, (5, 7)), (5, (5, 7)), (6, (6, 7))])
def test_interrupt_goes_back_to_what_was_shown(model, avatar, shown, taken):
    """Two sessions that were shown the same and were interrupted there go on alike, however much one had delivered
    (of as many chunks: noise that was drawn is never drawn again)."""
    later = []
    for count in taken:
        with model.session(avatar, seed=1, decode="lookahead(2)") as s:
            s.push_audio(sound(RATE, 0.96 * 3 + 0.1))
            blocks = s.blocks()
            first = [next(blocks) for _ in range(count)]
            s.interrupt(shown_pts=shown * 0.32)
            assert not list(s.blocks())
            after = play(s, sound(RATE, 2.0, seed=5))
            assert after[0].pts == pytest.approx(shown * 0.32) and after[0].epoch == 1
            assert [b.pts for b in after] == pytest.approx([(shown + i) * 0.32 for i in range(7)])
            later.append(after)
            assert len(first) == count
    same(*later)


def test_a_segment_that_is_ended_late_gives_its_last_blocks(model, avatar):
    with model.session(avatar, decode="lookahead(1)") as s:
        s.push_audio(sound(RATE, 0.96))
        s.end_segment()
        assert len(list(s.blocks())) == 3
        s.push_audio(sound(RATE, 0.96 * 2, seed=1))
        assert len(list(s.blocks())) == 2  # the second of these chunks waits for what follows it
        s.end_segment()
        assert [b.segment_end for b in s.blocks()] == [False, False, False, True]
        # idle chunks bring the blocks that wait, and themselves wait
        s.push_audio(sound(RATE, 0.96 + 0.1, seed=2))
        assert len(list(s.blocks())) == 2
        idle = list(s.blocks(idle=True))
        assert [b.idle for b in idle] == [False, True, True]


@pytest.mark.parametrize("shown", [2, 3, 5])
def test_a_decode_that_fails_on_the_way_back_is_repeated(model, avatar, shown, monkeypatch):
    """An interrupt decodes nothing: what was shown is decoded again with the next chunk, as often as it takes."""
    later = []
    for fails in (False, True):
        with model.session(avatar, seed=1, decode="lookahead(2)") as s:
            s.push_audio(sound(RATE, 0.96 * 3 + 0.1))
            blocks = s.blocks()
            [next(blocks) for _ in range(shown)]
            s.interrupt(shown_pts=shown * 0.32)
            s.push_audio(sound(RATE, 2.0, seed=5))
            s.end_segment()
            if fails:
                with monkeypatch.context() as patch:
                    patch.setattr(model.vae.decoder.conv_out, "step", out_of_memory)
                    for _ in range(3):
                        with pytest.raises(MemoryError):
                            next(s.blocks())
            later.append(list(s.blocks()))
    assert [b.pts for b in later[0]] == pytest.approx([(shown + i) * 0.32 for i in range(7)])
    same(*later)


@pytest.mark.parametrize("causal", [True, False])
def test_a_snapshot_that_fails_loses_nothing(causal, monkeypatch):
    """The copy of a decoder's memory is the largest allocation of a block: the likeliest to fail."""
    model = toy(vae=preset("toy").replace(vae__causal_decoder=causal).vae)
    avatar, played = model.prepare(photo()), []
    for fails in (False, True):
        with model.session(avatar, seed=1) as s:
            s.push_audio(sound(RATE, 3.0))
            s.end_segment()
            head = [next(s.blocks()) for _ in range(3)]
            if fails:
                with monkeypatch.context() as patch:
                    patch.setattr(StreamState, "snapshot", out_of_memory)
                    with pytest.raises(MemoryError):
                        list(s.blocks())
            played.append((head, list(s.blocks())))
    got = [head + tail for head, tail in played]
    missing = len(got[0]) - len(got[1])  # blocks that were made and handed to the list that failed
    same(got[0][:3] + got[0][3 + missing :], got[1])
    assert missing == (0 if causal else 2)  # without look-ahead the first block fails; with it those of this chunk came


def out_of_memory(*_, **__):
    raise MemoryError


def test_a_snapshot_is_its_own(model, avatar):
    """Writing into a block of a restored session changes nothing that is restored again."""
    with model.session(avatar, decode="lookahead(1)") as s:
        s.push_audio(sound(RATE, 0.96 * 2 + 0.1))
        next(s.blocks())
        state = s.snapshot()
        seen = []
        for _ in range(2):
            s.restore(state)
            seen.append([b.video.copy() for b in spoiled(s.blocks())])
    assert seen[0] and all(np.array_equal(a, b) for a, b in zip(*seen, strict=True))


def spoiled(blocks):
    """Copies of what is handed out, which is then overwritten."""
    for block in blocks:
        kept = copy.copy(block)
        object.__setattr__(kept, "video", block.video.copy())
        block.video[:] = 0
        yield kept


def test_snapshots_of_another_decode_are_refused(model, avatar):
    with model.session(avatar, decode="lookahead(1)") as one, model.session(avatar, decode="lookahead(3)") as three:
        one.push_audio(sound(RATE, 2.0))
        next(one.blocks())
        with pytest.raises(StateError, match=r"got one with \{'decoder': 'lookahead\(1\)"):
            three.restore(one.snapshot())
        state = one.snapshot()
        del state.tensors["decoder.1.decoder.conv_out"]
        with pytest.raises(StateError, match=r"decoder.1.decoder.conv_out: expected a tensor, got none"):
            one.restore(state)


def test_blocks_hold_their_own_pictures_and_time(model, avatar):
    with model.session(avatar, decode="lookahead(1)") as s:
        blocks = play(s, sound(RATE, 0.96 * 3))
        assert all(b.video.base is None or b.video.base.nbytes == b.video.nbytes for b in blocks)
        report = s.metrics()
    assert report.blocks == 9 and report.stages["decode"].p50_ms > 0.5  # of a chunk, not of a hand-over


def test_a_slow_block_takes_longer_than_it_lasts():
    """A chunk that is decoded at once: 0.6 s for 3 blocks of 0.32 s are none, 1.2 s are 3."""
    for seconds, count in ((0.6, 0), (1.2, 3)):
        watch = Stopwatch()
        watch.since = 0.1 * seconds
        watch.chunk(3)
        watch.since = 0.9 * seconds
        watch.share(3, more=True)
        for _ in range(3):
            watch.block(0.32)
        assert watch.slow == count


def test_modes_are_those_of_the_checkpoint(model, avatar):
    with pytest.raises(ValueError, match=r"mode: expected lookahead\(L\) with L from 0 to 999, since"):
        model.session(avatar, decode="causal")
    with pytest.raises(ValueError, match=r"mode: expected lookahead\(L\) .*got 'exact', which is decode\(\)'s"):
        model.session(avatar, decode="exact")


class Deaf:
    """Features that look neither ahead nor back: a chunk can be made when its own samples are there."""

    back = ahead = 0

    def __init__(self, speech):
        self.shape = (speech.positions, speech.channels)

    def __call__(self, samples):
        return torch.zeros(1, samples.shape[1] // 640, *self.shape)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_segment_that_ends_where_its_last_chunk_did(ahead):
    """Nothing is left to be generated when it is ended; what waits for a later latent comes all the same."""
    model = toy(vae=preset("toy").replace(vae__causal_decoder=False).vae)
    model.__dict__["features"] = Deaf(model.config.speech)
    with model.session(model.prepare(photo()), decode=f"lookahead({ahead})") as s:
        s.push_audio(sound(RATE, 0.96))
        first = list(s.blocks())
        s.end_segment()
        rest = list(s.blocks())
        assert [len(first), len(rest)] == [3 - ahead, ahead]
        assert not rest or rest[-1].segment_end
        s.end_segment()
        assert not list(s.blocks())
