"""The loop that every stage shares: accumulated steps, running averages, reports, states to resume from.

A step depends on its own number and on nothing else, so a training that was killed and resumed gives the same result as
one that was not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rest_fast.errors import DivergedError as DivergedError
from rest_fast.processor import has_bfloat16
from rest_fast.training import states
from rest_fast.training.config import Stage, TrainingConfig
from rest_fast.training.distributed import World, distribute, full_tensor, last_part, local_part
from rest_fast.training.reports import Reports

log = logging.getLogger("rest_fast.training")
BETAS = (0.9, 0.98)

Batches = Callable[[int, range], Any]  # (step, rows of its global batch) -> what the stage's forward takes


def learning_rate(step: int, stage: Stage) -> float:
    """Linear warm-up, constant, then a cosine to a fiftieth of the peak."""
    if step < stage.warmup:
        return stage.rate * (step + 1) / stage.warmup
    if stage.constant == 1:
        return stage.rate
    past = max(0.0, (step / stage.steps - stage.constant) / (1 - stage.constant))
    return stage.rate * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(past, 1))))


class Trainer:
    """Trains those parameters of a module that require gradients. ``module(batch)`` gives a dict with ``loss``."""

    def __init__(self, module: nn.Module, stage: Stage, config: TrainingConfig, folder: Path, world: World):
        self.stage, self.config, self.folder, self.world = stage, config, folder, world
        self.module = module.to(world.device)
        blocks = module.blocks() if hasattr(module, "blocks") else []
        self.forward = distribute(self.module, blocks, config.parallel, world)
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.names, self.parameters = [n for n, _ in named], [p for _, p in named]
        decay = stage.weight_decay
        self.optimiser = torch.optim.AdamW(self.parameters, lr=stage.rate, betas=BETAS, weight_decay=decay)
        self.average = [p.detach().clone() for p in self.parameters]
        self.tensors: dict[str, torch.Tensor] = {"step": torch.tensor(0)}
        for name, p, average in zip(self.names, self.parameters, self.average):
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.optimiser.state[p] = {"step": torch.tensor(0.0), **moments}
            self.tensors |= {f"weight.{name}": p.detach(), f"average.{name}": average}
            self.tensors |= {f"{kind}.{name}": moment for kind, moment in moments.items()}
        self.step = 0
        if config.precision == "bf16" and world.device.type == "cpu" and not has_bfloat16():
            log.warning("precision bf16: this processor has no instructions for it; fp32 is several times faster here")

    def resume(self) -> int:
        """Continue from the newest state. Returns: the next step."""
        self.step = states.load(self.folder / "state", self.tensors, self.world)
        for state in self.optimiser.state.values():
            state["step"].fill_(float(self.step))
        return self.step

    def run(self, batches: Batches, sample: Callable[[int], None] | None = None) -> None:
        """Train to the last step of the stage; afterwards the parameters are the running averages."""
        stage, config = self.stage, self.config
        parts = self.world.rows(stage.batch, stage.accumulate)
        sums: dict[str, torch.Tensor] = {}
        since = 0
        with Reports(self.folder, self.step, stage.steps, self.world) as reports:
            while self.step < stage.steps:
                for name, value in self._step(batches, parts).items():
                    sums[name] = sums.get(name, 0) + value
                since, self.step = since + 1, self.step + 1
                reports.tick()
                last = self.step == stage.steps
                if last or self.step % config.report_every == 0:
                    means = {name: float(self.world.mean(value) / since) for name, value in sums.items()}
                    self._check(means)
                    reports.write(self.step, means, learning_rate(self.step - 1, stage))
                    sums, since = {}, 0
                if last or self.step % config.save_every == 0:
                    self.save()
                if sample is not None and config.sample_every and (last or self.step % config.sample_every == 0):
                    self._swap()
                    sample(self.step)
                    self._swap()
        self._swap()
        for p in self.parameters:
            p.requires_grad_(False)

    def _step(self, batches: Batches, parts: list[range]) -> dict[str, torch.Tensor]:
        """One step of the optimiser. Returns: what the module returns, averaged over this process's parts."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, self.stage)
        self.optimiser.zero_grad()
        shown: dict[str, torch.Tensor] = {}
        for i, rows in enumerate(parts):
            batch = batches(self.step, rows)
            if hasattr(batch, "to"):
                batch = batch.to(self.world.device)
            with last_part(self.forward, i + 1 == len(parts)):
                terms = self.forward(batch)
                (terms["loss"] / len(parts)).backward()
            for name, value in terms.items():
                shown[name] = shown.get(name, 0) + value.detach().float() / len(parts)
        shown["gradient"] = full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, self.stage.clip))
        self.optimiser.step()
        decay = min(self.stage.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        return shown

    def save(self) -> None:
        """Write a state, unless a weight is not finite: a gradient with NaN spoils weights before any loss shows it."""
        finite = torch.stack([local_part(p.detach()).isfinite().all() for p in self.parameters]).all()
        if self.world.mean(finite.float()) < 1:
            raise DivergedError(self._diverged("a weight is no number"))
        self.tensors["step"].fill_(self.step)
        states.save(self.folder / "state", self.step, self.tensors, self.world, self.config.keep)

    def _check(self, means: dict[str, float]) -> None:
        if not math.isfinite(means["loss"]):
            raise DivergedError(self._diverged(f"the loss is {means['loss']}"))

    def _diverged(self, what: str) -> str:
        kept = states.steps(self.folder / "state")
        state = f"the state of step {kept[-1]} is kept" if kept else "no state was written"
        return f"{self.folder}: expected finite losses and weights, but {what} before step {self.step}; {state}"

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange parameters and running averages."""
        for p, average in zip(self.parameters, self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(average)
            average.copy_(kept)
