"""Refuses a PyTorch that is too old by name, before something that it lacks does so in other words.

Installers read the same from the package's metadata; this is for what was installed in spite of it.
"""

from __future__ import annotations

import re

import torch

from rest_fast.errors import InstallError as InstallError

OLDEST = (2, 6)  # as in pyproject.toml


def check(version: str) -> None:
    """Raises: :class:`InstallError` for a version before :data:`OLDEST`."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is not None and (int(found[1]), int(found[2])) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise InstallError(f"PyTorch: expected {wanted} or newer (pip install 'torch>={wanted}'), got {version}")


check(torch.__version__)
