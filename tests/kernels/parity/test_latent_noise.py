"""``latent_noise`` in Triton: Philox bit for bit, the float64 functions within their bound, the reference's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_fast import noise
from rest_fast.kernels import latent_noise as package
from rest_fast.kernels.latent_noise.kernel import cosine_and_sine, natural_logarithm, philox4x32, uniform
from tests.kernels import kit
from tests.kit.compare import assert_close, assert_same_bits
from tests.ops import calls
from tests.ops.cases.latent_noise import exact, near_zero, neighbours

NAME = "latent_noise"
ONES = 0xFFFFFFFF
UNIT = 2.0**-53  # half a unit in the last place of float64
# Random123's kat_vectors, "philox4x32 10": counter, key, result
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@triton.jit
def words_kernel(given, out, COUNT: tl.constexpr):
    """given: int32 [6, COUNT], counter and key; out: int32 [4, COUNT]."""
    i = tl.arange(0, COUNT)
    c0 = tl.load(given + i).to(tl.uint32, bitcast=True)
    c1 = tl.load(given + COUNT + i).to(tl.uint32, bitcast=True)
    c2 = tl.load(given + 2 * COUNT + i).to(tl.uint32, bitcast=True)
    c3 = tl.load(given + 3 * COUNT + i).to(tl.uint32, bitcast=True)
    k0 = tl.load(given + 4 * COUNT + i).to(tl.uint32, bitcast=True)
    k1 = tl.load(given + 5 * COUNT + i).to(tl.uint32, bitcast=True)
    c0, c1, c2, c3 = philox4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out + i, c0.to(tl.int32, bitcast=True))
    tl.store(out + COUNT + i, c1.to(tl.int32, bitcast=True))
    tl.store(out + 2 * COUNT + i, c2.to(tl.int32, bitcast=True))
    tl.store(out + 3 * COUNT + i, c3.to(tl.int32, bitcast=True))


@triton.jit
def functions_kernel(words, out, COUNT: tl.constexpr):
    """words: int32 [COUNT]; out: fp64 [3, COUNT], the logarithm, cosine and sine of what the words mean."""
    i = tl.arange(0, COUNT)
    word = tl.load(words + i).to(tl.uint32, bitcast=True)
    cosine, sine = cosine_and_sine(word)
    tl.store(out + i, natural_logarithm(uniform(word)))
    tl.store(out + COUNT + i, cosine)
    tl.store(out + 2 * COUNT + i, sine)


def as_int32(words: list[list[int]] | list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(words, dtype=np.uint32).view(np.int32)).to(kit.DEVICE)


def test_philox_bit_for_bit():
    """Published answers, and the reference for random words and for all corners."""
    g = torch.Generator().manual_seed(0)
    given_words = torch.randint(0, 2**32, (256, 6), generator=g)
    given_words[:64] = torch.tensor([[(i >> j & 1) * ONES for j in range(6)] for i in range(64)])
    for row, (counter, key, _) in enumerate(VECTORS, 64):
        given_words[row] = torch.tensor([*counter, *key])
    columns = given_words.T.contiguous()
    out = torch.empty(4, 256, dtype=torch.int32, device=kit.DEVICE)
    words_kernel[(1,)](as_int32(columns.tolist()), out, COUNT=256)
    got = (out.cpu().long() & ONES).T
    assert [tuple(row) for row in got[64:67].tolist()] == [result for _, _, result in VECTORS]
    want = torch.stack(noise.philox4x32(tuple(columns[:4]), (columns[4], columns[5])), 1)
    assert torch.equal(got, want)


def test_functions_in_float64():
    """Random words, the ends, and those next to each eighth of a turn, against 64 bits of mantissa."""
    g = torch.Generator().manual_seed(1)
    eighths = [(e * 2**29 + d) % 2**32 for e in range(8) for d in range(-16, 16)]
    roots = [round(2**32 * 2.0**-p / 2**0.5) + d for p in range(20) for d in (-1, 0, 1)]
    powers = [w for p in range(32) for w in (2**p - 1, 2**p, 2**p + 1)]
    words = [*eighths, *roots, *powers]
    words += torch.randint(0, 2**32, (4096 - len(words),), generator=g).tolist()
    out = torch.empty(3, 4096, dtype=torch.float64, device=kit.DEVICE)
    functions_kernel[(1,)](as_int32(words), out, COUNT=4096)
    u = (np.array(words, dtype=np.float64) + 0.5) / 2**32
    angle = (2 * np.pi * u).astype(np.longdouble)
    wants = (np.log(u.astype(np.longdouble)), np.cos(angle), np.sin(angle))
    for name, units, got, want in zip(("ln", "cos", "sin"), (5, 4, 4), out.cpu().numpy(), wants, strict=True):
        error = np.abs(got.astype(np.longdouble) - want) / np.abs(want)
        assert float(error.max()) <= units * UNIT, f"{name}: {float(error.max()) / UNIT} units of 2^-53"


@pytest.mark.parametrize("frames, count", [(3, 2048), (2, 3000), (1, 1)])
def test_parity(frames, count):
    call = calls.latent_noise(frames=frames, count=count)
    got, want = (kit.run(NAME, call, backend)["out"] for backend in ("triton", "reference"))
    assert neighbours(got, want) <= 1  # of so few numbers none is expected at a border
    error = np.abs(got.numpy().astype(np.longdouble) - exact(call))
    assert (
        error <= (1 + 16 * 2.0**-29) * 2.0**-24 * np.abs(exact(call))
    ).all()  # half a unit of float32, and 16 * UNIT


def test_next_to_zeros_of_the_cosine():
    """Without the angle's own rounding, which a compiler may fuse away, some of these are other numbers."""
    call = near_zero()
    got = kit.run(NAME, call, "triton")["out"]
    want = torch.from_numpy(exact(call).astype(np.float64))
    assert (want.abs().amin(1) < 3e-8).all(), "each frame has such a number"
    assert_close(got, want, rtol=1.0001 * 2.0**-24, reason="one rounding to float32")


