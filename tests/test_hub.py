"""The hub by a stand-in for its library and by the library itself, offline; model cards."""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from pathlib import Path

import pytest

import rest_fast
from rest_fast import RestPipeline
from rest_fast.model_card import model_card


@pytest.fixture
def pipe(model):
    return RestPipeline(model)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "toy"
    RestPipeline(model).save_pretrained(path)
    return path


class Hub(types.ModuleType):
    """A stand-in for ``huggingface_hub``: one repository in a folder, and what was asked of it."""

    def __init__(self, repository: Path, error: Exception | None = None, card: bool = False):
        super().__init__("huggingface_hub")
        self.repository, self.error, self.card = repository, error, card
        self.asked: list[tuple] = []
        self.uploaded: dict[str, str] = {}

    def _answer(self, *asked):
        self.asked.append(asked)
        if self.error is not None:
            raise self.error

    def snapshot_download(self, repo_id, **options):
        self._answer(repo_id, options)
        return str(self.repository)

    def HfApi(self, token=None):
        self.asked.append(("HfApi", token))
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        self._answer("create_repo", repo_id, private, exist_ok)

    def file_exists(self, repo_id, filename, *, revision):
        return self.card

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, revision, commit_message):
        self._answer("upload_folder", repo_id, revision)
        found = {path.name: path for path in Path(folder_path).iterdir()}
        self.uploaded = {name: hashlib.sha256(found[name].read_bytes()).hexdigest() for name in allow_patterns}
        if "README.md" in allow_patterns:
            self.text = found["README.md"].read_text()
        return types.SimpleNamespace(commit_url=f"https://hub.example/{repo_id}/commit/1")


@pytest.fixture
def hub(folder, monkeypatch):
    def put(repository=folder, **options) -> Hub:
        one = Hub(repository, **options)
        monkeypatch.setitem(sys.modules, "huggingface_hub", one)
        return one

    return put


def test_a_hub_id_is_asked_for_two_files(model, hub):
    one, files = hub(), ["config.json", "model.safetensors"]
    assert RestPipeline.from_pretrained("owner/name", device="cpu").model.fingerprint == model.fingerprint
    options = {"revision": "v1", "token": "hf_secret", "cache_dir": "cache", "local_files_only": True}
    RestPipeline.from_pretrained("owner/name", device="cpu", **options)
    assert one.asked == [
        ("owner/name", {"allow_patterns": files}),
        ("owner/name", {"allow_patterns": files, **options}),
    ]


def named(name: str, text: str, base: type[Exception] = Exception) -> Exception:
    return type(name, (base,), {})(text)


@pytest.mark.parametrize(("error", "says"), [
    (named("RepositoryNotFoundError", "404\nRequest ID: 5"), "no such repository, or one that this token may not see"),
    (named("RevisionNotFoundError", "404"), "no such revision"),
    (named("GatedRepoError", "403"), "terms"),
    (named("LocalEntryNotFoundError", "...", FileNotFoundError), "nothing in the local cache"),
    (ValueError("Illegal header\nvalue b'Bearer hf_secret\\n'"), r"ValueError: Illegal header value b'Bearer .token"),
    (ConnectionError("Name or service\nnot known"), "got ConnectionError: Name or service not known"),
])  # fmt: skip
def test_errors_of_the_hub_are_one_line(pipe, hub, error, says):
    hub(error=error)
    for call, start in (
        (lambda: RestPipeline.from_pretrained("nobody/nothing", token="hf_secret\n"), "load: nobody/nothing: expected"),
        (lambda: pipe.push_to_hub("nobody/nothing", token="hf_secret\n"), "push_to_hub: nobody/nothing: expected"),
    ):
        with pytest.raises(rest_fast.HubError, match=f"^{start}.*{says}") as caught:
            call()
        text = str(caught.value)
        assert "\n" not in text and "hf_secret" not in text and "Request ID" not in text
        assert isinstance(caught.value, OSError) and isinstance(caught.value, rest_fast.CheckpointError)
        assert caught.value.__cause__ is None and caught.value.__suppress_context__  # a traceback shows no more


def test_a_repository_without_weights_is_named(folder, hub, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    hub(tmp_path)
    with pytest.raises(rest_fast.HubError, match=r"load: owner/name: .*pickles are never loaded.*without model.safe"):
        RestPipeline.from_pretrained("owner/name", device="cpu")


def test_without_the_hubs_library(pipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    says = r"huggingface_hub is not installed .pip install 'rest_fast\[hub\]"
    for call in (lambda: RestPipeline.from_pretrained("owner/name"), lambda: pipe.push_to_hub("owner/name")):
        with pytest.raises(rest_fast.HubError, match=says):
            call()


@pytest.mark.parametrize("card", [False, True])
def test_push_uploads_what_is_saved(pipe, folder, hub, card):
    one = hub(card=card)
    url = pipe.push_to_hub("owner/name", private=True, token="hf_secret", revision="v1", license="apache-2.0")
    assert url == "https://hub.example/owner/name/commit/1"
    assert one.asked == [
        ("HfApi", "hf_secret"),
        ("create_repo", "owner/name", True, True),
        ("upload_folder", "owner/name", "v1"),
    ]
    for name in ("config.json", "model.safetensors"):
        assert one.uploaded.pop(name) == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert list(one.uploaded) == ([] if card else ["README.md"])
    if not card:
        assert 'from_pretrained("owner/name")' in one.text and "license: apache-2.0" in one.text


def test_the_calls_fit_the_hubs_own_library():
    """What the stand-in takes, the real functions take, too."""
    api = pytest.importorskip("huggingface_hub").HfApi
    assert {"token"} <= set(inspect.signature(api).parameters)
    for name in ("create_repo", "file_exists", "upload_folder"):
        ours = list(inspect.signature(getattr(Hub, name)).parameters)[1:]
        assert set(ours) <= set(inspect.signature(getattr(api, name)).parameters), name
    positional = list(inspect.signature(api.file_exists).parameters)[:3]
    assert positional == ["self", "repo_id", "filename"]


def test_the_hubs_own_library_offline(model, folder, tmp_path):
    """A cache as the library lays it out: found without a network; another id is one clear error."""
    pytest.importorskip("huggingface_hub")
    repository, commit = tmp_path / "models--owner--name", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(folder)
    options = {"cache_dir": tmp_path, "local_files_only": True, "device": "cpu"}
    assert RestPipeline.from_pretrained("owner/name", **options).model.fingerprint == model.fingerprint
    for name, says in (("owner/other", "nothing in the local cache"), ("owner/bad..name", "HFValidationError")):
        with pytest.raises(rest_fast.HubError, match=f"load: {name}: .*{says}"):
            RestPipeline.from_pretrained(name, **options)


def test_the_card_says_what_the_files_hold(model, folder):
    text, weights = (folder / "README.md").read_text(), (folder / "model.safetensors").read_bytes()
    state = model.state_dict()
    for expected in (
        "# toy\n",
        "64 x 64 pixels, 25 frames per second",
        "2 steps, guidance 2,",
        "0.96 s of video",
        f"VAE decoder | {sum(t.numel() for k, t in state.items() if k.startswith('vae.decoder.')) / 1e6:.2f} M",
        f"{len(state)} tensors",
        hashlib.sha256(weights).hexdigest(),
        "No licence of the weights is stated",
    ):
        assert expected in text, expected
    assert "license:" not in text and text.startswith("---\nlibrary_name: rest_fast\n")
    assert "\nlicense: apache-2.0\n---\n" in model_card(folder, license="apache-2.0")
