"""Faults that tests must find: ``make mutants`` plants each in a copy of the tree and runs the tests named for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """``old`` stands once in ``file``; with ``new`` in its place at least one of ``tests`` (of pytest) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    def planted(self, root: Path = ROOT) -> str:
        """The file with the fault. ValueError: the text is not there, or not once, or the fault is none."""
        text = (root / self.file).read_text()
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"mutant {self.name!r}: {self.file}: expected {self.old!r} once, got {text.count(self.old)}"
            )
        return text.replace(self.old, self.new)
