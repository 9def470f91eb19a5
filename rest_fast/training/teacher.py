"""The non-streaming teacher (paper section 3.4): the same DiT without a cache, all latent frames of a clip at once."""

from __future__ import annotations

import torch

from rest_fast.training.flow import Batch, FlowStage, flow_loss


class Teacher(FlowStage):
    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        with self.autocast():
            v = self.network(batch, "teacher")
        return {"loss": flow_loss(v, batch, self.token_weight)}
