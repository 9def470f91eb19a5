"""Recorded speakers with phoneme times, by the program flite (Debian: ``apt install flite``; free licence).

Four speakers are in it; a random pace and a random pitch make more of each. One is held out for tests.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from functools import partial
from pathlib import Path

import numpy as np
import soxr

from rest_fast.errors import ArgumentError
from rest_fast.training.synthetic.phonemes import Phoneme, Speak, Utterance
from rest_fast.units import RATE

VOICES: dict[str, tuple[str, ...]] = {"train": ("slt", "awb", "kal16"), "validation": (), "test": ("rms",)}
# flite's phones are those of CMU's dictionary; everything else here has espeak-ng's names.
NAMES = {
    **{name: name for name in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z")},
    **{"pau": "_:", "aa": "A:", "ae": "a", "ah": "V", "ao": "O:", "aw": "aU", "ax": "@", "ay": "aI", "ch": "tS"},
    **{"dh": "D", "eh": "E", "er": "3:", "ey": "eI", "hh": "h", "ih": "I", "iy": "i:", "jh": "dZ", "ng": "N"},
    **{"ow": "oU", "oy": "OI", "sh": "S", "th": "T", "uh": "U", "uw": "u:", "y": "j", "zh": "Z"},
}
_SECONDS = 60  # that a sentence may take


def program() -> str:
    """Where flite is. ArgumentError: nowhere."""
    found = shutil.which("flite")
    if found is None:
        raise ArgumentError("voices: flite: expected the program flite on PATH (Debian: apt install flite), found none")
    return found


def speak(text: str, voice: str, *, pace: float = 1.0, pitch: float = 1.0) -> Utterance:
    """Speak a text; the same arguments give the same bits.

    Args:
        voice: one of `VOICES`.
        pace: how much faster than the speaker's own.
        pitch: how much higher, formants included, as a record that turns faster; the pace stays.

    Returns:
        Samples with a peak of 1, with flite's short pauses at both ends.
    """
    if not any(voice in voices for voices in VOICES.values()):
        raise ArgumentError(f"flite: expected one of {VOICES}, got {voice!r}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        stretch = f"duration_stretch={pitch / pace:.6f}"
        command = [program(), "-voice", voice, "--setf", stretch, "-t", text, "-o", str(path), "-psdur"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode or not path.is_file():
            raise RuntimeError(f"flite could not speak {text!r}: {done.stderr.strip()[-200:]}")
        with wave.open(str(path)) as file:
            native_rate = file.getframerate()
            native = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)
    samples = soxr.resample(native, native_rate * pitch, RATE, quality="HQ")
    peak = np.abs(samples).max(initial=0)
    if not peak:
        raise ArgumentError(f"there is nothing to speak in {text!r}")
    return Utterance(samples / peak, _phonemes(done.stdout, len(samples), pitch), text, voice)


def _phonemes(printed: str, count: int, pitch: float) -> tuple[Phoneme, ...]:
    """flite prints each phone with the second at which it ends. Borders lie at whole samples."""
    found, start = [], 0
    for word in printed.split():
        name, _, end = word.partition(":")
        stop = min(round(float(end) / pitch * RATE), count)
        if stop > start:
            found.append(Phoneme(NAMES[name], start / RATE, stop / RATE))
            start = stop
    if start < count:
        found.append(Phoneme(NAMES["pau"], start / RATE, count / RATE))
    return tuple(found)


def speakers(split: str) -> tuple[str, ...]:
    """The recorded speakers of a split. ArgumentError: it has none."""
    if not VOICES[split]:
        raise ArgumentError(f"voices: expected a split with recorded speakers, got {split}, which has none")
    return VOICES[split]


def speaker(rng: np.random.Generator, split: str) -> tuple[str, Speak]:
    """A random speaker of a split with a pace and a pitch of their own."""
    voice = str(rng.choice(speakers(split)))
    pace, pitch = rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.2)
    return f"flite {voice}", partial(speak, voice=voice, pace=pace, pitch=pitch)
