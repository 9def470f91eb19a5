"""Synthetic speech with exact phoneme times, by espeak-ng.

espeak-ng is under the GPL, so nothing here imports it before it is needed: it comes with `rest_fast[synth]`. Data made
with it is what training uses; the trained model does not need it.
"""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import importlib
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import soxr

from rest_fast.errors import ArgumentError
from rest_fast.training.synthetic import flite, microphone
from rest_fast.training.synthetic.phonemes import Phoneme as Phoneme
from rest_fast.training.synthetic.phonemes import Speak
from rest_fast.training.synthetic.phonemes import Utterance as Utterance
from rest_fast.training.synthetic.words import WORDS
from rest_fast.units import RATE

# "language" or "language+variant". Languages of test and validation (accents) and all variants stand in one split only.
VOICES: dict[str, tuple[str, ...]] = {
    "train": (
        *("en-us", "en", "en-gb-x-rp", "en-029", "en-us-nyc"),
        *("en-us+f1", "en+f3", "en-us+f5", "en-us+linda", "en-gb-x-rp+steph", "en-us+Annie", "en+aunty"),
        *("en-us+shelby", "en-us+m1", "en+m2", "en-us+m4", "en-us+m6", "en-us-nyc+m8", "en-us+klatt", "en+Andy"),
        *("en-us+edward", "en-us+Mario", "en-us+quincy", "en-us+Nguyen", "en-us+Denis"),
    ),
    "validation": ("en-gb-x-gbcwmd", "en-us+f2", "en-us+m3"),
    "test": ("en-gb-scotland", "en-gb-x-gbclan", "en-us+f4", "en-us+m7"),
}

Voices = Literal["espeak", "flite", "mixed"]

_SILENCE = "_:"
_VOICELESS_STOPS = ("p", "t", "k")
_SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
_LIST_TERMINATED, _PHONEME = 0, 7  # espeak_EVENT_TYPE
_PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "pitch_range": 4, "punctuation": 5, "capitals": 6, "word_gap": 7}
# The library is opened and closed for every sentence; two threads would share one copy.
_ONE_AT_A_TIME = threading.Lock()


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_uint8 * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


@contextlib.contextmanager
def _fresh_espeak() -> Iterator[tuple[ctypes.CDLL, int, Path]]:
    """A newly loaded libespeak-ng, its sample rate and its data folder.

    Phases, flutter and noise of the synthesiser live in static variables that no call resets, not even
    `espeak_Terminate`; only unloading does. It costs under a millisecond and makes a sentence depend on its arguments
    alone.
    """
    try:
        espeakng_loader = importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise ImportError("synthetic speech needs: pip install 'rest_fast[synth]'") from error
    data = Path(espeakng_loader.get_data_path())
    with _ONE_AT_A_TIME:
        library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        try:
            library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
            library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
            library.espeak_SetSynthCallback.argtypes = [_Callback]
            library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
            library.espeak_Synth.argtypes = [
                *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint),
                *(ctypes.c_void_p, ctypes.c_void_p),
            ]
            rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _PHONEME_EVENTS)
            if rate <= 0:
                raise RuntimeError(f"espeak_Initialize returned {rate} with the data in {data}")
            library.espeak_ng_SetRandSeed(1)
            yield library, rate, data
        finally:
            library.espeak_Terminate()
            _ctypes.dlclose(library._handle)


def speak(text: str, voice: str, *, rate: int = 160, pitch: int = 50, pitch_range: int = 50) -> Utterance:
    """Speak a text; the same arguments give the same bits, whatever was spoken before.

    Args:
        voice: an espeak-ng voice, with or without `+variant`, as in `VOICES`.
        rate: words per minute.
        pitch: 0..100, of the voice's own range.
        pitch_range: 0..100, from monotonous to lively.

    Returns:
        Samples with a peak of 1, ending with espeak's own short pause.
    """
    pieces: list[bytes] = []
    marks: list[tuple[str, int]] = []

    def receive(wave: int | None, count: int, events: ctypes.Array[_Event]) -> int:
        if wave and count > 0:
            pieces.append(ctypes.string_at(wave, 2 * count))
        index = 0
        while events[index].type != _LIST_TERMINATED:
            if events[index].type == _PHONEME:
                name = bytes(events[index].id).split(b"\0")[0].decode()
                marks.append((name, events[index].sample))
            index += 1
        return 0

    callback = _Callback(receive)  # a name of its own: espeak keeps only a pointer to it
    settings = {"rate": rate, "volume": 100, "pitch": pitch, "pitch_range": pitch_range}
    with _fresh_espeak() as (library, native_rate, data):
        variant = voice.partition("+")[2]
        # espeak says nothing about a variant it does not have, and speaks with the plain voice.
        if (variant and not (data / "voices" / "!v" / variant).is_file()) or library.espeak_SetVoiceByName(
            voice.encode()
        ):
            raise ArgumentError(f"espeak-ng has no voice {voice!r}")
        for name, number in _PARAMETERS.items():
            library.espeak_SetParameter(number, settings.get(name, 0), 0)
        library.espeak_SetSynthCallback(callback)
        spoken = text.encode()
        if library.espeak_Synth(spoken, len(spoken) + 1, 0, 0, 0, _UTF8, None, None):
            raise RuntimeError(f"espeak-ng could not speak {text!r}")
        library.espeak_Synchronize()
    native = np.frombuffer(b"".join(pieces), np.int16).astype(np.float32)
    if not native.any():
        raise ArgumentError(f"there is nothing to speak in {text!r}")
    samples = soxr.resample(native, native_rate, RATE, quality="HQ")
    samples /= np.abs(samples).max()
    # At whole samples, so that speech can be cut and joined without slivers between its phonemes.
    borders = [min(round(sample * RATE / native_rate), len(samples)) for _, sample in marks] + [len(samples)]
    for i in range(1, len(marks)):
        if marks[i][0].startswith(_VOICELESS_STOPS) and not marks[i - 1][0].startswith("_"):
            borders[i] = _closure(samples, borders[i - 1], borders[i])
    starts = [border / RATE for border in borders]
    phonemes = [Phoneme(name, starts[i], starts[i + 1]) for i, (name, _) in enumerate(marks)]
    if starts[0] > 0:
        phonemes.insert(0, Phoneme(_SILENCE, 0.0, starts[0]))
    return Utterance(samples, tuple(p for p in phonemes if p.end > p.start), text, voice)


