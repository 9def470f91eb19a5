"""Avatar: a photo that was prepared once, with all that a session needs to know of a face."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rest_fast.errors import AvatarError as AvatarError
from rest_fast.media.paste_back import PasteBack

FORMAT = "rest_fast avatar 2"
FEATURE = "feature "  # before the names of features in a file


@dataclass(frozen=True, eq=False)
class Avatar:
    """The crop, its latent and its sink; tied to one model by the fingerprint of the weights.

    ``photo`` serves paste-back: the whole picture, its longer side at most 1920 px (11 MB at most).
    """

    picture: np.ndarray  #: uint8 [H, W, 3], the crop at the model's size
    box: tuple[int, int, int, int]  #: left, top, right, bottom of the crop in the photo
    reference: torch.Tensor  #: fp32 [T, C], normalised latent of the crop; of flashhead a window of them, [F T, C]
    sink_k: torch.Tensor  #: [L, T, H, D]; L is 0 for a family without sinks
    sink_v: torch.Tensor
    fingerprint: str  #: of the model that made it
    features: dict[str, torch.Tensor] = field(default_factory=dict)  #: what the decoder needs to know of the photo
    photo: np.ndarray | None = None  #: uint8 [H, W, 3]
    photo_box: tuple[int, int, int, int] | None = None  #: the crop in ``photo``, which may be smaller than the original

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the photo's crop and the model's weights.

        It leaves out the numbers that were computed from them, because their last bits depend on the processor.
        """
        picture = np.ascontiguousarray(self.picture)
        return hashlib.sha256(f"{self.fingerprint} {picture.shape}".encode() + picture.tobytes()).hexdigest()

    def paste_back(self) -> PasteBack:
        """The object that blends generated frames into the photo. Raises: :class:`AvatarError` if there is no photo."""
        if self.photo is None or self.photo_box is None:
            raise AvatarError("paste_back: expected an avatar with its photo, got one saved without (prepare it again)")
        return PasteBack(self.photo, self.photo_box)

    def require(self, fingerprint: str) -> None:
        """Raises: :class:`AvatarError` if a model with other weights prepared this."""
        if self.fingerprint != fingerprint:
            raise AvatarError(
                f"session: avatar: expected one prepared by this model ({fingerprint[:12]}...), "
                f"got one of {self.fingerprint[:12]}..."
            )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, including the photo if there is one."""
        tensors = {
            "picture": torch.from_numpy(self.picture.copy()),
            "reference": self.reference,
            "sink_k": self.sink_k,
            "sink_v": self.sink_v,
        } | {FEATURE + name: tensor for name, tensor in self.features.items()}
        if self.photo is not None:
            tensors["photo"] = torch.from_numpy(self.photo.copy())
        boxes = {"box": json.dumps(self.box), "photo_box": json.dumps(self.photo_box)}
        meta = {"format": FORMAT, "fingerprint": self.fingerprint, **boxes}
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, path, metadata=meta)

    @classmethod
    def load(cls, path: str | Path) -> Avatar:
        """Read what :meth:`save` wrote. Raises: :class:`AvatarError` for no such file or another kind of file."""
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("format") != FORMAT:
                    got = f"got {meta.get('format')!r} (prepare the photo again)"
                    raise AvatarError(f"{path}: expected a file of format {FORMAT!r}, {got}")
                t = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as e:
            raise AvatarError(f"{path}: expected a saved avatar, got a file that cannot be read ({e})") from None
        left, top, right, bottom = json.loads(meta["box"])
        photo_box = json.loads(meta["photo_box"])
        return cls(
            t["picture"].numpy(),
            (left, top, right, bottom),
            t["reference"],
            t["sink_k"],
            t["sink_v"],
            meta["fingerprint"],
            {name.removeprefix(FEATURE): tensor for name, tensor in t.items() if name.startswith(FEATURE)},
            t["photo"].numpy() if "photo" in t else None,
            photo_box and tuple(photo_box),
        )
