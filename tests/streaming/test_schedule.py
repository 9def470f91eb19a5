"""Noise levels: closed forms, and CANS as the paper describes it."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast.streaming.schedule import TABLE, draw_cans, logit_normal_table, sigmas


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("mu", [-1.0, 0.0, 0.7, 2.05])
def test_sigmas(steps, mu):
    got = sigmas(steps, mu)
    assert got.dtype == torch.float64 and got.shape == (steps + 1,)
    assert got[0] == 1 and got[-1] == 0
    assert (got.diff() < 0).all()
    for i in range(1, steps):
        u = 1 - i / steps
        # the shift multiplies the odds: s/(1-s) = e^mu u/(1-u); a few float64 roundings
        odds = math.exp(mu) * u / (1 - u)
        assert got[i].item() == pytest.approx(odds / (1 + odds), rel=1e-13)


def test_mu_zero_is_uniform():
    torch.testing.assert_close(sigmas(8, 0.0), torch.arange(8, -1, -1, dtype=torch.float64) / 8, rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize("mu, sigma", [(2.05, 1.0), (0.0, 1.2), (-1.0, 0.5)])
def test_table_against_the_normal_distribution(mu, sigma):
    table = logit_normal_table(mu, sigma)
    assert table.shape == (TABLE,) and TABLE == 1000
    assert (table.diff() > 0).all() and table[0] > 0 and table[-1] < 1
    for i, t in enumerate(table.tolist()):
        x = (math.log(t / (1 - t)) - mu) / sigma
        # 1 - t is at least 5e-3 here, so the logit is good to 1e-13
        assert 0.5 * (1 + math.erf(x / math.sqrt(2))) == pytest.approx((i + 0.5) / 1000, abs=1e-12)


def test_table_moments():
    """The median is sigmoid(mu), and the table is the distribution: mean as of drawn numbers."""
    table = logit_normal_table(2.05, 1.0)
    g = torch.Generator().manual_seed(0)
    drawn = torch.sigmoid(2.05 + torch.randn(200_000, generator=g, dtype=torch.float64))
    assert table.median().item() == pytest.approx(1 / (1 + math.exp(-2.05)), abs=1e-3)
    assert table.mean().item() == pytest.approx(drawn.mean().item(), abs=5 * drawn.std().item() / math.sqrt(200_000))


def draws(synchronous: float, batch: int = 4000, chunks: int = 4, chunk: int = 3, seed: int = 0):
    """(one timestep per chunk [batch, chunks], everything [batch, 1 + chunks chunk])."""
    table = logit_normal_table(2.05, 1.0)
    t = draw_cans(table, batch, chunks, chunk, torch.Generator().manual_seed(seed), synchronous)
    assert t.dtype == torch.float32 and t.shape == (batch, 1 + chunks * chunk)
    return t[:, 1::chunk], t


@pytest.mark.parametrize("synchronous", [0.0, 0.5, 1.0])
def test_reference_is_clean_and_a_chunk_has_one_level(synchronous):
    each, t = draws(synchronous)
    assert (t[:, 0] == 0).all()
    assert torch.equal(t[:, 1:].unflatten(1, (4, 3)), each[:, :, None].expand(-1, -1, 3))
    assert (each > 0).all() and (each < 1).all()


def test_asynchronous_draws_come_from_their_quarters():
    each, _ = draws(0.0)
    table = logit_normal_table(2.05, 1.0).float()
    for i in range(4):
        low, high = table[250 * i], table[250 * i + 249]
        assert (each[:, i] >= low).all() and (each[:, i] <= high).all()
        # 4000 draws from 250 entries: an entry is missed with probability e^-16
        assert each[:, i].unique().numel() == 250
        middle = (each[:, i] <= table[250 * i + 124]).float().mean()
        assert abs(middle - 0.5) < 5 * 0.5 / math.sqrt(4000)
    assert (each.diff(dim=1) > 0).all()


def test_quarters_are_drawn_independently():
    table = logit_normal_table(2.05, 1.0).float()
    each, _ = draws(0.0)
    place = torch.searchsorted(table, each.contiguous()).double() % 250
    off = torch.corrcoef(place.T) - torch.eye(4)
    assert off.abs().max() < 4.5 / math.sqrt(4000)


def test_synchronous_draws_share_one_level_of_the_whole_table():
    each, _ = draws(1.0)
    assert (each == each[:, :1]).all()
    table = logit_normal_table(2.05, 1.0).float()
    place = torch.searchsorted(table, each[:, 0].contiguous()).double()
    # uniform over 0..999: mean 499.5, deviation 289
    assert abs(place.mean() - 499.5) < 5 * 289 / math.sqrt(4000)
    assert place.min() < 10 and place.max() > 989


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_probability_of_the_synchronous_mode(probability):
    each, _ = draws(probability)
    together = (each == each[:, :1]).all(1).double().mean().item()
    assert abs(together - probability) < 5 * math.sqrt(probability * (1 - probability) / 4000)


def test_default_probability_is_one_half():
    t = draw_cans(logit_normal_table(2.05, 1.0), 4000, 4, 3, torch.Generator().manual_seed(1))
    together = (t[:, 1:] == t[:, 1:2]).all(1).double().mean().item()
    assert abs(together - 0.5) < 5 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize("chunks", [1, 3, 7])
def test_other_counts_of_chunks(chunks):
    """Quarters of a table of 1000 are thirds or sevenths for other clips; borders round down."""
    each, _ = draws(0.0, chunks=chunks, chunk=2)
    place = torch.searchsorted(logit_normal_table(2.05, 1.0).float(), each.contiguous())
    for i in range(chunks):
        assert place[:, i].min() >= math.floor(1000 * i / chunks)
        assert place[:, i].max() <= math.floor(1000 * (i + 1) / chunks)


def test_the_generator_decides():
    assert torch.equal(draws(0.5, seed=3)[1], draws(0.5, seed=3)[1])
    assert not torch.equal(draws(0.5, seed=3)[1], draws(0.5, seed=4)[1])
