"""``examples/recipes``: faces for other programs, on stand-ins of what these ask of one (``tests/kit/front_ends.py``).

The engine is the fake one, whose pictures say how loud their sound is: so both are seen to belong together.
"""

from __future__ import annotations

import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rest_fast
from rest_fast import media
from rest_fast.media import provenance
from rest_fast.model import ASSETS
from rest_fast.serving import fake
from tests.kit import front_ends
from tests.kit.command import write_inputs
from tests.kit.front_ends import ditto_program, load_recipe, wait
from tests.kit.toys import sound

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("in"))


@pytest.fixture
def engine():
    with fake.FakeEngine(sessions=2) as engine:
        yield engine


def speech_of(seconds):
    """Float32 at 16 kHz, too quiet for its peaks to be clipped."""
    return sound(16000, seconds) * np.float32(0.4)


# -- Ditto


@pytest.fixture
def ditto(monkeypatch):
    return load_recipe("ditto_stream", {}, monkeypatch)


def test_ditto(ditto, inputs, tmp_path):
    """A program of Ditto's, unchanged: as many frames as it says, with the sound that it gave."""
    frames = []
    sdk = ditto.StreamSDK("unread.pkl", inputs / "toy", on_frame=lambda *frame: frames.append(frame))
    speech = speech_of(1.5)
    ditto_program(sdk, speech, inputs / "face.png", str(tmp_path / "a.mp4"))
    pcm = np.concatenate([samples for _, samples in frames])
    assert len(frames) == 38 and np.array_equal(pcm[: len(speech)], speech) and not pcm[len(speech) :].any()
    with sdk.model.session(sdk.model.prepare(inputs / "face.png"), seed=0) as session:
        session.push_audio(np.pad(speech, (0, 5 * 640)))
        session.end_segment()
        video = np.concatenate([block.video for block in session.blocks()])
    assert np.array_equal(np.stack([picture for picture, _ in frames]), video[:38])
    assert len(media.read_video(tmp_path / "a.mp4")[0]) == 38
    assert provenance.read(tmp_path / "a.mp4") == provenance.SYNTHETIC


def test_ditto_without_a_length(ditto, inputs):
    """Frames come while sound does, nobody says how long it is, and the object is used again."""
    frames = []
    sdk = ditto.StreamSDK(None, inputs / "toy", on_frame=lambda *frame: frames.append(frame))
    for _ in range(2):
        sdk.setup(inputs / "face.png")
        for _ in range(6):
            sdk.run_chunk(np.zeros(6480, np.float32))
        early = len(frames)
        sdk.close()
        assert early == 24 and len(frames) == 30
        frames.clear()
    sdk.close()


def test_the_page(ditto, monkeypatch, tmp_path, capsys):
    """The example of docs/recipes.md, as it stands."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.S)
    monkeypatch.setitem(sys.modules, "ditto_stream", ditto)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ASSETS / "demo" / "portrait.png", "face.png")
    exec(compile(example, "docs/recipes.md", "exec"), {})
    assert capsys.readouterr().out == 75 * "(256, 256, 3) 640\n"
    assert len(media.read_video("talking.mp4")[0]) == 75


def test_what_ditto_is_refused(ditto, inputs, tmp_path):
    sdk = ditto.StreamSDK(None, inputs / "toy")
    with pytest.raises(rest_fast.ArgumentError, match="before it"):
        sdk.run_chunk(np.zeros(6480, np.float32))
    with pytest.warns(rest_fast.RestFastWarning, match="without meaning here: emo, sampling_timesteps"):
        sdk.setup(inputs / "face.png", str(tmp_path / "a.mp4"), emo=4, sampling_timesteps=50)
    with pytest.raises(rest_fast.MediaError, match="expected 10 frames of 640 samples, got 5 samples"):
        sdk.run_chunk(np.zeros(5, np.float32))
    with pytest.warns(rest_fast.RestFastWarning, match="fading"):
        sdk.setup_Nd(10, fade_in=5)
    sdk.close()


# -- LiveTalking


@pytest.fixture
def live(monkeypatch, engine, inputs):
    """A running avatar of LiveTalking; ``ended``: its thread has ended."""
    modules, registry = front_ends.live_talking()
    recipe = load_recipe("rest_fast_avatar", modules, monkeypatch)
    avatar = registry["avatar", "rest_fast"](
        SimpleNamespace(batch_size=4), recipe.Faces(engine), str(inputs / "face.png")
    )
    quit_event = threading.Event()
    thread = threading.Thread(target=avatar.render, args=(quit_event,))
    thread.start()
    yield avatar
    quit_event.set()
    thread.join(10)
    assert not thread.is_alive() and avatar.session.closed
    avatar.put_audio_frame(np.zeros(320, np.float32), {})  # as a synthesiser that does not know
    avatar.flush_talk()


def say(avatar, speech, end=True):
    pieces = speech.reshape(-1, 320)
    for k, piece in enumerate(pieces):
        note = {"status": "start", "text": "words"} if k == 0 else {}
        avatar.put_audio_frame(piece, {"status": "end"} if end and k == len(pieces) - 1 else note)


def levels_fit(picture, pcm):
    """Whether a picture is the one of its sound: within a step, since LiveTalking's int16 are of another rounding."""
    picture = picture.copy()
    picture[:4, :4] = picture[4:8, 4:8]  # without LiveTalking's mark
    code = fake.read(picture)
    return code is not None and abs(code.level - fake.level_of(np.concatenate(pcm))) <= 1