@settings(max_examples=100 if kit.ON_GPU else 15, deadline=None, derandomize=True)
@given(
    frames=st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
        min_size=1,
        max_size=3,
    ),
    count=st.integers(1, 1200),
    offset=st.integers(0, 3),
)
def test_any_words_count_and_start(frames, count, offset):
    """Outputs that start in the middle of 16 bytes, too; the numbers before and behind stay."""
    words = torch.tensor([noise.words(*frame) for frame in frames], dtype=torch.int32)
    memory = torch.full((len(frames) * count + 4,), 77.0, device=kit.DEVICE)
    out = memory[offset : offset + len(frames) * count].view(len(frames), count)
    package.launch(out, words.to(kit.DEVICE))
    assert_close(out.cpu(), noise.normals(words, count), rtol=2.0**-23, reason="the same float32 or its neighbour")
    outside = torch.cat([memory[:offset], memory[offset + out.numel() :]])
    assert len(outside) == 4 and (outside == 77).all()


def test_a_prefix_depends_on_neither_count_nor_neighbours():
    whole = kit.run(NAME, calls.latent_noise(frames=3, count=1200), "triton")["out"]
    for count in (1, 511, 512, 513):
        got = kit.run(NAME, calls.latent_noise(frames=3, count=count), "triton")["out"]
        assert_same_bits(got, whole[:, :count].contiguous(), f"{count} numbers")
    call = calls.latent_noise(frames=3, count=1200)
    alone = {"out": call["out"][2:], "words": call["words"][2:].clone()}
    assert_same_bits(kit.run(NAME, alone, "triton")["out"][0], whole[2], "frame 2")


def test_sizes():
    def spec(**dims: int):
        return kit.ops.dispatch.Spec("cpu", torch.float32, tuple(dims.items()))

    assert package.supports(spec()) == package.supports(spec(frames=3, count=32768)) == (True, "")
    assert not package.supports(spec(frames=1, count=package.MOST + 1))[0]
    assert not package.supports(spec(frames=2**22, count=2**18))[0]


def test_nothing_to_do_no_launch():
    for frames, count in ((0, 37), (3, 0)):
        call = kit.copied(calls.latent_noise(frames=frames, count=count))
        package.launch(call["out"], call["words"])
