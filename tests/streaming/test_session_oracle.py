"""Session against the oracle: every field of every block, bit for bit, whatever happened before it.

One long script holds what makes a stream more than a loop over chunks; each configuration plays it. The model is a toy
with random weights.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import preset
from rest_fast.models.vae import to_latents
from tests.kit.oracle import Oracle
from tests.kit.scripts import long_script, looking_ahead, pushes, scripts, stereo
from tests.kit.streams import Script, perform, same
from tests.kit.toys import basis_model, photo, toy


def noisy(scale: float, **changes):
    """A decoder like those of LTX-Video 0.9.1 and later, that mixes noise into its latents."""
    return toy(vae=preset("toy").replace(vae__timestep_conditioning=True, vae__decode_noise_scale=scale).vae, **changes)


CASES = {  # model, options of the session
    "default": (toy, {}),
    "absolute_without_guidance": (lambda: toy(stream__positions="absolute"), {"guidance": 1.0, "seed": 2**64 - 1}),
    "per_step": (lambda: toy(stream__context="per_step"), {"steps": 3, "guidance": -1.5}),
    "clean_noise_of_the_decoder": (lambda: noisy(0.3, stream__context="clean"), {"seed": 5}),
    "lookahead_1": (looking_ahead, {}),
}
SLOW = {
    "no_context": (lambda: toy(stream__context_chunks=0), {}),
    "two_chunks_per_step": (lambda: toy(stream__context_chunks=2, stream__context="per_step"), {}),
    "chunks_of_two": (lambda: toy(stream__chunk=2, stream__context_chunks=3), {}),
    "no_sink": (lambda: toy(stream__sink=False), {}),
    "other_rate": (toy, {"sample_rate": 22050}),
    "basis": (basis_model, {}),
    "lookahead_2_no_context": (lambda: looking_ahead(stream__context_chunks=0), {"decode": "lookahead(2)"}),
    "lookahead_0": (looking_ahead, {"decode": "lookahead(0)"}),
    "lookahead_2_per_step": (lambda: looking_ahead(stream__context="per_step"), {"decode": "lookahead(2)"}),
    "lookahead_4": (looking_ahead, {"decode": "lookahead(4)", "guidance": 1.0}),
}


def both(make, script: Script, **options) -> tuple[list, Oracle]:
    """What a session and the oracle say to a script, compared: the session's blocks, and the oracle."""
    model, oracles = make(), []
    avatar = model.prepare(photo(), crop="center")
    scale = getattr(model.config.vae, "decode_noise_scale", 0.0)
    plain = noisy(0.0).vae if scale else None

    def oracle(**options):
        oracles.append(Oracle(model, avatar, plain_vae=plain, **options))
        return oracles[0]

    want = perform(script, oracle, **options)
    got = perform(script, lambda **options: model.session(avatar, **options), **options)
    assert [x for x in got if isinstance(x, str)] == [x for x in want if isinstance(x, str)]
    blocks, expected = ([x for x in found if not isinstance(x, str)] for found in (got, want))
    same(blocks, expected)
    return blocks, oracles[0]


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_session_shows_what_the_oracle_says(name):
    make, options = (CASES | SLOW)[name]
    rate = options.get("sample_rate", 16000)
    blocks, _ = both(make, long_script(rate, stereo if rate != 16000 else lambda wave: wave), **options)
    assert len(blocks) > 30 and blocks[-1].epoch >= 5
    assert all(np.std(b.video) > 1 for b in blocks)


def test_a_decoder_that_looks_ahead_begins_with_the_reference_when_no_context_does():
    """Of ``context_chunks = 0`` nothing is kept for a context: the first chunk used to fail."""
    script = [
        *pushes(16000, 1.5, 0),
        ("take", 2),
        ("interrupt", 1),
        *pushes(16000, 0.7, 1),
        ("end", None),
        ("take", None),
    ]
    blocks, _ = both(lambda: looking_ahead(stream__context_chunks=0), script)
    assert len(blocks) == 5


def test_the_oracle_itself_follows_the_decoder_as_a_whole():
    """A stream without interrupts, its last segment a chunk and a half: all latents decoded in one call."""
    script = [*pushes(16000, 1.5, 0), ("end", None), ("take", None)]
    for make, mode in ((toy, "causal"), (looking_ahead, "lookahead(1)")):
        blocks, oracle = both(make, script)
        model, sequence = oracle.model, [oracle.silent.z, *(latent.z for latent in oracle.latents)]
        z = to_latents(torch.cat(sequence)[None], model.config.grid)
        whole = model.vae.decode(z, mode=mode)[0, :, 1:].movedim(0, -1)
        whole = ((whole + 1) * 127.5).clamp(0, 255)
        got = torch.from_numpy(np.concatenate([b.video for b in blocks]))
        assert whole.shape == got.shape and whole.std() > 10
        # half a level of rounding; convolutions of one latent add in another order than those of five: 1e-5 of 127
        assert (got - whole).abs().max() <= 0.5 + 2e-3


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(script=scripts(), name=st.sampled_from(sorted(CASES | SLOW)))
def test_any_script(script, name):
    make, options = (CASES | SLOW)[name]
    both(make, script, **options | {"sample_rate": 16000})