def test_livetalking(live):
    out = live.output.frames
    wait(lambda: len(out) > 5)
    assert not any(frame[3] for frame in out)
    speech = speech_of(1.28)
    say(live, speech)
    wait(lambda: any(frame[3] for frame in out) and not out[-1][3])
    spoken = [frame for frame in out if frame[3]]
    heard = np.concatenate([np.concatenate(pcm) for _, pcm, _, _ in spoken])
    assert np.array_equal(heard, (speech * 32767).astype(np.int16))
    events = [(k, note["status"]) for k, frame in enumerate(spoken) for note in frame[2] if note]
    assert events == [(0, "start"), (31, "end")]
    assert all(levels_fit(picture, pcm) for picture, pcm, _, _ in out)
    numbers = [fake.read(picture).frame for picture, *_ in out]
    assert numbers == list(range(numbers[0], numbers[0] + len(out)))  # silence and speech are one stream


def test_livetalking_is_interrupted(live):
    out = live.output.frames
    say(live, speech_of(8))
    wait(lambda: any(frame[3] for frame in out))
    live.flush_talk()
    shown = len(out)
    wait(lambda: len(out) > shown + 24)
    late = sum(frame[3] for frame in out[shown:])
    assert late <= 10 and not out[-1][3]  # what waited for the transport
    say(live, speech_of(0.64), end=False)  # nobody tells its end
    wait(lambda: sum(frame[3] for frame in out[shown:]) >= late + 16)
    assert any(note.get("status") == "start" for frame in out[shown + late :] for note in frame[2])


def test_what_livetalking_loads(monkeypatch, tmp_path, inputs):
    recipe = load_recipe("rest_fast_avatar", front_ends.live_talking()[0], monkeypatch)
    monkeypatch.setattr(recipe, "AVATARS", tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a PNG or JPEG in"):
        recipe.load_avatar("me")
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "face.png").write_bytes((inputs / "face.png").read_bytes())
    faces = recipe.load_model(SimpleNamespace(modelfile=str(inputs / "toy"), max_session=1))
    photo = recipe.load_avatar("me")
    assert faces.prepare(photo) is faces.prepare(photo)
    recipe.warm_up(16, photo, 160)
    faces.engine.close()


# -- OpenAvatarChat


class Chat:
    """One session of OpenAvatarChat with the handler in it."""

    def __init__(self, recipe, engine):
        self.handler = recipe.HandlerAvatarRestFast()
        self.config = self.handler.get_handler_info().config_model(photo="", sample_rate=16000)
        self.handler.faces, self.handler.avatar = engine, engine.avatar
        self.handler.definitions = definitions(recipe, 16000)
        self.about = SimpleNamespace(session_info=SimpleNamespace(session_id="s"))
        self.context = self.handler.create_context(self.about, self.config)
        self.context.stream_manager, self.context.data_submitter = front_ends.StreamManager(), []
        self.told, self.sent = self.context.stream_manager.told, self.context.data_submitter
        self.handler.start_context(self.about, self.context)

    def say(self, key, speech, last=True):
        bundle = front_ends.DataBundle(self.handler.definitions[front_ends.ChatDataType.AVATAR_AUDIO], speech[None])
        stream = front_ends.Stream(front_ends.ChatDataType.AVATAR_AUDIO, key)
        data = front_ends.ChatData(front_ends.ChatDataType.AVATAR_AUDIO, bundle, stream, last)
        self.handler.handle(self.context, data, {})

    def signal(self, kind, stream=None):
        self.handler.on_signal(self.context, front_ends.ChatSignal(kind, stream))

    def of(self, kind):
        return [one.data.data for one in list(self.sent) if one.type.name == kind]


