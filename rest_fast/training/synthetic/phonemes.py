"""What every synthesiser gives: samples, and phonemes with exact times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Phoneme:
    """A sound of espeak-ng's inventory and its time in seconds from the first sample."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Utterance:
    """Speech: samples float32 [n] at 16 kHz within -1..1, and its phonemes, without gaps."""

    samples: np.ndarray
    phonemes: tuple[Phoneme, ...]
    text: str
    voice: str


Speak = Callable[[str], Utterance]  # a text as one voice says it
