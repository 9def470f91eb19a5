"""The table of parts, and what their steps depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from . import machine
from .exhaustive import ops, vae
from .place import Place
from .short import short
from .steps import Step

# A part is a function from the place to its steps. Steps of the same name in two parts run in both.
PARTS: dict[str, Callable[[Place], list[Step]]] = {"short": short, "ops": ops, "vae": vae}


def listed(name: str, place: Place) -> list[Step]:
    """The steps of a part. One that does not say what its result depends on depends on all sources."""
    everything = place.digest(*machine.SOURCES)
    return [step if step.digest else replace(step, digest=everything) for step in PARTS[name](place)]
