"""The streaming student (paper section 3.4): chunk by chunk through the ID-Context cache, plain flow matching.

The context of a chunk is the one before it in the same pass: ground truth, noised at its own timestep, as in the paper.
"""

from __future__ import annotations

import torch

from rest_fast.model import Model
from rest_fast.models.clip_attention import Context
from rest_fast.training.config import StudentStage, TrainingConfig
from rest_fast.training.flow import Batch, FlowStage, flow_loss


class Student(FlowStage):
    def __init__(self, model: Model, config: TrainingConfig, settings: StudentStage | None = None):
        super().__init__(model, config)
        self.settings = settings or config.student

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with self.autocast():
            v = self.velocity(batch)
        return {"loss": flow_loss(v, batch, self.token_weight)}

    def velocity(self, batch: Batch) -> torch.Tensor:
        """[B, F T, C], with the context that the settings ask for."""
        context = Context(gradient=self.settings.cache_gradient)
        if self.settings.self_rollout and bool(batch.roll[0] < self.settings.self_rollout):
            context.keys_values = self.own_context(batch)
        return self.network(batch, "streaming", context)

    @torch.no_grad()
    def own_context(self, batch: Batch) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values by layer of the student's own output: every chunk denoised in one step, then noised again."""
        z, t = batch.noised(), batch.t.repeat_interleave(self.tokens, 1)[..., None]
        made = z - t * self.network.velocity(z, batch, "streaming")
        again = torch.where(t > 0, (1 - t) * made + t * batch.noise, z)  # the reference stays
        record: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.network.velocity(again, batch, "streaming", Context(record=record))
        return record
