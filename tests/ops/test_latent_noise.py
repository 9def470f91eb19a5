"""``latent_noise``: the numbers of ``rest_fast.noise`` for every frame, whatever stands beside it."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast import noise, ops
from rest_fast.ops.dispatch import OpError
from rest_fast.ops.latent_noise import LIMIT, drawn
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls

NAME = "latent_noise"
FRAMES = [(7, 3, 0), (2**64 - 1, 2**63 + 5, 2**32 - 1), (0, 0, 3)]  # seed, latent, purpose


def words(*frames: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor([noise.words(*frame) for frame in frames], dtype=torch.int32)


@pytest.mark.parametrize("count", [1, 4, 5, 2048])
def test_frames_are_those_of_the_noise(count):
    out = torch.empty(3, count)
    with ops.use_backend("reference"):
        ops.latent_noise(out, words(*FRAMES))
    for row, (seed, latent, purpose) in zip(out, FRAMES, strict=True):
        assert_same_bits(row, noise.normal(seed, latent, count, purpose), f"frame {latent}")


def test_words_are_bit_patterns():
    assert noise.words(0x8000000080000001, 0x123456789ABCDEF0, 0xFFFFFFFF) == [
        *(-0x7FFFFFFF, -0x80000000),
        *(0x9ABCDEF0 - 2**32, 0x12345678, -1),
    ]
    (row,) = words((2**64 - 1, 5, 1)).tolist()
    assert row == [-1, -1, 5, 0, 1]


@pytest.mark.parametrize("name, bits", [("seed", 64), ("latent", 64), ("purpose", 32)])
def test_words_refuse_what_does_not_fit(name, bits):
    good = {"seed": 1, "latent": 2, "purpose": 0}
    for value in (-1, 1 << bits, True, 1.0):
        with pytest.raises(ValueError, match=rf"^{name}: expected an integer in 0\.\.2\^{bits} - 1, got {value}$"):
            noise.words(**good | {name: value})


def test_drawn_frames():
    got = drawn(42, range(9, 12), 130, noise.CONTEXT)
    assert got.shape == (3, 130) and got.dtype == torch.float32
    for row, latent in zip(got, range(9, 12), strict=True):
        want = noise.normal(42, latent, 130, noise.CONTEXT)
        assert_close(row, want, rtol=2.0**-23, reason="the same float32 or its neighbour")
    assert drawn(42, [], 130).shape == (0, 130)


def test_the_transform_by_hand():
    """Box-Muller of the words of Philox, in Python's floats."""
    seed, latent, purpose = FRAMES[1]
    got = drawn(seed, [latent], 8, purpose)[0].tolist()
    for block in (0, 1):
        counter = tuple(torch.tensor(w) for w in (block, latent % 2**32, latent // 2**32, purpose))
        u = [(int(w) + 0.5) / 2**32 for w in noise.philox4x32(counter, (seed % 2**32, seed // 2**32))]
        for pair in (0, 2):
            radius, angle = math.sqrt(-2 * math.log(u[pair])), 2 * math.pi * u[pair + 1]
            for i, value in enumerate((radius * math.cos(angle), radius * math.sin(angle))):
                assert math.isclose(got[4 * block + pair + i], value, rel_tol=2.0**-23)


def test_too_many_numbers_a_frame():
    out, frames = torch.empty(1, LIMIT, device="meta"), torch.empty(1, 5, dtype=torch.int32, device="meta")
    with pytest.raises(OpError, match=f"^{NAME}: argument out: expected fewer than {LIMIT} numbers a frame, got"):
        ops.latent_noise(out, frames)


def test_words_are_read_when_the_op_runs():
    """As a captured graph needs it: the same tensors, other contents, other noise."""
    call = calls.latent_noise()
    results = []
    for latent in (1, 2):
        call["words"][0, 2] = latent
        calls.invoke(NAME, call)
        results.append(call["out"].clone())
    assert not torch.equal(results[0][0], results[1][0])
    assert_same_bits(results[0][1:], results[1][1:], "the other frames")
