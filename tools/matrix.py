"""Runs a part of the tests on every Python that this package claims, with the newest and with the lowest dependencies.

Each pair has an environment of its own: a wheel built with the newest or the lowest build tools, the dependencies and
the extras in ``EXTRAS``, the demo from the command line, then the tests, on the wheel and not on these sources.
Environments are made one after the other and deleted; they share their files with uv's cache (5.5 GB for one version of
PyTorch with CUDA, which is what PyPI serves for Linux). Only wheels are taken: what has none for a Python is not
claimed for it.

    python tools/matrix.py --store docs/matrix.json                          # make test-matrix
    python tools/matrix.py --python 3.13 --dependencies newest --part first  # make test-newest
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "matrix"
ROOM = 8 * 2**30  # bytes of disk for one environment
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
DEPENDENCIES = ["newest", "lowest"]
# All but `train`, which asks for a later PyTorch than the package, and `syncnet`, which has no wheel.
EXTRAS = ["test", "face", "synth", "evaluate", "fid", "whisper", "convert"]
PARTS = {
    # What changes most from release to release: sounds, pictures, videos.
    "first": ["tests/media/test_*.py"],
    "serving": ["tests/serving/test_*.py"],
    # Each dependency at least once, every op, the sessions; not what measures or trains.
    "stated": [
        *(
            "tests/media/test_*.py",
            "tests/streaming/test_sound.py",
            "tests/media/test_faces.py",
            "tests/media/test_paste_back.py",
        ),
        *(
            "tests/streaming/test_session*.py",
            "tests/streaming/test_cache.py",
            "tests/test_model.py",
            "tests/test_checkpoint.py",
        ),
        *(
            "tests/config/test_config.py",
            "tests/test_noise.py",
            "tests/streaming/test_sampler.py",
            "tests/cli/test_cli.py",
        ),
        *(
            "tests/test_diagnostics.py",
            "tests/ops/test_*.py",
            "tests/models/test_vae.py",
            "tests/models/test_speech.py",
        ),
        *("tests/convert/test_prompt.py", "tests/evaluation/test_measures.py", "tests/evaluation/test_readers.py"),
        *("tests/training/test_preparation_films.py", "tests/training/test_synthetic_*.py"),
    ],
}


class Failed(Exception):
    """A step before the tests ended in an error; the message is the end of its output."""


def call(*command: object, log: Path, **environment: str) -> None:
    with log.open("a") as file:
        file.write(f"$ {' '.join(map(str, command))}\n")
        file.flush()
        at = file.tell()
        kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS")}
        # Elsewhere than in the sources, which Python would import in place of the wheel.
        done = subprocess.run([*map(str, command)], cwd=WORK, env=kept | environment, stdout=file, stderr=file)
    if done.returncode:
        said = log.read_text()[at:].strip().splitlines()[-12:]
        raise Failed(f"{Path(str(command[0])).name} ended with {done.returncode}\n" + "\n".join(said))


def find(version: str) -> str | None:
    """An interpreter of this version: on PATH, else among pyenv's. A shim of pyenv may be on PATH and not run."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for python in [shutil.which(f"python{version}"), *sorted(root.glob(f"versions/{version}.*/bin/python"))]:
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return str(python)
    return None


def uv() -> str:
    found = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise SystemExit("matrix: uv is not installed; expected it beside this Python or on PATH (pip install uv)")
    return found


