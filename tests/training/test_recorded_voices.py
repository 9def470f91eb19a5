"""Recorded speakers by flite, and what lies between a mouth and a file."""

from __future__ import annotations

import shutil
import wave

import numpy as np
import pytest

from rest_fast.errors import ArgumentError
from rest_fast.training.synthetic import clips, flite, microphone, speech
from rest_fast.training.synthetic.visemes import viseme_of
from rest_fast.units import RATE

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="no program flite (Debian: apt install flite)")


def edge(samples, share=0.02):
    """First sample that is louder than this share of the loudest."""
    return int(np.argmax(np.abs(samples) > share * np.abs(samples).max()))


@needs_flite
@pytest.mark.parametrize("voice", [voice for voices in flite.VOICES.values() for voice in voices])
def test_phonemes_are_where_they_are_heard(voice):
    said = flite.speak("Pappa may keep a map", voice)
    assert np.abs(said.samples).max() == 1 and said.samples.dtype == np.float32
    assert said.phonemes[0].start == 0 and said.phonemes[-1].end == len(said.samples) / RATE
    assert all(a.end == b.start for a, b in zip(said.phonemes, said.phonemes[1:]))
    names = [p.name for p in said.phonemes if not p.name.startswith("_")]
    assert names[:4] == ["p", "a", "p", "@"] and names[-3:] == ["m", "a", "p"]
    level = {p: np.sqrt(np.mean(said.samples[round(p.start * RATE) : round(p.end * RATE)] ** 2)) for p in said.phonemes}
    loud = [level[p] for p in said.phonemes if p.name in ("A:", "a", "eI")]
    quiet = [level[p] for p in said.phonemes if p.name in ("_:", "p")]
    assert min(loud) > 2 * np.median(quiet)


@needs_flite
def test_every_name_has_a_viseme():
    assert all(viseme_of(name) for name in flite.NAMES.values())


@needs_flite
def test_pace_and_pitch():
    plain, fast, high = (flite.speak("mother", "slt", **given) for given in ({}, {"pace": 1.2}, {"pitch": 1.2}))
    length = len(plain.samples)
    assert len(fast.samples) == pytest.approx(length / 1.2, rel=0.05)
    assert len(high.samples) == pytest.approx(length, rel=0.05)  # the pace stays

    def centre(samples):
        power = np.abs(np.fft.rfft(samples)) ** 2
        return (power * np.fft.rfftfreq(len(samples), 1 / RATE)).sum() / power.sum()

    assert centre(high.samples) > 1.08 * centre(plain.samples)
    assert np.array_equal(flite.speak("mother", "slt").samples, plain.samples)


@needs_flite
def test_clips_of_recorded_voices(tmp_path):
    one, again = (speech.utterance(np.random.default_rng(3), "train", 3.0, "flite") for _ in range(2))
    assert np.array_equal(one.samples, again.samples) and one.phonemes == again.phonemes
    assert one.voice.removeprefix("flite ") in flite.VOICES["train"] and len(one.samples) == 3 * RATE
    heard = {
        speech.utterance(np.random.default_rng(n), "train", 1.0, "mixed").voice.startswith("flite") for n in range(12)
    }
    assert heard == {True, False}
    clips.write_clips(tmp_path / "clips", 1, split="test", size=32, workers=1, voices="flite")
    made = clips.Clips(tmp_path / "clips")
    assert made.about["voices"] == "flite" and made.about["clips"][0]["voice"] == "flite rms"


def test_the_protocol_of_flite_is_read(tmp_path, monkeypatch):
    """A program in its place: what it is asked, and what is made of its answer."""
    tone = (8000 * np.sin(np.arange(8000) / 5)).astype("<i2")
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(tone.tobytes())
    script = tmp_path / "flite"
    script.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncp {tmp_path}/tone.wav "$8"\necho "pau:0.1 m:0.2 aa:0.4 pau:0.6"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    said = flite.speak("ma", "slt", pace=0.8)
    words = (tmp_path / "asked").read_text().split()
    assert words[:6] == ["-voice", "slt", "--setf", "duration_stretch=1.250000", "-t", "ma"] and words[-1] == "-psdur"
    want = [("_:", 0, 0.1), ("m", 0.1, 0.2), ("A:", 0.2, 0.4), ("_:", 0.4, 0.5)]  # 0.6 s were not there
    assert [(p.name, p.start, p.end) for p in said.phonemes] == want


def test_what_is_missing_is_said_before_work_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        ArgumentError, match=r"expected the program flite on PATH \(Debian: apt install flite\), found none"
    ):
        clips.write_clips(tmp_path / "clips", 1, voices="mixed")
    assert not (tmp_path / "clips").exists()
    with pytest.raises(ArgumentError, match="expected a split with recorded speakers, got validation, which has none"):
        clips.write_clips(tmp_path / "clips", 1, voices="flite", split="validation")
    assert not (tmp_path / "clips").exists()
    with pytest.raises(ArgumentError, match="flite: expected one of"):
        flite.speak("x", "nobody")


def test_no_speaker_is_in_two_splits():
    everybody = [voice for voices in flite.VOICES.values() for voice in voices]
    assert len(set(everybody)) == len(everybody) == 4 and flite.VOICES["test"] == ("rms",)


def test_a_room_and_a_line_move_nothing_in_time():
    """A click stays where it is, and what comes behind it in a room is late by what sound needs to come back."""
    click = np.zeros(RATE, np.float32)
    click[4000] = 0.5
    kinds = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        room = microphone.in_a_room(rng, click)
        assert edge(room, 0.5) == 4000 and np.abs(room[:3990]).max() < 1e-6 and np.abs(room).max() <= 0.99
        tail = np.square(room[4001:]).sum() / np.square(room[4000])
        assert tail == 0 or 10 ** (-20 / 10) * 0.9 < tail < 10 ** (-6 / 10) * 1.1  # 6 to 20 dB below
        line = microphone.transmitted(rng, click)
        assert abs(int(np.abs(line).argmax()) - 4000) <= 1 and len(line) == RATE and line.dtype == np.float32
        spectrum = np.abs(np.fft.rfft(line))
        kinds.add((bool(tail), "telephone" if spectrum[4200:].max() < 0.05 * spectrum[1000] else "wide"))
    assert kinds == {(room, line) for room in (True, False) for line in ("telephone", "wide")}


def test_a_telephone_keeps_the_voice_and_adds_the_noise_of_its_levels():
    rng = np.random.default_rng(0)
    tone = (0.3 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)).astype(np.float32)
    heard = [microphone.transmitted(rng, tone) for _ in range(60)]
    errors = sorted(np.square(h - tone)[500:-500].mean() / np.square(tone).mean() for h in heard)
    assert errors[0] == 0 and errors[-1] < 10**-3  # nothing is worse than 30 dB below the tone
