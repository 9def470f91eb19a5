"""What is given away: which wheel a host takes, what may not be published, and the images that the Dockerfile makes."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rest_fast
from rest_fast.cli.arguments import build_parser

pytest.importorskip("packaging", reason="the order of tags is packaging's")
ROOT = Path(__file__).resolve().parents[1]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location("dist", ROOT / "tools" / "dist.py")
    assert spec is not None and spec.loader is not None
    dist = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dist)

PURE = "rest_fast-0.2.0-py3-none-any.whl"
COMPILED = [f"rest_fast-0.2.0-cp3{n}-cp3{n}-manylinux_2_34_x86_64.whl" for n in (10, 11, 12, 13)]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


# -- two wheels of one version


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
@pytest.mark.parametrize("first", [PURE, COMPILED[0]])
def test_hosts_take_the_compiled_wheel_that_fits_and_else_the_pure_one(python, first):
    """In whatever order an index lists them."""
    wheels = sorted([PURE, *COMPILED], key=lambda name: name != first)
    of = {host: dist.taken(wheels, python, tags) for host, tags in dist.hosts().items()}
    own = next(name for name in COMPILED if f"cp{python.replace('.', '')}-" in name)
    fits = {"Linux x86-64, glibc 2.41", "Linux x86-64, glibc 2.36", "Linux x86-64, glibc 2.34"}
    assert {host for host, name in of.items() if name == own} == fits
    assert {name for host, name in of.items() if host not in fits} == {PURE}


def written(folder: Path, changes: dict[str, dict[str, str]] | None = None) -> list[Path]:
    """An sdist and two wheels whose content is what it should be, but for ``changes``."""
    info = "rest_fast-0.2.0.dist-info/METADATA"
    common = {"rest_fast/__init__.py": "", info: "Version: 0.2.0"}
    modules = {"rest_fast/": "", "rest_fast/_cpu.cpython-312-x86_64-linux-gnu.so": "", "rest_fast/_build_info.py": ""}
    for name, content in {PURE: common, COMPILED[2]: common | modules}.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for path, text in (content | (changes or {}).get(name, {})).items():
                archive.writestr(path, text)
    with tarfile.open(folder / "rest_fast-0.2.0.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("rest_fast-0.2.0/PKG-INFO")
        text = (changes or {}).get("sdist", {}).get("PKG-INFO", common[info]).encode()
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    return dist.files(folder)


def test_files_that_belong_together_pass(tmp_path):
    made = written(tmp_path)
    assert [dist.kind(path.name) for path in made] == ["sdist", "pure", "compiled"]
    assert dist.contents(made) == [] and dist.metadata(made) == []


@pytest.mark.parametrize("changes, says", [
    ({PURE: {"rest_fast/_cpu.so": ""}}, "pure wheel: expected Python files, got rest_fast/_cpu.so"),
    ({PURE: {"rest_fast/more.py": ""}}, "expected the pure wheel's files and its modules"),
    ({COMPILED[2]: {"rest_fast.libs/libgomp.so": ""}}, "got ['_build_info', '_cpu', 'libgomp'] beyond them"),
    ({COMPILED[2]: {"kernels/__init__.py": ""}}, "got ['__init__', '_build_info', '_cpu'] beyond them"),
])  # fmt: skip
def test_contents_that_must_not_be_published(tmp_path, changes, says):
    assert any(says in line for line in dist.contents(written(tmp_path, changes)))


@pytest.mark.parametrize("name, path", [
    ("sdist", "PKG-INFO"), (PURE, "rest_fast-0.2.0.dist-info/METADATA"),
])  # fmt: skip
def test_metadata_that_depends_on_the_file(tmp_path, name, path):
    wrong = dist.metadata(written(tmp_path, {name: {path: "Version: 0.2.0\nRequires-Dist: more"}}))
    assert wrong and all("expected the same metadata" in line for line in wrong)


# -- releases


def test_the_changelog_begins_with_this_version():
    newest, said = dist.headings((ROOT / "CHANGELOG.md").read_text())[0]
    assert newest == rest_fast.__version__
    assert said == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", said)


@pytest.mark.parametrize("said, tag, wrong", [
    ("unreleased", None, []),
    ("2026-12-01", "v0.2.0", []),
    ("2026-12-01", None, []),
    ("unreleased", "v0.2.0", ["CHANGELOG.md: expected the day of the tag v0.2.0 behind 0.2.0, got 'unreleased'"]),
    ("2026-12-01", "v0.3.0", ["tag v0.3.0: expected v0.2.0"]),
])  # fmt: skip
def test_a_tagged_commit_has_the_version_and_the_day(said, tag, wrong):
    changelog = f"# Changelog\n\n## 0.2.0 ({said})\n\n- One.\n\n## 0.1.0 (2026-01-01)\n"
    assert dist.release("0.2.0", changelog, tag) == wrong
    assert dist.release("0.3.0", changelog, tag) == ["CHANGELOG.md: expected 0.3.0 first, got 0.2.0"]


# -- trials


def test_every_file_is_tried_and_the_ends_of_the_range_of_dependencies():
    made = [Path(name) for name in ("rest_fast-0.2.0.tar.gz", PURE, *COMPILED)]
    rows = dist.trials(made)
    assert {path for path, _, _ in rows} == set(made)
    for kind in ("pure", "compiled"):
        assert {how for path, _, how in rows if dist.kind(path.name) == kind} == {"lowest", "newest"}
    alone = dist.trials(made[:3])  # one Python: its wheel with both
    assert [(dist.kind(p.name), python, how) for p, python, how in alone][:2] == [
        ("compiled", "3.10", "lowest"), ("compiled", "3.10", "newest"),
    ]  # fmt: skip


def test_the_lowest_are_those_of_pyproject(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "WORK", tmp_path)
    lines = dist.lowest().read_text().splitlines()
    assert "torch==2.6" in lines and "numpy==1.26; python_version < '3.13'" in lines and "c2pa-python==0.38" in lines
    assert all(re.fullmatch(r"[\w-]+==[\d.]+(; .*)?", line) for line in lines)


def test_tests_that_are_tried_exist_and_can_do_without_the_repository():
    """They import nothing but packages and each other's kit, and read no file of the tree outside of ``tests``."""
    for pattern in dist.TESTS:
        found = sorted(ROOT.glob(pattern))
        assert found, pattern
        for path in found:
            assert not re.search(r"Path\(__file__\)(\.resolve\(\))?\.parents", path.read_text()), path