def build_tools(dependencies: str) -> Path:
    """Constraints for the build: nothing, or every tool at the version that pyproject.toml asks for at least."""
    (listed,) = re.findall(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    lowest = "\n".join(re.findall(r'"([^"]+)"', listed)).replace(">=", "==")
    path = WORK / f"build-{dependencies}.txt"
    path.write_text(lowest if dependencies == "lowest" else "")
    return path


def install(where: Path, python: str, dependencies: str, log: Path) -> None:
    binary = where / "bin" / "python"
    call(uv(), "venv", "--clear", "--python", python, where, log=log)
    resolution = "lowest-direct" if dependencies == "lowest" else "highest"
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    wheels = ["--only-binary", ":all:", "--resolution", resolution]
    call(uv(), "pip", "install", "--python", binary, *wheels, "-r", ROOT / "pyproject.toml", *extras, log=log)
    build = [uv(), "build", "--wheel", "--python", python, "--build-constraints", build_tools(dependencies)]
    call(*build, "--out-dir", where / "dist", ROOT, log=log, REST_FAST_CUDA="OFF", REST_FAST_REQUIRE_EXT="1")
    (wheel,) = (where / "dist").glob("*.whl")
    call(uv(), "pip", "install", "--python", binary, "--no-deps", wheel, log=log)


def versions(where: Path) -> dict[str, str]:
    """Of everything that pyproject.toml names, as installed."""
    named = set(re.findall(r'"([A-Za-z0-9_-]+)>=', (ROOT / "pyproject.toml").read_text()))
    listed = subprocess.check_output([uv(), "pip", "list", "--python", where / "bin" / "python", "--format", "json"])
    return {p["name"]: p["version"] for p in json.loads(listed) if p["name"].replace("_", "-") in named}


def test(where: Path, part: str, workers: int, log: Path) -> dict[str, Any]:
    """The demo, then the tests; counts from pytest's own report."""
    bad = []
    try:
        call(where / "bin" / "rest-fast", "demo", "-o", where / "talking.mp4", "--quiet", log=log, OMP_NUM_THREADS="1")
    except Failed as problem:
        bad.append(f"demo: {problem}")
    files = [path for pattern in PARTS[part] for path in sorted(ROOT.glob(pattern))]
    report = where / "report.xml"
    words = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    spread = ["-n", workers, "--dist", "worksteal"] if workers > 1 else []
    try:
        call(where / "bin" / "pytest", *words, *spread, f"--junitxml={report}", *files, log=log)
    except Failed:
        if not report.exists():
            raise
    cases = list(xml.parse(report).getroot().iter("testcase"))
    tags = [{child.tag for child in case} for case in cases]
    bad += [f"{c.get('classname')}::{c.get('name')}" for c, tag in zip(cases, tags) if tag & {"failure", "error"}]
    skipped = sum("skipped" in tag for tag in tags)
    passed = sum(not tag & {"failure", "error", "skipped"} for tag in tags)
    return {"passed": passed, "skipped": skipped, "failed": len(bad), "failures": bad}


def run(version: str, dependencies: str, part: str, workers: int) -> dict[str, Any]:
    name = f"{version}-{dependencies}"
    where, log = WORK / name, WORK / f"{name}.log"
    log.write_text("")
    row: dict[str, Any] = {"python": version, "dependencies": dependencies}
    python = find(version)
    if python is None:
        return row | {"not_run": f"no python{version} on PATH or in pyenv"}
    if (free := shutil.disk_usage(WORK).free) < ROOM:
        return row | {"not_run": f"an environment takes {ROOM / 2**30:.0f} GB of disk, free are {free / 2**30:.1f}"}
    started = time.monotonic()
    try:
        print(f"Python {version}, {dependencies} dependencies: installing (PyTorch from PyPI: 3 GB) ...", flush=True)
        install(where, python, dependencies, log)
        row["python"] = platform_of(where / "bin" / "python")
        row["versions"] = versions(where)
        print(f"Python {version}, {dependencies} dependencies: testing ...", flush=True)
        return row | test(where, part, workers, log) | {"seconds": round(time.monotonic() - started)}
    except Failed as problem:
        return row | {"failed": 1, "failures": [str(problem)]}
    finally:
        shutil.rmtree(where, ignore_errors=True)


def platform_of(python: Path) -> str:
    return subprocess.check_output(
        [python, "-c", "import platform; print(platform.python_version())"], text=True
    ).strip()


def told(row: dict[str, Any]) -> str:
    name = f"Python {row['python']}, {row['dependencies']} dependencies"
    if "not_run" in row:
        return f"{name}: NOT RUN: {row['not_run']}"
    counts = ", ".join(f"{row[key]} {key}" for key in ("passed", "skipped", "failed") if key in row)
    return "\n  ".join([f"{name}: {counts}", *row["failures"]])


def commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def stored(path: Path, part: str, rows: list[dict[str, Any]], commit: str) -> None:
    head = {"commit": commit, "date": date.today().isoformat(), "machine": f"{platform.system()} {platform.machine()}"}
    results = head | {"part": PARTS[part], "environments": rows}
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The results in words and tables, for people."""
    rows = results["environments"]
    names = sorted({name for row in rows for name in row.get("versions", {})})
    title = [f"{row['python']} {row['dependencies']}" for row in rows]
    line = "|".join
    counts = [[str(row.get(key, "not run")) for row in rows] for key in ("passed", "skipped", "failed")]
    table = [line(["", "", *title, ""]), line(["", "---", *["---"] * len(rows), ""])]
    table += [line(["", f"**{key}**", *c, ""]) for key, c in zip(("passed", "skipped", "failed"), counts)]
    table += [line(["", name, *[row.get("versions", {}).get(name, "") for row in rows], ""]) for name in names]
    tests = ", ".join(f"`{pattern}`" for pattern in results["part"])
    return f"""# Pythons and versions that were tried

Written by `make test-matrix` on {results["date"]}: commit {results["commit"]}, {results["machine"]}. The lowest
versions are those that `pyproject.toml` claims; the newest are what the package index had that day. Each column is an
environment with a wheel of its own, in which `rest-fast demo` ran and then these tests: {tests}.

{chr(10).join(table)}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="X.Y", help="default: %(default)s")
    parser.add_argument("--dependencies", nargs="+", default=DEPENDENCIES, choices=DEPENDENCIES)
    parser.add_argument("--part", default="stated", choices=PARTS, help="which tests (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that test (default: %(default)s)")
    parser.add_argument("--store", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--may-lack", action="store_true", help="no such Python, or no room on the disk, is no failure")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    rows, tried = [], commit()  # before a result is stored, which is a change, too
    for version in arguments.python:
        for dependencies in arguments.dependencies:
            rows.append(run(version, dependencies, arguments.part, arguments.workers))
            print(told(rows[-1]), flush=True)
            if arguments.store:
                stored(arguments.store, arguments.part, rows, tried)
    lacking = any("not_run" in row for row in rows) and not arguments.may_lack
    return int(lacking or any(row.get("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
