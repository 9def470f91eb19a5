"""Snapshots that no session can have written are refused, each field by its name, and the session goes on as it was.

Every field and every tensor of four snapshots is spoilt in every way that has a name here. A corruption that is not
refused must change nothing that is shown. The model is a toy with random weights.
"""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save

from rest_fast import preset
from rest_fast.streaming.snapshot import SessionState, StateError
from tests.kit.streams import play, same
from tests.kit.toys import basis_model, photo, sound, toy

RATE = 16000


def early(session) -> None:
    """Two blocks taken of two chunks: a row that is not full, latents that are pending."""
    session.push_audio(sound(RATE, 1.5))
    session.end_segment()
    [next(session.blocks()) for _ in range(2)]


def later(session) -> None:
    """Sound dropped, idle latents, an interrupt, a segment cut short and another one queued; int16 in two channels."""
    pcm = (np.stack([sound(RATE, 5.0)] * 2, 1) * 20000).astype(np.int16)
    play(session, pcm, range(0, len(pcm), 4000))
    session.interrupt(list(session.blocks(idle=True))[-1].pts)
    session.push_audio(pcm[:18000])
    session.end_segment()
    session.push_audio(pcm[:9000])
    session.end_segment()
    [next(session.blocks()) for _ in range(2)]


def looking_ahead():
    return toy(vae=preset("toy").replace(vae__causal_decoder=False).vae, stream__context="per_step")


SESSIONS = {
    "early": (toy, early),
    "later": (toy, later),
    "lookahead": (looking_ahead, later),
    "basis": (basis_model, early),
}


class Case:
    """A session, its snapshot by way of bytes, and the blocks that must follow it."""

    def __init__(self, make, prepare):
        model = make()
        self.session = model.session(model.prepare(photo(), crop="center"), seed=3)
        prepare(self.session)
        self.data = self.session.snapshot().to_bytes()
        self.want = self.follow()

    def state(self) -> SessionState:
        return SessionState.from_bytes(self.data)

    def follow(self) -> list:
        """The blocks behind the snapshot: what is queued, an idle chunk, and what comes after a way back."""
        blocks = list(self.session.blocks())
        blocks += self.session.blocks(idle=True)
        self.session.interrupt(blocks[-1].pts - 0.32)
        blocks += self.session.blocks(idle=True)
        self.session.restore(self.state())
        return blocks

    def refusal(self, state: SessionState) -> str:
        """What the session says, in one line; "" if it takes the state, from which then the same blocks must come."""
        try:
            self.session.restore(state)
        except StateError as e:
            return str(e)
        self.unharmed()
        return ""

    def unharmed(self) -> None:
        """After all that was refused: what follows is what would have followed."""
        same(self.follow(), self.want)


@pytest.fixture(scope="module", params=SESSIONS)
def case(request):
    return Case(*SESSIONS[request.param])


def spoilt_values(value):
    """What may not stand in the place of a value; None where a session may have written it."""
    others = [None, "1", -1, 1.5, float("nan"), [], {}, 10**30]
    if isinstance(value, bool):
        return [*others, 0, 1]
    if isinstance(value, int):
        return [*others, True, value + 0.0]
    return [*others, True, 3]


def meta_corruptions(meta: dict):
    """(field, changed meta): every value of every field in turn, those of lists one by one."""
    for name, value in meta.items():
        yield name, {k: v for k, v in meta.items() if k != name}
        if name == "identity":
            continue
        for other in spoilt_values(value):
            if other != [] or name != "segments":  # none may be queued
                yield name, meta | {name: other}
        for i, item in enumerate(value[:2] if isinstance(value, list) else []):
            yield name, meta | {name: [*value, item]}
            for other in spoilt_values(item):
                yield name, meta | {name: [*value[:i], other, *value[i + 1 :]]}


def test_every_value(case):
    meta = case.state().meta
    for name, changed in meta_corruptions(meta):
        message = case.refusal(SessionState(case.state().tensors, changed))
        assert message.startswith(f"restore: {name}: expected "), (name, changed.get(name), message)
    case.unharmed()


