"""The live page in a headless Chromium, from its buttons to what is seen and heard."""

from __future__ import annotations

import itertools
import json
import re
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rest_fast.serving import fake
from rest_fast.serving.access import Access
from rest_fast.units import FPS
from tests.kit.browser import Browser, chromium
from tests.kit.serving import RATE, Served, fake_service

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed (apt-get install chromium)")

TAP = (Path(__file__).parents[1] / "kit" / "page_tap.js").read_text()
HEARD = 0.02  # RMS of a tone that is certainly there; those here have 0.26
SWITCH = 0.4  # seconds that a tone lasts, and the silence behind it


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Sound files: one tone after the other, and a long tone."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, seconds, gaps in (("tones", 3.2, True), ("long", 8, False)):
        times = np.arange(round(seconds * RATE)) / RATE
        on = (times // SWITCH) % 2 == 0 if gaps else 1
        samples = 12000 * np.sin(2 * np.pi * 440 * times) * on
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(samples.astype("<i2").tobytes())
    return folder


@pytest.fixture(scope="module")
def service():
    made = fake_service(sessions=4)
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def served(service):
    with Served(service) as running:
        yield running


@pytest.fixture(scope="module")
def browser(sounds):
    # the file goes round and round: a microphone that hears tones
    with Browser(f"--use-file-for-fake-audio-capture={sounds / 'tones.wav'}") as opened:
        opened.before_the_page(TAP)
        yield opened


@pytest.fixture
def page(browser, served, service):
    """The page, with its faces there."""
    browser.errors.clear()
    browser.open(served.url("/"))
    browser.until("!document.getElementById('start').disabled")
    yield browser
    browser.say("Page.navigate", url="about:blank")
    assert browser.errors == []
    assert service.counts.failed == 0


@pytest.fixture
def session(page):
    page.click("#start")
    page.until("!document.getElementById('interrupt').disabled")
    page.until("tap.refreshes.length > 10 && tap.begun.length > 3")
    return page


@dataclass(frozen=True)
class Refresh:
    """What was there at one refresh of the screen."""

    at: float  # ms
    clock: float  # seconds of the audio context that were heard then
    code: fake.Code | None  # of the picture; None before the session's first one
    loud: float  # RMS of what the player had made in the 23 ms before


def refreshes(page, since=0.0):
    """Those from ``since`` on, ms of the page's clock."""
    found = page.js(f"tap.refreshes.filter(({{at}}) => at >= {since})")
    boards = [np.array(one["board"], np.uint8).reshape(fake.FIELDS, fake.FIELDS, 1).repeat(3, 2) for one in found]
    return [Refresh(one["at"], one["clock"], fake.read(board), one["loud"]) for one, board in zip(found, boards)]


def now(page):
    return page.js("performance.now()")


def speaks(one):
    return one.code is not None and one.code.level > 0


def wait_for(page, wanted, since, seconds=10):
    """The first refresh from ``since`` on that is as ``wanted``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = [one for one in refreshes(page, since) if wanted(one)]
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s; the page says: {page.status()}")


def apart(page, seen):
    """Seconds by which sound is ahead of the picture, each time that a picture appears: the place in the stream that
    the worklet's frame and the audio clock say is heard, less the place that the picture's own pixels say."""
    begun, pts = page.js("[tap.begun, tap.pts]")
    starts = np.array([time for _, time in begun])
    found = []
    for before, one in itertools.pairwise(seen):
        if one.code is None or before.code is None or one.code.frame == before.code.frame:
            continue
        k = np.searchsorted(starts, one.clock, "right") - 1
        found.append(pts[str(begun[k][0])] + one.clock - starts[k] - one.code.frame / FPS)
    return np.array(found)


def onsets(seen, wanted):
    return np.array([b.at for a, b in itertools.pairwise(seen) if wanted(b) and not wanted(a)])


def test_a_face_speaks_with_its_sound_and_the_page_says_how_soon(session, sounds):
    begin = now(session)
    session.choose_file("#file", sounds / "tones.wav")
    session.until("document.getElementById('status').textContent === 'The face has finished.'", 15)
    seen = refreshes(session, begin)
    frames = [one.code.frame for one in seen]
    assert frames == sorted(frames)
    spoken = [one for one in seen if speaks(one)]
    seconds = (spoken[-1].at - spoken[0].at) / 1000
    # 25 a second in 2.8 s of tones and gaps; a loaded machine holds some, and leaves out some refreshes
    assert len({one.code.frame for one in seen if spoken[0].at <= one.at <= spoken[-1].at}) > 12 * seconds > 12 * 2.5

    # A picture waits for a refresh of the screen (17 ms at 60 a second), the clock of the audio context goes in steps
    # of what the sound card takes (10 to 20 ms), and our own reading comes a little later than the page's drawing: 40
    # ms, one frame, holds that. Without waiting for the sound, pictures are 120 ms early, by the player's three frames.
    # Of many pictures the median, since a busy processor delays single refreshes by any time.
    ahead = apart(session, seen)
    assert len(ahead) > 30 and abs(np.median(ahead)) < 0.040

    # The same by what the sound is, and not by what the worklet says it is: when a tone begins, the picture has its
    # level. What is made is heard later by the latency of the sound card, which the clock of a refresh does not have.
    latency = 1000 * session.js("tap.audio.outputLatency")
    seen_tones, heard_tones = onsets(seen, speaks), onsets(seen, lambda one: one.loud > HEARD) + latency
    lags = [seen_tones[np.argmin(abs(seen_tones - tone))] - tone for tone in heard_tones]
    assert len(lags) >= 3 and abs(np.median(lags)) < 40

    # the first frame of speech: from the first sample on the socket to pixels that say they speak
    truth = spoken[0].at - session.js("tap.sent")
    told = float(session.until("document.getElementById('first').textContent.match(/\\d+/)")[0])
    assert told == pytest.approx(truth, abs=80)  # two frames: the tone's own begins within one, and is read after one


def test_an_interrupt_stops_speech_within_half_a_second(session, sounds):
    begin = now(session)
    session.choose_file("#file", sounds / "long.wav")
    wait_for(session, lambda one: speaks(one) and one.loud > HEARD, begin)
    pressed = now(session)
    session.click("#interrupt")
    wait_for(session, lambda one: one.code.epoch == 1, pressed, 5)  # the server, too, has begun anew
    time.sleep(0.5)
    late = [one.loud for one in refreshes(session, pressed + 500)]
    assert len(late) > 5 and max(late) == 0
    assert session.status() == "Interrupted."


def test_the_microphone_makes_the_face_speak(session):
    begin = now(session)
    session.click("#mic")
    wait_for(session, lambda one: speaks(one) and one.loud > HEARD, begin)
    assert session.js("document.getElementById('mic').getAttribute('aria-pressed')") == "true"
    session.click("#mic")
    session.until("document.getElementById('status').textContent === 'The face has finished.'")
    silent = now(session)
    time.sleep(0.7)
    assert refreshes(session, silent + 500)[-1].loud == 0
    assert session.js("document.getElementById('mic').getAttribute('aria-pressed')") == "false"


def test_a_dropped_sound_is_spoken(session, sounds):
    begin = now(session)
    x, y = session.js(
        "(() => { const b = document.getElementById('drop').getBoundingClientRect(); return [b.x + 20, b.y + 5]; })()"
    )
    data = {"items": [], "files": [str(sounds / "tones.wav")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.say("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
    wait_for(session, speaks, begin)


def test_another_face_takes_the_place_of_the_session(session, service, tmp_path):
    """The old session is gone before the new one asks for its place."""
    before = refreshes(session)[-1].code.viewer
    upload(session, thirds(tmp_path), "crop-use")
    begin = now(session)
    found = wait_for(session, lambda one: one.code is not None and one.code.viewer != before, begin)
    assert found.code.epoch == 0 and len(service.viewers) == 1
    session.click("#start")
    session.until("document.getElementById('start').textContent === 'Start'")
    deadline = time.monotonic() + 5
    while service.viewers and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not service.viewers


def thirds(folder, size=(400, 300)):
    """A photo whose left third is red, the middle green, the right blue."""
    path = folder / "photo.png"
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    for k in range(3):
        picture[:, k * size[0] // 3 : (k + 1) * size[0] // 3, k] = 255
    Image.fromarray(picture).save(path)
    return path


def upload(page, path, button):
    count = page.js("document.querySelectorAll('#faces input').length")
    page.choose_file("#photo", path)
    page.until("!document.getElementById('cropper').hidden")
    if button:
        page.click(f"#{button}")
        page.until(f"document.querySelectorAll('#faces input').length === {count + 1}")


def test_a_photo_is_cropped_by_mouse_and_by_keyboard(page, tmp_path):
    """The square is 240 of 300 pixels in the middle, mostly green; it goes to the red third, and to the blue one."""
    upload(page, thirds(tmp_path), None)
    left, top, width = page.js(
        "(() => { const b = document.getElementById('crop').getBoundingClientRect(); return [b.x, b.y, b.width]; })()"
    )
    scale = width / 400
    at = lambda x, y: (left + x * scale, top + y * scale)  # noqa: E731
    page.mouse([at(318, 268), at(250, 200), at(198, 148)])  # the corner, 120 pixels in: a side of 120
    page.mouse([at(120, 90), at(80, 90), at(0, 90)])  # the square, as far left as it goes
    page.click("#crop-use")
    page.until("document.querySelectorAll('#faces input').length === 2")
    shows(page, "red")

    upload(page, thirds(tmp_path), None)
    assert page.js("document.activeElement.id") == "crop"
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.key("-", 20)
    page.key("ArrowRight", 40)
    where = page.js("document.getElementById('crop-where').textContent")
    # for a reader of the screen: 20 times 6 pixels (2 % of 300) smaller than 240, and at the right edge of 400
    assert where == "A square of 120 pixels, 280 from the left and 90 from the top."
    page.key("Tab")
    assert page.js("document.activeElement.id") == "crop-use"
    page.key("Enter")
    page.until("document.querySelectorAll('#faces input').length === 3")
    shows(page, "blue")


def shows(page, colour):
    """Wait until the face that is shown has that colour at its corners and in its middle."""
    points = "[[2, 2], [s - 3, 2], [2, s - 3], [s - 3, s - 3], [s / 2, s / 2]]"
    most = "([x, y]) => { const [...p] = pen.getImageData(x, y, 1, 1).data.slice(0, 3);"
    most += "return p.indexOf(Math.max(...p)); }"
    page.until(
        "(() => { const pen = document.getElementById('face').getContext('2d'); const s = pen.canvas.width;"
        f"return {points}.map({most}).every((k) => k === {('red', 'green', 'blue').index(colour)}); }})()"
    )


def test_a_file_that_is_no_picture_or_no_sound_is_told(session, tmp_path):
    text = tmp_path / "face.png"
    text.write_text("This is no picture.")
    session.choose_file("#photo", text)
    session.until("document.getElementById('status').textContent.includes('no picture')")
    assert session.js("document.getElementById('cropper').hidden")
    session.choose_file("#file", text)
    session.until("document.getElementById('status').textContent.includes('no sound')")
    assert session.js("tap.sent") is None


def test_a_wrong_token_is_told_and_the_right_one_opens_the_page(browser, served, service, monkeypatch):
    monkeypatch.setattr(service, "access", Access.of("right"))
    browser.errors.clear()
    for address, message in (("/", "wants a token"), ("/?token=wrong", "another token")):
        browser.open(served.url(address))
        browser.until(f"document.getElementById('status').textContent.includes({json.dumps(message)})")
        assert browser.js("document.getElementById('start').disabled")
    # the browser itself writes down an answer of 403
    assert browser.errors and all("403" in error for error in browser.errors)
    browser.errors.clear()
    browser.open(served.url("/?token=right"))
    browser.until("!document.getElementById('start').disabled")
    browser.click("#start")
    browser.until("tap.begun.length > 3")
    browser.say("Page.navigate", url="about:blank")
    assert browser.errors == []


def test_the_page_works_by_keyboard_and_by_ear(session):
    """Each control has a name and can be reached, and is seen to be; what happens is read out."""
    nodes = session.say("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "radio", "img", "image", "group", "application", "textbox", "Canvas"}
    found = [(n["role"]["value"], n.get("name", {}).get("value")) for n in nodes if not n["ignored"]]
    controls = [(role, name) for role, name in found if role in roles]
    assert len(controls) >= 10 and all(name for _, name in controls), controls
    session.js("document.activeElement.blur()")
    reached = {}
    for _ in range(10):
        session.key("Tab")
        name, outline = session.js(
            "(() => { const e = document.activeElement; const seen = e.type === 'radio' ? e.nextElementSibling : e;"
            "return [e.id || e.type, getComputedStyle(seen).outlineStyle]; })()"
        )
        reached[name] = outline
    assert {"start", "interrupt", "radio", "photo", "mic", "speech", "file"} <= set(reached)
    assert all(outline not in ("none", "") for name, outline in reached.items() if name)
    assert session.js("document.getElementById('status').getAttribute('aria-live')") == "polite"
    origins = session.js("performance.getEntriesByType('resource').map(({name}) => new URL(name).origin)")
    assert len(origins) > 5 and set(origins) == {session.js("location.origin")}


def test_the_guide_to_webrtc_runs(page, service):
    """The code of docs/webrtc.md: picture, sound, messages, and a face that says what the microphone hears."""
    (code,) = re.findall(r"```js\n(.*?)```", (Path(__file__).parents[2] / "docs" / "webrtc.md").read_text(), re.S)
    name = json.dumps(service.avatars.names()[0])
    page.js(
        f"{code}; window.video = document.createElement('video'); call('', {name}, video).then((c) => window.c = c)"
    )
    page.until("window.video.play().then(() => video.videoWidth === 128 && video.currentTime > 0.2)")
    assert page.js("video.srcObject.getTracks().map(({ kind }) => kind).sort()") == ["audio", "video"]
    page.until("window.c && c.said.readyState === 'open'")
    page.js("window.events = []; c.said.onmessage = ({ data }) => events.push(JSON.parse(data).type)")
    page.until("events.includes('speech.started')")
    page.js(
        "const context = new AudioContext(); window.heard = context.createAnalyser(); context.resume();"
        "context.createMediaStreamSource(video.srcObject).connect(heard); window.samples = new Float32Array(2048)"
    )
    # this browser's microphone beeps each second
    page.until("(heard.getFloatTimeDomainData(samples), Math.max(...samples) > 0.05)")
    page.js("c.said.send(JSON.stringify({ type: 'interrupt' }))")
    page.until("events.includes('interrupted')")
    page.js("c.peer.close()")
