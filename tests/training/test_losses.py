"""The losses against closed forms and against sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast.training import losses

F64 = torch.float64


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# -- flow matching


def test_flow_of_the_true_velocity_is_zero():
    z0, eps = noise(2, 3, 4, 5, seed=1), noise(2, 3, 4, 5, seed=2)
    ones = torch.ones(4, dtype=F64)
    assert losses.flow_matching(eps - z0, z0, eps, ones) == 0
    assert losses.flow_matching(eps - z0 + 0.5, z0, eps, ones).item() == pytest.approx(0.25)
    assert losses.flow_matching(z0 - eps, z0, eps, ones).item() == pytest.approx(4 * (eps - z0).square().mean().item())


def test_flow_counts_tokens_by_their_weight():
    """An error of 1 in all C values of one token: weight / (f T), whatever B and C are."""
    z0 = eps = noise(2, 3, 4, 5)
    weight = torch.tensor([0.5, 0.5, 2.0, 1.0], dtype=F64)
    for token in range(4):
        v = torch.zeros_like(z0)
        v[:, 1, token] = 1
        assert losses.flow_matching(v, z0, eps, weight).item() == pytest.approx(weight[token].item() / 12)


# -- contrastive


def orthogonal(frames: int, batch: int = 2) -> torch.Tensor:
    """[B, f, f + 3], orthonormal frames."""
    return torch.linalg.qr(noise(batch, frames + 3, frames))[0].mT


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("frames", [2, 5, 12])
def test_contrastive_of_equal_orthogonal_frames(frames, temperature):
    """Each is its own at cosine 1 among f - 1 others at 0: log(1 + (f - 1) exp(-1 / tau)). Lengths do not count."""
    x = orthogonal(frames)
    want = math.log(1 + (frames - 1) * math.exp(-1 / temperature))
    for student, teacher in ((x, x), (3 * x, 0.2 * x)):
        assert losses.contrastive(student, teacher, temperature).item() == pytest.approx(want, rel=1e-9)


def test_contrastive_of_frames_in_a_wrong_order():
    """Every frame at cosine 0 with its own and 1 with another one: as above, and 1 / tau more."""
    x = orthogonal(5)
    want = math.log(1 + 4 * math.exp(-10)) + 10
    assert losses.contrastive(x.roll(1, 1), x).item() == pytest.approx(want, rel=1e-9)
    assert losses.contrastive(x.roll(1, 0), x).item() > 1  # another clip's frames are no help, and no harm
    both = noise(2, 6, 7), noise(2, 6, 7, seed=3)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    same = losses.contrastive(both[0][:, order], both[1][:, order])
    torch.testing.assert_close(same, losses.contrastive(*both), rtol=1e-12, atol=0)


def test_contrastive_against_its_sum():
    student, teacher, tau = noise(3, 12, 7), noise(3, 12, 7, seed=1), 0.1
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        for i in range(12):
            cosines = [
                sum(x * y for x, y in zip(s[i], t[j])) / math.hypot(*s[i]) / math.hypot(*t[j]) for j in range(12)
            ]
            weights = [math.exp(cosine / tau) for cosine in cosines]
            total -= math.log(weights[i] / sum(weights)) / 12 / 3
    assert losses.contrastive(student, teacher).item() == pytest.approx(total, rel=1e-10)
    assert total > 2  # of independent frames: about log 12


# -- smooth


def test_smooth_counts_second_differences_alone():
    """What differs by a constant or evenly in time costs nothing; the fastest alternation of +-a costs 16 a^2."""
    teacher, time = noise(2, 12, 5), torch.arange(12, dtype=F64)[:, None]
    assert losses.smooth(teacher, teacher) == 0
    assert losses.smooth(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-24)
    assert losses.smooth(teacher + 3 + time * noise(5), teacher).item() == pytest.approx(0, abs=1e-24)
    assert losses.smooth(teacher + time**2, teacher).item() == pytest.approx(4)
    assert losses.smooth(teacher + 0.3 * (-1) ** time, teacher).item() == pytest.approx(16 * 0.3**2)
    slow = (2 * math.pi / 12 * time).cos()  # of frequency w: (2 - 2 cos w)^2 of the mean square inside
    want = (2 - 2 * math.cos(2 * math.pi / 12)) ** 2 * slow[1:-1].square().mean()
    assert losses.smooth(teacher + slow, teacher).item() == pytest.approx(want.item())


def test_smooth_against_its_sum():
    s, t = noise(2, 12, 3).tolist(), noise(2, 12, 3, seed=1).tolist()
    total = 0.0
    for b in range(2):
        for i in range(1, 11):
            for d in range(3):
                own, other = ([x[b][i + k][d] for k in (-1, 0, 1)] for x in (s, t))
                total += (own[0] - 2 * own[1] + own[2] - other[0] + 2 * other[1] - other[2]) ** 2 / 2 / 10 / 3
    got = losses.smooth(torch.tensor(s, dtype=F64), torch.tensor(t, dtype=F64))
    assert got.item() == pytest.approx(total, rel=1e-12)


def test_smooth_needs_three_frames():
    x = noise(1, 3, 4)
    assert losses.smooth(x, 0 * x) > 0
    with pytest.raises(ValueError, match="smooth loss: expected at least 3 latent frames, got 2"):
        losses.smooth(x[:, :2], x[:, :2])


# -- speech, pixels, divergence


def test_speech_losses_are_those_of_frames():
    """[B, n, positions, channels]: the mean square, and the contrast of whole frames."""
    got, want = noise(2, 5, 3, 4), noise(2, 5, 3, 4, seed=1)
    assert losses.reconstruction(want + 0.5, want).item() == pytest.approx(0.25)
    flat = losses.contrastive(got.reshape(2, 5, 12), want.reshape(2, 5, 12), 0.3)
    assert losses.frame_contrastive(got, want, 0.3) == flat
    assert losses.frame_contrastive(want, want, 0.1) < losses.frame_contrastive(want.flip(1), want, 0.1)


@pytest.mark.parametrize("size", [64, 128])
def test_pixel_loss_closed_form(size):
    """L1 with the mouth three times, and steps along time, rows and columns once each."""
    want = torch.rand(2, 3, 4, size, size, generator=torch.Generator().manual_seed(0))
    box = 48 * 56 / 128**2  # share of the mouth

    def loss(error: torch.Tensor) -> float:
        return losses.pixel_loss(want.double() + error, want.double()).item()

    one = torch.ones(2, 3, 4, size, size, dtype=F64)
    sign = 1.0 - 2 * (torch.arange(size) % 2)
    assert loss(0 * one) == 0
    assert loss(0.1 * one) == pytest.approx(0.3) == loss(-0.1 * one)
    assert loss(0.1 * one * sign[:4, None, None]) == pytest.approx(0.5)  # flickering
    assert loss(0.1 * one * sign[:, None]) == pytest.approx(0.5) == pytest.approx(loss(0.1 * one * sign))
    assert loss(0.1 * one * sign * sign[:, None] * sign[:4, None, None]) == pytest.approx(0.9)
    lower = torch.zeros_like(one)
    lower[..., 85 * size // 128, size // 2] = 1  # one pixel of the mouth; as much of the forehead counts less
    upper = lower.roll(-size // 2, -2)
    assert loss(lower) - loss(upper) == pytest.approx(2 / (box * size**2))


def test_divergence_is_torch_s():
    mean, log_variance = noise(2, 4, 3, 2, 2), noise(2, 1, 3, 2, 2, seed=1)
    normal = torch.distributions.Normal
    ours, unit = normal(mean, (0.5 * log_variance).exp().expand_as(mean)), normal(0.0, 1.0)
    want = torch.distributions.kl_divergence(ours, unit).sum(1).mean()  # over channels; mean of cells
    torch.testing.assert_close(losses.divergence(mean, log_variance), want, rtol=1e-12, atol=0)
    assert losses.divergence(0 * mean, 0 * log_variance) == 0
