"""Philox4x32-10 and Box-Muller against published vectors, a second implementation and the normal distribution."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast.noise import CONTEXT, DECODER, LATENT, TEXTURE, normal, philox4x32

ONES = 0xFFFFFFFF

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


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Salmon et al. 2011, section 3.3, with Python's integers."""
    x, (k0, k1) = list(counter), key
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [(b >> 32) ^ x[1] ^ k0, b % 2**32, (a >> 32) ^ x[3] ^ k1, a % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x


def words(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    return tuple(int(w) for w in philox4x32(tuple(torch.tensor(c) for c in counter), key))


@pytest.mark.parametrize("counter, key, result", VECTORS)
def test_known_answers(counter, key, result):
    assert words(counter, key) == result
    assert tuple(plain_philox(counter, key)) == result  # so that the second implementation counts


def test_many_counters_against_the_second_implementation():
    g = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 2**32, (4, 300), generator=g)
    counters[:, :16] = torch.tensor([[(i >> j & 1) * ONES for i in range(16)] for j in range(4)])  # all corners
    for key in [(0, 0), (ONES, 0), (0, ONES), (0x12345678, 0x9ABCDEF0)]:
        got = torch.stack(philox4x32(tuple(counters), key), 1).tolist()
        assert got == [plain_philox(tuple(c), key) for c in counters.T.tolist()]


@pytest.mark.parametrize("seed, latent, purpose", [(0, 0, 0), (2**64 - 1, 5, 1), (1234567890123, 2**33 + 7, 0)])
def test_numbers_against_the_formula(seed, latent, purpose):
    """seed is the key; the counter is (element // 4, latent, purpose); pairs of words give pairs of numbers."""
    want = []
    for block in range(9):
        bits = plain_philox((block, latent % 2**32, latent // 2**32, purpose), (seed % 2**32, seed // 2**32))
        u = [(b + 0.5) / 2**32 for b in bits]
        for a, b in ((u[0], u[1]), (u[2], u[3])):
            r = math.sqrt(-2 * math.log(a))
            want += [r * math.cos(2 * math.pi * b), r * math.sin(2 * math.pi * b)]
    got = normal(seed, latent, 34, purpose)
    assert got.dtype == torch.float32 and got.shape == (34,)
    # one rounding to float32 (2^-24 relative); libraries' float64 logarithms may move it by one step
    torch.testing.assert_close(got.double(), torch.tensor(want[:34]).double(), rtol=2**-23, atol=1e-14)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 1000, 1001])
def test_a_prefix_does_not_depend_on_the_count(count):
    assert torch.equal(normal(7, 3, count), normal(7, 3, 2048)[:count])


def test_streams_are_independent():
    """Another seed, latent or purpose: no common numbers, and correlations of the size of chance."""
    n = 20_000
    streams = [
        normal(0, 0, n),
        normal(1, 0, n),
        normal(2**32, 0, n),  # the high word of the seed counts
        normal(0, 1, n),
        normal(0, 2**32, n),  # and that of the index
        normal(0, 0, n, CONTEXT),
    ]
    assert len({LATENT, CONTEXT, DECODER, TEXTURE}) == 4
    table = torch.stack(streams).double()
    correlation = torch.corrcoef(table) - torch.eye(len(streams))
    assert correlation.abs().max() < 4.5 / math.sqrt(n)  # 4.5 sigma over 15 pairs: by chance once in 10^4
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert (a == b).float().mean() < 1e-3


def test_distribution():
    """1e5 numbers: moments, neighbours, and the largest distance to the normal distribution."""
    n = 100_000
    x = normal(42, 17, n).double()
    # standard errors 1/sqrt(n), sqrt(2/n), sqrt(15/n), sqrt(96/n): all bounds at 4 of them
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.square().mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    for lag in (1, 2, 3, 4):
        assert abs((x[lag:] * x[:-lag]).mean()) < 4 / math.sqrt(n)
        assert abs(((x[lag:] ** 2 - 1) * (x[:-lag] ** 2 - 1)).mean()) < 4 * 2 / math.sqrt(n)
    cdf = torch.tensor([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.sort().values.tolist()])
    rank = torch.arange(n + 1) / n
    distance = max((rank[1:] - cdf).max(), (cdf - rank[:-1]).max())
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov: exceeded by chance once in 1000
    assert 3.7 < x.abs().max() < 6.7  # 32-bit uniforms reach 6.66


@pytest.mark.parametrize("seed", [-1, 2**64, -(2**64)])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=rf"seed.*0\.\.2\^64 - 1.*{seed}"):
        normal(seed, 0, 4)


@pytest.mark.parametrize("name, bits", [("seed", 64), ("latent", 64), ("count", 34), ("purpose", 32)])
def test_anything_else_than_an_index_is_refused(name, bits):
    """A negative latent used to give NaN, and True another stream than the one that was meant."""
    good = {"seed": 1, "latent": 2, "count": 4, "purpose": 0}
    for value in (-1, 1 << bits, True, 1.0, None):
        with pytest.raises(ValueError, match=rf"^{name}: expected an integer in 0\.\.2\^{bits} - 1, got {value}$"):
            normal(**good | {name: value})


@pytest.mark.parametrize("end", [0, -1])
def test_ends_of_the_range(end):
    assert normal(end % 2**64, end % 2**64, 8, end % 2**32).isfinite().all()
