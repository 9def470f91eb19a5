"""Trains the motion VAE's decoder on pairs of drawn heads, whose motion labels stand in for an encoder's latents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast.models.vae.motion import Maps, MotionDecoder, at_work_size
from rest_fast.models.vae.state import StreamState
from rest_fast.ops.move_and_paint import moved, scaled, whole_flow
from rest_fast.training.config import TrainingConfig
from rest_fast.training.flow import autocast
from rest_fast.training.motion_pairs import HIDDEN, SEEN, PairBatch, labels_to_codes, larger

NOISE = 0.15  # of codes, beside labels that deviate by about 1
SHARED = 0.4  # of labels, the same for photo and frames: an encoder misreads a face in the same way each time
SPEED = 0.15  # change of a label from frame to frame
FOCUS = 8.0  # how much more mouth and eyes count than the rest, which is thirty times as large
WEIGHTS = {"pixels": 1.0, "slopes": 0.5, "moved": 0.3, "flow": 0.15, "share": 0.25, "smooth": 0.02}


class MotionDecoderStage(nn.Module):
    """Flow and pixels against what is known of them."""

    codes: torch.Tensor

    def __init__(self, decoder: MotionDecoder, channels: int, config: TrainingConfig):
        super().__init__()
        self.config = config
        self.decoder = decoder.requires_grad_(True)
        self.register_buffer("codes", labels_to_codes(channels), persistent=False)

    def forward(self, batch: PairBatch) -> dict[str, torch.Tensor]:
        with autocast(self.config, batch.photo.device):
            photo, maps = self.maps(batch)
        maps = Maps(*(x.float() for x in maps))
        known = (batch.frames, batch.flow, batch.visible, batch.focus)
        target, flow, visible, focus = (x.flatten(0, 1) for x in known)
        window, size = self.decoder.window, tuple(photo.shape[2:])
        shown = maps.shown(photo, window)
        whole = whole_flow(maps.flow, maps.inner_flow, size, window)
        seen, hidden = ((visible == kind).float() for kind in (SEEN, HIDDEN))
        own = non_rigid(flow, seen).clamp(max=4)  # in pixels of 128; hair and collars have more, and matter less
        error = (larger(whole, flow.shape[3]) - flow).abs().sum(1, keepdim=True) * 64
        weight = larger(importance(hidden, focus), size[0])
        only_moved = moved(photo, whole)
        terms = {
            "pixels": (weight * (shown - target).abs()).mean(),
            # weighed, too, for teeth have edges, and a mean of many mouths has none
            "slopes": sum(
                (w * (a - b).abs()).mean() for w, a, b in zip(trimmed(weight), slopes(shown), slopes(target))
            ),
            "moved": (only_moved - target).abs().mean(),
            "flow": (error * seen * (1 + own / 2 + FOCUS * focus * (1 + own))).sum() / seen.sum().clamp(min=1),
            # what the photo shows is moved, what it hides is painted
            "share": sum(share_errors(maps, hidden, focus, window)),
            "smooth": sum(s.abs().mean() for s in slopes(maps.flow)) * 32,
        }
        loss = sum(WEIGHTS[name] * term for name, term in terms.items())
        moving = (own * focus > 1).float() * seen
        terms["flow of a mouth, px of 128"] = (error * moving).sum() / moving.sum().clamp(min=1)
        return {"loss": loss, **terms}

    def maps(self, batch: PairBatch) -> tuple[torch.Tensor, Maps]:
        """The photos [B F, 3, 128, 128] of all frames of a batch, and the decoder's maps, each frame as a lane of its
        own with a past of two frames."""
        b, f = batch.frames.shape[:2]
        labels = batch.labels + SHARED * torch.rand(b, 1, 1).to(batch.labels) * torch.randn_like(batch.labels[:, :1])
        now = labels[:, 1:].flatten(0, 1)[:, None]
        speed = SPEED * torch.randn_like(now) * torch.tensor([2.0, 1.0, 0.0]).to(now).view(1, 3, 1)
        codes = self.coded(now + speed)  # [B F, 3, c, 4, 4]: two frames of the past, and this one
        still = self.coded(labels[:, :1]).repeat_interleave(f, 0)
        state = StreamState()
        self.decoder.look(batch.photo, still, state)
        for name, value in state.histories.items():
            if len(value) == b:
                state.histories[name] = value.repeat_interleave(f, 0)
        photo = batch.photo.repeat_interleave(f, 0)
        self.decoder.flow.remember(codes[:, :2], still, self.decoder.features(state), state)
        return photo, self.decoder.maps(at_work_size(photo), codes[:, 2:], state)

    def coded(self, labels: torch.Tensor) -> torch.Tensor:
        """Scaled labels [N, T, 14] as noisy codes [N, T, c, 4, 4]."""
        codes = labels @ self.codes.T
        return (codes + NOISE * torch.rand(1).to(codes) * torch.randn_like(codes)).unflatten(2, (-1, 4, 4))


def importance(hidden: torch.Tensor, focus: torch.Tensor) -> torch.Tensor:
    """Of each point [N, 1, G, G]: mouth and eyes count more, and most of all what is new in them, as teeth and lids."""
    return 1 + 4 * hidden + FOCUS * focus * (1 + 3 * hidden)


def share_errors(
    maps: Maps, hidden: torch.Tensor, focus: torch.Tensor, window: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of both shares of paint against what the photo hides [N, 1, G, G]: of the picture, of the window.

    A share that must be found by pixels alone closes before the flow is good enough for paint to help.
    """
    weight = importance(hidden, focus)
    errors = []
    for share, place in ((maps.paint[:, :1], (0, 0, 64, 64)), (maps.inner_paint[:, :1], window)):
        top, left, rows, columns = scaled(place, hidden.shape[2:])
        known, weighed = (
            F.interpolate(x[..., top : top + rows, left : left + columns], share.shape[2:], mode="area")
            for x in (hidden, weight)
        )
        likely = 1e-3 + (1 - 2e-3) * share
        errors.append((weighed * F.binary_cross_entropy(likely, known, reduction="none")).mean())
    return errors[0], errors[1]


def slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.diff(dim=3), x.diff(dim=2)


def trimmed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` at the places of :func:`slopes`."""
    return x[..., 1:], x[..., 1:, :]


def non_rigid(flow: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """How far each seen point moves otherwise than an affine motion of the head, [N, 1, G, G] in pixels of 128."""
    rows, columns = flow.shape[2:]
    y, x = torch.linspace(-1, 1, rows, device=flow.device), torch.linspace(-1, 1, columns, device=flow.device)
    base = torch.stack([*torch.meshgrid(y, x, indexing="ij"), torch.ones(rows, columns, device=flow.device)], -1)
    base, weight = base.view(-1, 3), seen.flatten(1)
    normal = torch.einsum("ki,nk,kj->nij", base, weight, base) + 1e-3 * torch.eye(3, device=flow.device)
    fit = torch.linalg.solve(normal, torch.einsum("ki,nk,nck->nic", base, weight, flow.flatten(2)))
    rest = flow.flatten(2) - torch.einsum("ki,nic->nck", base, fit)
    return rest.view_as(flow).mul(seen).norm(dim=1, keepdim=True) * 128
