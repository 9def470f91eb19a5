"""The Hugging Face hub: a checkpoint out of a repository, and into one.

Only ``config.json``, ``model.safetensors`` and the model card travel. ``huggingface_hub`` is imported at the first use,
so that folders need neither it nor a network. Whatever it raises becomes one :class:`HubError`, without the token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from rest_fast.checkpoint import CONFIG, WEIGHTS
from rest_fast.errors import HubError as HubError

T = TypeVar("T")

CARD = "README.md"
# What the errors mean for whoever gave the id, by the names of their classes: those move between releases.
MEANINGS = {
    "RepositoryNotFoundError": "no such repository, or one that this token may not see",
    "GatedRepoError": "a repository whose terms this token's account has not accepted",
    "RevisionNotFoundError": "no such revision of it",
    "LocalEntryNotFoundError": "nothing in the local cache, and no download (no network, or not allowed)",
    "OfflineModeIsEnabled": "nothing in the local cache, and HF_HUB_OFFLINE forbids a download",
}


def download(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder in the local cache with the checkpoint of a repository, downloaded where it is not there yet.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit; None: the newest of the main branch.
        token: of an account that may read it; None: the one that is stored on this machine, False: none.
        local_files_only: no network; what was downloaded before.
    Raises: :class:`HubError`, also where ``huggingface_hub`` is not installed.
    """
    given = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only or None}
    options = {key: value for key, value in given.items() if value is not None}
    expected = f"load: {name}: expected a folder, or a Hugging Face id that can be downloaded"
    fetch = partial(_library(expected).snapshot_download, name, allow_patterns=[CONFIG, WEIGHTS], **options)
    folder = Path(_asked(fetch, expected, token))
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise HubError(
            f"load: {name}: expected a repository with {CONFIG} and {WEIGHTS} (pickles are never loaded), got one "
            f"without {' and '.join(missing)}"
        )
    return folder


def upload(
    folder: Path,
    name: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> str:
    """Put a checkpoint's files into a repository, which is made if there is none. A card that it has stays.

    Returns: the address of the commit. Raises: as :func:`download`.
    """
    expected = f"push_to_hub: {name}: expected a repository that this token may write to"
    api = _library(expected).HfApi(token=token)
    _asked(partial(api.create_repo, name, private=private, exist_ok=True), expected, token)
    has_card = _asked(partial(api.file_exists, name, CARD, revision=revision), expected, token)
    options = {
        "repo_id": name,
        "folder_path": folder,
        "allow_patterns": [CONFIG, WEIGHTS] if has_card else [CONFIG, WEIGHTS, CARD],
        "revision": revision,
        "commit_message": "Upload a checkpoint of rest_fast",
    }
    return str(_asked(partial(api.upload_folder, **options), expected, token).commit_url)


def _library(expected: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(f"{expected}, but huggingface_hub is not installed (pip install 'rest_fast[hub]')") from None
    return huggingface_hub


def _asked(call: Callable[[], T], expected: str, token: str | bool | None) -> T:
    try:
        return call()
    except Exception as error:  # of the hub's library, of its HTTP client or of the system: there is no common base
        text = MEANINGS.get(type(error).__name__) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(token, str) and token.strip():  # HTTP clients quote a header that they refuse
            text = text.replace(token.strip(), "(token)")
        raise HubError(f"{expected}, got {text}") from None