@pytest.mark.skipif(not (ROOT / "docs" / "dist.json").exists(), reason="no results of make dist are stored")
def test_the_page_says_what_is_stored():
    results = json.loads((ROOT / "docs" / "dist.json").read_text())
    assert (ROOT / "docs" / "dist.md").read_text() == dist.page(results)
    assert {file["kind"] for file in results["files"]} == {"sdist", "pure", "compiled"}
    for row in results["trials"]:
        assert row.get("failed") == 0 and row["passed"] > 100, row


def test_a_trial_that_ended_early_has_its_row():
    """One that could not be installed has neither versions nor counts."""
    row = {"file": "rest_fast-1.tar.gz", "kind": "sdist", "python": "3.12", "dependencies": "newest"}
    results = {"date": "2000-01-01", "commit": "abc", "machine": "Linux", "cuda": "", "files": [], "taken": {}}
    page = dist.page(
        results | {"trials": [row | {"failed": 1, "failures": ["pip"]}, row | {"not_run": "no python3.12"}]}
    )
    assert "| 0 passed, 0 skipped, 1 failed |" in page and "| no python3.12 |" in page


# -- images


def stages() -> dict[str, list[str]]:
    """Instructions by stage, in one line each."""
    found: dict[str, list[str]] = {}
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)).splitlines()
    for line in filter(None, lines):
        if line.startswith("FROM "):
            found[line.split()[-1]] = [line]
        elif found:
            found[list(found)[-1]].append(line)
    return found


@pytest.mark.parametrize("image", ["cpu", "cuda"])
def test_an_image_is_made_of_its_own_wheel_and_does_not_run_as_root(image):
    own = stages()[image]
    assert own[0] == f"FROM server AS {image}"
    assert sum(f"from=wheel-{image}," in line for line in own) == 1
    users = [line.split()[1] for line in own if line.startswith("USER ")]
    assert users and users[-1] != "0" and users[-1].isdigit()
    assert f"--uid {users[-1]} " in " ".join(stages()["server"])


@pytest.mark.parametrize("image, cuda", [("cpu", False), ("cuda", True)])
def test_wheels_of_images_are_built_by_the_tool(monkeypatch, image, cuda):
    """The words of the Dockerfile are words that tools/dist.py takes."""
    (line,) = (line for line in stages()[f"wheel-{image}"] if "tools/dist.py" in line)
    calls = []
    monkeypatch.setattr(dist, "build", lambda *given: calls.append(given))
    monkeypatch.setattr(dist.matrix, "find", lambda version: f"python{version}")
    monkeypatch.setattr(dist.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sys, "argv", shlex.split(line.replace("${PYTHON}", "3.12"))[2:])
    assert dist.main() == 0
    assert calls == [(Path("/wheels"), ["python3.12"], cuda)]


def test_the_server_starts_and_is_asked_how_it_is():
    server = stages()["server"]
    (entry,) = (json.loads(line.partition(" ")[2]) for line in server if line.startswith("ENTRYPOINT"))
    args = build_parser().parse_args(entry[1:])
    assert entry[0] == "rest-fast" and args.command == "serve" and args.host == "0.0.0.0"
    (port,) = (int(line.split()[1]) for line in server if line.startswith("EXPOSE"))
    assert port == args.port
    (health,) = (line for line in server if line.startswith("HEALTHCHECK"))
    code = json.loads(health[health.index("[") :])[-1]
    compile(code, "healthcheck", "exec")
    assert f"127.0.0.1:{port}/healthz" in code
