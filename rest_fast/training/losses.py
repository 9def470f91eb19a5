"""The losses of REST, each a pure function (paper sections 3.2 to 3.4 and appendix; READ section 3.1).

B clips, f latent frames after the reference, D values of a frame. Velocities are ``noise - z0``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rest_fast.errors import ArgumentError

MOUTH = (60, 108, 36, 92)  # rows and columns of the lower face in 128ths, where errors of pixels count more


def flow_matching(v: torch.Tensor, z0: torch.Tensor, noise: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """L_FM = mean || (noise - z0) - v ||^2, with a weight per token.

    Args:
        v, z0, noise: [B, f, T, C], the reference left out.
        weight: [T] of mean 1.
    """
    error = (v - (noise - z0)).square().mean(-1)
    return (error * weight).mean()


def contrastive(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """L_CON = -1/f sum_i log( exp(cos(s_i, t_i) / tau) / sum_j exp(cos(s_i, t_j) / tau) ), mean over clips.

    InfoNCE over the latent frames of one clip: a frame of the student is to be nearest to the teacher's same frame.

    Args:
        student, teacher: velocities [B, f, D], the reference left out.
        temperature: tau.
    """
    cosine = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).mT  # [B, f, f]
    own = torch.arange(student.shape[1], device=student.device).expand(len(student), -1)
    return F.cross_entropy((cosine / temperature).flatten(0, 1), own.flatten())


def smooth(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """L_SMO = mean over i = 2..f-1 of (D2 s_i - D2 t_i)^2 with D2 v_i = v_(i+1) - 2 v_i + v_(i-1).

    Second differences in time of velocities [B, f, D]. The reference is left out, since its velocity has no meaning.
    The mean is over values, too, so that the weight of this loss does not depend on D.
    """
    if student.shape[1] < 3:
        raise ArgumentError(f"smooth loss: expected at least 3 latent frames, got {student.shape[1]}")
    return (student - teacher).diff(n=2, dim=1).square().mean()


def reconstruction(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Mean squared error of speech features [B, n, positions, channels]."""
    return F.mse_loss(got, want)


def frame_contrastive(got: torch.Tensor, want: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """InfoNCE over the frames of one clip: reconstructed frame i is nearest to source frame i, by cosine.

    Features [B, n, positions, channels]. READ names the loss and no temperature; ours is that of L_CON.
    """
    return contrastive(got.flatten(2), want.flatten(2), temperature)


def pixel_loss(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """L1, the mouth weighted by 3, and L1 of differences along time, rows and columns: [B, 3, n, H, W] -> scalar."""
    error = got - want
    height, width = want.shape[-2:]
    top, bottom, left, right = (side * n // 128 for side, n in zip(MOUTH, (height, height, width, width)))
    loss = error.abs().mean() + 2 * error[..., top:bottom, left:right].abs().mean()
    for axis in (2, 3, 4):
        loss = loss + error.diff(dim=axis).abs().mean()
    return loss


def divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats a latent cell: mean [B, C, n, h, w], log-variance [B, 1, n, h, w]."""
    log_variance = log_variance.expand_as(mean)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
