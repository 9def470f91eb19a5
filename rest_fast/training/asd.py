"""Asynchronous Streaming Distillation (paper section 3.4): the student follows the frozen, non-streaming teacher.

L = L_FM + 0.2 L_CON + 0.2 L_SMO; both see the same noise, timesteps and dropouts, since they see the same batch.
"""

from __future__ import annotations

import torch
from torch import nn

from rest_fast.model import Model
from rest_fast.training import losses
from rest_fast.training.config import TrainingConfig
from rest_fast.training.flow import Batch, Network, flow_loss, frames_after_reference
from rest_fast.training.student import Student


class ASD(Student):
    def __init__(self, model: Model, teacher: Model, config: TrainingConfig):
        super().__init__(model, config, config.asd)
        self.teacher = Network(teacher.requires_grad_(False))

    def blocks(self) -> list[nn.Module]:
        return [*super().blocks(), *self.teacher.dit.blocks]

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with self.autocast():
            v = self.velocity(batch)
            with torch.no_grad():
                wanted = self.teacher(batch, "teacher")
        return self.losses(v, wanted, batch)

    def losses(self, v: torch.Tensor, wanted: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """All terms, from velocities [B, F T, C] of student and teacher."""
        settings = self.config.asd
        student, teacher = (frames_after_reference(x, self.tokens) for x in (v, wanted))
        terms = {
            "flow": flow_loss(v, batch, self.token_weight),
            "contrastive": losses.contrastive(student, teacher, settings.temperature),
            "smooth": losses.smooth(student, teacher),
        }
        total = terms["flow"] + settings.contrastive * terms["contrastive"] + settings.smooth * terms["smooth"]
        return {"loss": total, **terms}
