"""What viewers do, as scripts for :func:`tests.kit.streams.perform`: a long one, and any."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from rest_fast import preset
from tests.kit.streams import Script
from tests.kit.toys import sound, toy

STEPS = ["push", "push", "push", "take", "take", "idle", "end", "interrupt", "move"]


def pushes(rate: int, seconds: float, seed: int, form=lambda wave: wave) -> Script:
    """Small pieces of sound: what is dropped too early is then really gone."""
    wave = form(sound(rate, seconds, seed=seed))
    return [("push", piece) for piece in np.array_split(wave, max(1, round(4 * seconds)))]


def long_script(rate: int = 16000, form=lambda wave: wave) -> Script:
    """40 blocks. A comment says what the next chunk continues from."""

    def say(seconds: float, seed: int) -> Script:
        return pushes(rate, seconds, seed, form)

    idle, end, move, everything = ("idle", None), ("end", None), ("move", None), ("take", None)
    return [
        *[idle, ("interrupt", 2), move],  # one idle latent, and before it the reference twice; no format as yet
        *[*say(1.5, 0), ("take", 3), ("interrupt", 1)],  # two of one chunk, one before
        *[*say(1.2, 1), ("take", 1), end, move, everything],  # ends inside a chunk: its last latents are dropped
        *[move, *say(0.2, 2), end, everything, *say(0.3, 3), end, everything],  # segments shorter than a chunk
        *[*say(0.5, 4), ("idle", 2), move, everything],  # starving: the queued half second comes after the idle chunk
        *[*say(1.3, 5), end, ("take", 2), ("interrupt", None)],  # what was generated and not delivered is gone
        *[*say(0.5, 6), end, move, *say(1.6, 7), end, everything],  # two segments in the queue
        *[("interrupt", back) for back in (1.5, 4, 2)],  # to 1 back; then to 3, which is as far as it goes; stays
        *[move, ("interrupt", 1), *say(2.2, 8), ("take", 1), ("interrupt", 2)],  # both stay there
        *[("take", 3), move, ("interrupt", 1), *say(2.1, 9), end, everything],
        *[end, ("interrupt", None), move, *say(2.4, 10), ("take", 1), ("idle", None), end, everything],
    ]


def stereo(wave: np.ndarray) -> np.ndarray:
    return (np.stack([wave, -0.5 * wave], 1).clip(-1, 1) * 32767).astype(np.int16)


def looking_ahead(**changes):
    return toy(vae=preset("toy").replace(vae__causal_decoder=False).vae, **changes)


@st.composite
def scripts(draw) -> Script:
    """Anything that a caller may do, in any order."""
    script, seconds = [], st.floats(0.01, 1.4)
    for i, step in enumerate(draw(st.lists(st.sampled_from(STEPS), min_size=6, max_size=24))):
        if step == "push":
            script += [("push", sound(16000, draw(seconds), seed=i))]
        elif step in ("take", "idle"):
            script += [(step, draw(st.sampled_from([1, 2, 3, None])))]
        else:
            script += [(step, draw(st.sampled_from([None, 0, 0.7, 1, 2, 3, 3.5])) if step == "interrupt" else None)]
    return [*script, ("end", None), ("take", None)]
