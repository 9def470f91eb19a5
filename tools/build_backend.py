"""The build backend: scikit-build-core, with an editable install that shows type checkers this package and no other.

scikit-build-core finds the modules of an editable install through an import hook, which type checkers and editors
cannot follow. They follow the folders that it names beside the hook, but those hold too much: the repository, and with
it a top-level ``kernels``, the name of another project's package, and what lies beside the repository. Here they become
one folder that holds a link to ``rest_fast`` and nothing else. Python itself goes on using the hook.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

from scikit_build_core import build as skbuild

ROOT = Path(__file__).resolve().parents[1]
LINKS = ROOT / ".editable"


def __getattr__(hook: str) -> Any:
    """Every other hook is scikit-build-core's; which there are depends on its version and on the settings."""
    return getattr(skbuild, hook)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    name = skbuild.build_editable(wheel_directory, config_settings, metadata_directory)
    LINKS.mkdir(exist_ok=True)
    link = LINKS / "rest_fast"
    if not link.is_symlink():
        link.symlink_to(Path("..", "rest_fast"))
    name_one_folder(Path(wheel_directory, name), LINKS)
    return name


def name_one_folder(wheel: Path, folder: Path) -> None:
    """In place of every folder that the wheel's ``.pth`` file names. Lines that begin with ``import`` stay."""
    before = wheel.with_suffix(".before")
    os.replace(wheel, before)
    with zipfile.ZipFile(before) as old, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as new:
        entries = {info: old.read(info) for info in old.infolist()}
        (pth,) = (info for info in entries if info.filename.endswith(".pth"))
        (record,) = (info for info in entries if info.filename.endswith(".dist-info/RECORD"))
        hooks = [line for line in entries[pth].decode().splitlines() if line.startswith("import")]
        entries[pth] = "\n".join([*hooks, str(folder), ""]).encode()
        rows = entries[record].decode().splitlines()
        rows = [row_of(pth.filename, entries[pth]) if r.startswith(f"{pth.filename},") else r for r in rows]
        entries[record] = "\n".join([*rows, ""]).encode()
        for info, content in entries.items():
            new.writestr(info, content)
    before.unlink()


def row_of(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"
