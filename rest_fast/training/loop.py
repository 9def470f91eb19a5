"""What every training shares: resumable state, running averages, the course of the learning rate."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

log = logging.getLogger("rest_fast.training")


class Ema:
    """Running average of parameters."""

    def __init__(self, parameters: list[nn.Parameter], decay: float = 0.998):
        self.parameters, self.decay = parameters, decay
        self.average = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        for p, a in zip(self.parameters, self.average, strict=True):
            p.data, a.data = a.data.clone(), p.data.clone()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over 100 steps, constant to 40 %, cosine to a fiftieth."""
    if step < 100:
        return peak * (step + 1) / 100
    past = max(0.0, (step / steps - 0.4) / 0.6)
    return peak * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(past, 1))))


class Training:
    """AdamW with clipping and EMA on some parameters; its whole state in one safetensors file.

    ``run`` goes on from where the file says. A step depends on its own number and on nothing else, so a training that
    was interrupted and resumed is the one that was not. A schedule may also be lengthened afterwards.
    """

    def __init__(self, path: Path, parameters: list[nn.Parameter], peak: float, weight_decay: float = 0.0):
        self.path, self.parameters, self.peak = path, parameters, peak
        for p in parameters:
            p.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=weight_decay)
        self.ema = Ema(parameters)
        self.tensors: dict[str, torch.Tensor] = {}
        for i, p in enumerate(parameters):
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.optimiser.state[p] = {"step": torch.tensor(0.0), **moments}
            self.tensors |= {f"{name}.{i}": t for name, t in moments.items()}
            self.tensors |= {f"parameter.{i}": p.data, f"ema.{i}": self.ema.average[i]}
        self.step = self._load()

    def run(self, loss: Callable[[int], torch.Tensor], steps: int, every: int = 200) -> None:
        """Train to ``steps``; ``loss(step)`` computes one step's loss. Saves and reports every ``every`` steps."""
        start, shown = time.time(), []
        while self.step < steps:
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.step, steps, self.peak)
            self.optimiser.zero_grad()
            value = loss(self.step)
            value.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.ema.update(self.step)
            shown.append(value.item())
            self.step += 1
            if self.step % every == 0 or self.step == steps:
                mean, minutes = sum(shown) / len(shown), (time.time() - start) / 60
                # Weights too: a slope that is no number spoils them before any loss says so.
                if not math.isfinite(mean) or not all(p.isfinite().all() for p in self.parameters):
                    what = f"the loss is {mean}" if not math.isfinite(mean) else "a weight is no number"
                    raise ValueError(f"{self.path}: {what} before step {self.step}; the last state is kept")
                self._save()
                log.info("%s %d/%d loss %.4f %.1f min", self.path.stem, self.step, steps, mean, minutes)
                shown = []

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the averages in the parameters."""
        self.ema.swap()
        for p in self.parameters:
            p.requires_grad_(False)

    @torch.no_grad()
    def _load(self) -> int:
        if not self.path.is_file():
            return 0
        saved = load_file(self.path)
        for name in sorted({*self.tensors, *saved} - {"step"}):
            mine, found = self.tensors.get(name), saved.get(name)
            if mine is None or found is None or mine.shape != found.shape:
                raise ValueError(f"{self.path}: the state of another configuration: {name}; remove it to start anew")
        for name, tensor in self.tensors.items():
            tensor.copy_(saved[name])
        for state in self.optimiser.state.values():
            state["step"].fill_(float(saved["step"]))
        return int(saved["step"])

    def _save(self) -> None:
        partial = self.path.with_suffix(".partial")
        save_file({**self.tensors, "step": torch.tensor(self.step)}, partial)
        partial.replace(self.path)