IMPOSSIBLE = {  # of "later", with the field that is named
    "epoch": [lambda m: -1, lambda m: 0.5, lambda m: 1 << 32],
    "_next": [lambda m: -1, lambda m: 1 << 63],
    "_delivered": [lambda m: m["_next"] + 1, lambda m: m["_floor"] - 1, lambda m: m["_delivered"] - 1],
    "_floor": [lambda m: m["_delivered"] + 1, lambda m: m["_delivered"] - 4],
    "committed": [lambda m: [m["_next"] + 1] * 2, lambda m: [1, 2], lambda m: [1], lambda m: [1, 1, 1]],
    "sound_start": [lambda m: m["_floor"] * 5120, lambda m: 0],
    "segments": [
        lambda m: m["segments"][::-1],
        lambda m: m["segments"][:1] * 2,
        lambda m: [[m["segments"][0][0] + 1, m["segments"][0][1]]],
        lambda m: [*m["segments"], [1000, 1000 * 5120]],
    ],
    "idle": [lambda m: m["idle"] * 2, lambda m: m["idle"][-2:]],
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_counts_that_contradict_each_other(later_case, name):
    meta = later_case.state().meta
    assert len(meta["segments"]) == 2 and meta["sound_start"] > 0 and any(meta["idle"])
    for change in IMPOSSIBLE[name]:
        message = later_case.refusal(SessionState(later_case.state().tensors, meta | {name: change(meta)}))
        assert re.match(r"restore: [\w.]+: expected .*, got ", message), (name, change(meta), message)
    later_case.unharmed()


@pytest.fixture(scope="module")
def later_case():
    return Case(*SESSIONS["later"])


def spoilt_tensors(tensor: torch.Tensor):
    """(how, tensor) that can be told from any tensor of a session."""
    yield "missing", None
    yield "no tensor", tensor.tolist()
    yield "another axis", tensor[None]
    yield "longer", torch.cat([tensor, tensor[-1:]])
    yield "shorter", tensor[:-1]
    yield "complex", tensor.to(torch.complex64)
    yield "another dtype", tensor.to(torch.float16 if tensor.dtype != torch.float16 else torch.int32)
    if tensor.is_floating_point():
        for value, at in ((torch.nan, 0), (-torch.inf, -1)):
            spoilt = tensor.clone()
            spoilt.view(-1)[at] = value
            yield f"{value} at {at}", spoilt
    elif tensor.dtype == torch.int64:
        for value in (-2, 2**40, -(2**63)):
            for at in range(len(tensor)):
                spoilt = tensor.clone()
                spoilt[at] = value
                yield f"{value} at {at}", spoilt


def test_every_tensor(case):
    """Refused by name; what is taken all the same (NaN in a slot that is written before it is read) changes nothing."""
    tensors, taken = case.state().tensors, []
    alike = re.compile(r"history\.[1-9]|decoder\.[1-3]|.*blocks\.[1-9]")  # as others that are spoilt
    some = {name: tensor for name, tensor in tensors.items() if not alike.match(name)}
    for name, tensor in some.items():
        for how, spoilt in spoilt_tensors(tensor):
            changed = {k: v for k, v in (tensors | {name: spoilt}).items() if v is not None}
            message = case.refusal(SessionState(changed, case.state().meta))
            if not message:
                taken.append((name, how))
            elif name == "sound" and how in ("longer", "shorter"):
                assert message.startswith(("restore: sound: ", "restore: segments: "))
            else:
                assert message.startswith(f"restore: {name}: "), (name, how, message)
    assert all((name[0] in "kv" and "at -1" in how) or (name, how) == ("sound", "longer") for name, how in taken), taken
    case.unharmed()


def test_what_is_written_before_it_is_read_may_be_anything(case):
    state = case.state()
    cache, rows = case.session.stream.cache, [n for n in state.tensors if n[:2] in ("k.", "v.")]
    free = [slot for slot in range(cache.slots) if slot not in cache.held(state.meta["committed"][0])]
    assert len(rows) == 4 and len(free) >= 12
    for name in rows:
        state.tensors[name][:, :, free] = torch.nan
    assert not case.refusal(state)
    for name in rows:  # and what is read is that and no more
        for slot in cache.held(state.meta["committed"][0])[:: cache.slots - len(free) - 1]:
            spoilt = copy.deepcopy(case.state())
            spoilt.tensors[name][-1, -1, slot, -1, -1] = torch.nan
            assert case.refusal(spoilt).startswith(f"restore: {name}: expected finite numbers, got 1 that are not")


def test_bytes_that_are_no_snapshot(case):
    for meta in ("[]", "3", "null", '"x"', "{", ""):
        data = save({"meta": torch.frombuffer(bytearray(meta.encode() or b" "), dtype=torch.uint8)})
        with pytest.raises(StateError, match=r"^restore: expected the bytes of a session snapshot, got something else"):
            SessionState.from_bytes(data)
    for broken in (b"", case.data[:100], case.data[:-1], save({"k.0": torch.zeros(3)})):
        with pytest.raises(StateError, match=r"^restore: expected the bytes of a session snapshot, got something else"):
            SessionState.from_bytes(broken)
    for identity in (None, [], "x", 3):
        foreign = SessionState({}, json.loads(json.dumps({"identity": identity})))
        assert case.refusal(foreign).startswith("restore: identity: expected model, ")
    case.unharmed()


def test_a_restored_session_knows_its_format(later_case):
    """The flag behind it: silence that comes before the next push has the dtype and channels of the pushes before."""
    later_case.session.restore(later_case.state())
    with pytest.raises(ValueError, match="push_audio: expected samples like the first push"):
        later_case.session.push_audio(np.zeros(10, np.float32))
    assert list(later_case.session.blocks(idle=True))[-1].audio.shape[1:] == (2,)
    later_case.session.restore(later_case.state())  # the other tests share it


def test_memories_of_float32_go_on_in_float32_where_convolutions_are_in_bfloat16():
    """They are not rounded to what the session has."""
    there, here = basis_model(), basis_model()
    here.vae.convolve_in(torch.bfloat16)
    avatar = there.prepare(photo(), crop="center")
    session, other = there.session(avatar), here.session(avatar)
    early(session), early(other)
    state, want = SessionState.from_bytes(session.snapshot().to_bytes()), list(session.blocks())
    other.restore(state)
    same(list(other.blocks()), want)


def test_memories_have_the_dtype_of_the_stream_that_they_come_from():
    """The demo's convolutions in bfloat16, continued in a session that opened with float32; and no mixture."""
    there, here = basis_model(), basis_model()
    there.vae.convolve_in(torch.bfloat16)
    avatar = there.prepare(photo(), crop="center")
    session = there.session(avatar)
    early(session)
    state, want = SessionState.from_bytes(session.snapshot().to_bytes()), list(session.blocks())
    other = here.session(avatar)
    with pytest.raises(
        StateError, match=r"decoder.0.decoder.post.conv_in: expected torch.float32 .*, got torch.bfloat16"
    ):
        other.restore(SessionState(state.tensors | {"decoder.dtype": torch.zeros(1)}, state.meta))
    other.restore(state)
    same(list(other.blocks()), want)
    assert other.snapshot().tensors["decoder.0.decoder.post.conv_in"].dtype == torch.bfloat16
