"""A small model with random weights, a photo and a sound, for tests of what is built on models."""

from __future__ import annotations

import numpy as np
import torch

from rest_fast import Model, preset
from tests.kit.models import basis_toy, randomise


def toy(seed: int = 0, **changes) -> Model:
    """The ``toy`` preset with weights that do something in every part (zero-initialised ones included)."""
    torch.manual_seed(seed)
    model = Model(preset("toy").replace(**changes)).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def basis_model(seed: int = 0) -> Model:
    """The demo's kind of VAE with weights that do something: mixer, post-net and its gate between picture and photo."""
    torch.manual_seed(seed)
    model = Model(basis_toy()).eval().requires_grad_(False)
    kept = model.vae.encoder.basis.state_dict()  # orthonormal as they are
    kept = {name: tensor.clone() for name, tensor in kept.items()}
    randomise(model, seed)
    model.vae.encoder.basis.load_state_dict(kept)
    return model


def photo(seed: int = 0) -> np.ndarray:
    """uint8 [80, 100, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (80, 100, 3), dtype=np.uint8)


def sound(rate: int, seconds: float, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Noise with a slow envelope, [n]."""
    rng = np.random.default_rng(seed)
    n = round(rate * seconds)
    wave = 0.2 * rng.standard_normal(n) * (1.2 + np.sin(np.arange(n) / rate * 9))
    return (np.clip(wave, -1, 1) * 32767).astype(np.int16) if dtype == np.int16 else wave.astype(np.float32)