def _closure(samples: np.ndarray, previous: int, burst: int) -> int:
    """First sample of the silence before a stop's burst.

    espeak times `p`, `t` and `k` from their burst on and counts the shut mouth before it as the end of the `previous`
    sound (its first sample). At least half of that sound is left.
    """
    first = max((previous + burst) // 2, burst - RATE // 10)
    loud = np.flatnonzero(np.abs(samples[first:burst]) > 0.01)
    return first + int(loud[-1]) + 1 if len(loud) else first


def speaker(rng: np.random.Generator, split: str) -> tuple[str, Speak]:
    """A random voice of a split with a pace and a pitch of its own."""
    voice = str(rng.choice(VOICES[split]))
    rate, pitch, pitch_range = (int(rng.integers(low, high)) for low, high in ((130, 191), (25, 81), (30, 71)))
    return voice, partial(speak, voice=voice, rate=rate, pitch=pitch, pitch_range=pitch_range)


def sentence(rng: np.random.Generator, split: str) -> str:
    """Four to ten random words of a split, ended by a full stop, a question mark or an exclamation mark."""
    words = rng.choice(WORDS[split], size=rng.integers(4, 11))
    return " ".join(map(str, words)) + str(rng.choice([".", "?", "!"]))


def utterance(rng: np.random.Generator, split: str, seconds: float, voices: Voices = "espeak") -> Utterance:
    """Sentences by one random voice of a split, with pauses, as a microphone might hear them.

    Everything random comes from `rng`: the same state gives the same bits in any process.

    Args:
        voices: `espeak`: synthetic ones. `flite`: recorded speakers (:mod:`rest_fast.training.synthetic.flite`), in
            rooms and through codecs; validation has none of them. `mixed`: either, by chance.

    Returns:
        An utterance of exactly `round(seconds * 16000)` samples. It may begin and end in the middle of a word.
    """
    total = round(seconds * RATE)
    if voices == "mixed":
        voices = "flite" if flite.VOICES[split] and rng.random() < 0.5 else "espeak"
        roomy = True
    else:
        roomy = voices == "flite"
    voice, say = (flite.speaker if voices == "flite" else speaker)(rng, split)
    # One clip in twelve has a long rest, so that a mouth learns to stay shut.
    rest = rng.random() < 1 / 12
    paused = rng.random() < 0.5
    clip, phonemes, texts = np.zeros(total, np.float32), [], []
    position = 0  # samples
    while position < total:
        if paused:
            longest = (1.0, 2.0) if rest else (0.15, 0.8)
            rest = False
            end = min(position + round(rng.uniform(*longest) * RATE), total)
            phonemes.append(Phoneme(_SILENCE, position / RATE, end / RATE))
            position = end
        else:
            # In mid-speech; before a long rest late in the sentence, so that the rest comes within the clip.
            text = sentence(rng, split)
            speech = _trimmed(say(text))
            skip = 0
            if position == 0:
                skip = round(rng.uniform(0.0, 0.6) * len(speech.samples))
                if rest:
                    skip = max(skip, len(speech.samples) - total // 3)
            position += _place(speech, skip, clip, position, phonemes)
            texts.append(text)
        paused = not paused
    samples = microphone.recorded(rng, clip, [(p.start, p.end) for p in phonemes if not p.name.startswith("_")])
    if roomy:
        samples = microphone.transmitted(rng, microphone.in_a_room(rng, samples))
    return Utterance(samples, tuple(phonemes), " ".join(texts), voice)


def _trimmed(speech: Utterance) -> Utterance:
    """Without the pause that espeak puts at the end."""
    last = max(i for i, phoneme in enumerate(speech.phonemes) if not phoneme.name.startswith("_"))
    end = round(speech.phonemes[last].end * RATE)
    return Utterance(speech.samples[:end], speech.phonemes[: last + 1], speech.text, speech.voice)


def _place(speech: Utterance, skip: int, clip: np.ndarray, position: int, phonemes: list[Phoneme]) -> int:
    """Put `speech` from its sample `skip` into `clip` at `position`; returns the number of samples used."""
    piece = speech.samples[skip : skip + len(clip) - position]
    clip[position : position + len(piece)] = piece
    first, last, shift = position / RATE, (position + len(piece)) / RATE, (position - skip) / RATE
    for phoneme in speech.phonemes:
        start, end = max(phoneme.start + shift, first), min(phoneme.end + shift, last)
        if end > start:
            phonemes.append(Phoneme(phoneme.name, start, end))
    return len(piece)