def definitions(recipe, rate):
    entry, made = front_ends.DataBundleEntry, {}
    made["AVATAR_AUDIO"] = front_ends.DataBundleDefinition(entry.create_audio_entry("a", 1, rate))
    shape = [front_ends.VariableSize() for _ in range(3)]
    made["AVATAR_VIDEO"] = front_ends.DataBundleDefinition(entry.create_framed_entry("v", [*shape, 3], 0, 25))
    return {front_ends.ChatDataType[name]: one for name, one in made.items()}


@pytest.fixture
def recipe(monkeypatch):
    return load_recipe("avatar_handler_rest_fast", front_ends.open_avatar_chat(), monkeypatch)


@pytest.fixture
def chat(recipe, engine):
    chat = Chat(recipe, engine)
    yield chat
    chat.handler.destroy_context(chat.context)
    assert not chat.context.thread.is_alive() and chat.context.viewer.session.closed
    chat.say("late", np.zeros(320, np.float32))


def test_openavatarchat(chat):
    speech = speech_of(1.28)
    chat.say("one", speech[:8000], last=False)
    chat.say("one", speech[8000:])
    wait(lambda: chat.told == ["playback:one", "finished"])
    heard = np.concatenate(chat.of("AVATAR_AUDIO"), axis=1)
    assert heard.dtype == np.float32 and np.abs(heard[0] - speech).max() < 2 / 32768
    videos = chat.of("AVATAR_VIDEO")
    assert all(video.shape == (1, 128, 128, 3) and video.dtype == np.uint8 for video in videos)
    kinds = [one.type.name for one in chat.sent]
    at = [k for k, kind in enumerate(kinds) if kind == "AVATAR_AUDIO"]
    for k in at:  # the picture before a piece of sound is its own
        assert fake.read(chat.sent[k - 1].data.data[0]).level == pytest.approx(
            fake.level_of(chat.sent[k].data.data[0]), abs=1
        )


def test_openavatarchat_is_interrupted(chat):
    chat.say("one", speech_of(8), last=False)
    wait(lambda: chat.of("AVATAR_AUDIO"))
    other = front_ends.Stream(front_ends.ChatDataType.AVATAR_AUDIO, "other")
    chat.signal(front_ends.ChatSignalType.STREAM_CANCEL, other)  # another sentence's sound
    chat.signal(front_ends.ChatSignalType.INTERRUPT)
    wait(lambda: chat.context.speech is None)
    heard, seen = len(chat.of("AVATAR_AUDIO")), len(chat.of("AVATAR_VIDEO"))
    chat.say("one", speech_of(1))  # more of it was on its way
    wait(lambda: len(chat.of("AVATAR_VIDEO")) > seen + 20)
    assert len(chat.of("AVATAR_AUDIO")) <= heard + 1 and chat.told == ["playback:one"]
    chat.say("two", speech_of(0.32))
    wait(lambda: chat.told == ["playback:one", "playback:two", "finished"])


def test_what_openavatarchat_loads(recipe, inputs):
    handler = recipe.HandlerAvatarRestFast()
    info = handler.get_handler_info()
    config = info.config_model(weights=str(inputs / "toy"), photo=str(inputs / "face.png"), concurrent_limit=1)
    handler.load(None, config)
    context = handler.create_context(SimpleNamespace(session_info=SimpleNamespace(session_id="a")), config)
    detail = handler.get_handler_detail(None, context)
    audio, video = front_ends.ChatDataType.AVATAR_AUDIO, front_ends.ChatDataType.AVATAR_VIDEO
    assert list(detail.inputs) == [audio] and list(detail.outputs) == [audio, video]
    assert detail.outputs[audio].definition.entry.sample_rate == 24000 and len(detail.signal_filters) == 3
    with pytest.raises(rest_fast.CapacityExhausted):
        handler.create_context(SimpleNamespace(session_info=SimpleNamespace(session_id="b")), config)
    handler.destroy_context(context)
    handler.destroy()
