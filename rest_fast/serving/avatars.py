"""Faces that a server can show: those that it was started with, and those that visitors have uploaded."""

from __future__ import annotations

import asyncio
import io
import secrets
from collections import OrderedDict

from PIL import Image

from rest_fast.avatar import Avatar
from rest_fast.errors import ArgumentError, MediaError
from rest_fast.model import Model
from rest_fast.serving.limits import Limits
from rest_fast.serving.protocol import ProtocolError

Crop = tuple[float, float, float, float] | str | None


class Avatars:
    """By name. Uploaded ones have random names, and the oldest go when there are too many."""

    def __init__(self, model: Model, limits: Limits):
        self.model, self.limits = model, limits
        self.shipped: dict[str, Avatar] = {}
        self.uploaded: OrderedDict[str, Avatar] = OrderedDict()

    def names(self) -> list[str]:
        """Of those that everybody may see."""
        return list(self.shipped)

    def find(self, name: str) -> Avatar:
        """Raises: :class:`ProtocolError`."""
        found = self.shipped.get(name) or self.uploaded.get(name)
        if found is None:
            raise ProtocolError("NO_SUCH_AVATAR", "avatar: expected the name of one of this server, got another")
        return found

    async def upload(self, picture: bytes, crop: Crop, name: str = "") -> tuple[str, Avatar]:
        """Prepare a picture that a visitor has sent; its name is random where none is given.

        Raises: :class:`ProtocolError`, with the reason.
        """
        if len(picture) > self.limits.upload:
            raise ProtocolError("TOO_LARGE", f"picture: expected at most {self.limits.upload} bytes, got more")
        try:
            avatar = await asyncio.to_thread(self.model.prepare, picture, crop=crop)
        except (MediaError, ArgumentError) as e:
            raise ProtocolError("BAD_PICTURE", str(e)) from None
        name = name or secrets.token_urlsafe(12)
        self.uploaded[name] = avatar
        while len(self.uploaded) > self.limits.avatars:
            self.uploaded.popitem(last=False)
        return name, avatar


def jpeg(picture: object, quality: int = 85) -> bytes:
    """A picture uint8 [H, W, 3] as JPEG."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)  # type: ignore[arg-type]
    return out.getvalue()
