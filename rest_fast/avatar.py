"""Avatar: a photo made ready once; what a session needs to know of a face."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "rest_fast avatar 1"


class AvatarError(ValueError):
    """An avatar that does not fit: names the file or argument, the expectation and what came."""


@dataclass(frozen=True, eq=False)
class Avatar:
    """The crop, its latent and its sink; tied to one model by the fingerprint of the weights."""

    picture: np.ndarray  # uint8 [H, W, 3], the crop at the model's size
    box: tuple[int, int, int, int]  # left, top, right, bottom of the crop in the photo
    reference: torch.Tensor  # fp32 [T, C], normalised latent of the crop
    sink_k: torch.Tensor  # [L, T, H, D]
    sink_v: torch.Tensor
    fingerprint: str  # of the model that made it

    def save(self, path: str | Path) -> None:
        """One safetensors file."""
        tensors = {
            "picture": torch.from_numpy(self.picture.copy()),
            "reference": self.reference,
            "sink_k": self.sink_k,
            "sink_v": self.sink_v,
        }
        meta = {"format": FORMAT, "box": json.dumps(self.box), "fingerprint": self.fingerprint}
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, path, metadata=meta)

    @classmethod
    def load(cls, path: str | Path) -> Avatar:
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise AvatarError(f"{path}: expected a file of format {FORMAT!r}, got {meta.get('format')!r}")
                t = {k: file.get_tensor(k) for k in ("picture", "reference", "sink_k", "sink_v")}
        except (SafetensorError, OSError) as e:
            raise AvatarError(f"{path}: expected a saved avatar, got a file that does not read ({e})") from None
        left, top, right, bottom = json.loads(meta["box"])
        return cls(
            t["picture"].numpy(),
            (left, top, right, bottom),
            t["reference"],
            t["sink_k"],
            t["sink_v"],
            meta["fingerprint"],
        )
