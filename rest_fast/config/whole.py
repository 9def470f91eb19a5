"""What the configurations of all families of models have in common."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar

from rest_fast.config.vae import TEMPORAL
from rest_fast.config.validate import replaced, require

C = TypeVar("C", bound="WholeConfig")
PARTS = ("vae", "speech", "dit", "stream", "sampling")


class WholeConfig:
    """A picture cut in latent cells, 25 of it a second, and a configuration for each of :data:`PARTS`."""

    height: int
    width: int
    vae: Any
    fps: int

    def check_picture(self) -> None:
        cell = self.vae.spatial
        for name in ("height", "width"):
            side = getattr(self, name)
            require(side >= cell and side % cell == 0, name, f"a positive multiple of {cell}", side)
        require(self.fps == 25, "fps", "25 (sound and video of the model are tied to it)", self.fps)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one latent frame."""
        return self.height // self.vae.spatial, self.width // self.vae.spatial

    @property
    def tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.grid[0] * self.grid[1]

    @property
    def latent_seconds(self) -> float:
        """Seconds of video that one latent frame stands for: 0.32."""
        return TEMPORAL / self.fps

    def to_json(self) -> str:
        """What a checkpoint's ``config.json`` holds."""
        return json.dumps(dataclasses.asdict(self), indent=2)  # type: ignore[call-overload]

    def replace(self: C, **changes: Any) -> C:
        """A copy with changed fields; ``stream__chunk=3`` reaches into a part."""
        found: C = replaced(self, changes, PARTS)
        return found
