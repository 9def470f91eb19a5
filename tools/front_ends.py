"""Tries the faces for LiveKit Agents and pipecat, and the application for Ray Serve, with these libraries, and stores
what came of it.

Each library gets an environment of its own, since both are large and want other versions than we and each other do. It
lies over the environment of this Python: what that has is not installed again, and what must differ comes first. The
lowest version that pyproject.toml claims is tried, then the newest that it allows, where that is another.

    python tools/front_ends.py livekit pipecat --store docs/front_ends.json   # make front-ends
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import sysconfig
import venv
import xml.etree.ElementTree as xml
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/serving/test_contract.py", "tests/serving/test_{}.py", "tests/serving/test_examples.py"]
# Of what each brings along, what decides whether it works.
NAMED = {"livekit": ["livekit-agents", "livekit"], "pipecat": ["pipecat-ai"], "ray": ["ray"]}
SLOW = ("ray",)  # whose tests are marked so


def requirement(extra: str) -> str:
    """Of pyproject.toml: a package with its lowest version and a bound."""
    (found,) = re.findall(rf'^{extra} = \["([^";]+)', (ROOT / "pyproject.toml").read_text(), re.M)
    return str(found).strip()


def environment(where: Path) -> Path:
    """The interpreter of an environment over this one. A file of paths has that one's files of paths read, too, so that
    editable installs are found."""
    python = where / "bin" / "python"
    if not python.exists():
        print(f"Making {where} over {sys.prefix}", flush=True)
        venv.create(where, with_pip=True)
    (packages,) = where.glob("lib/python3*/site-packages")
    below = sysconfig.get_path("purelib")
    (packages / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    return python


def install(python: Path, wanted: str) -> None:
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    subprocess.run([*map(str, pip), wanted], check=True)


def versions(python: Path, names: list[str]) -> dict[str, str]:
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    found: dict[str, str] = json.loads(subprocess.check_output([str(python), "-c", code, *names], text=True))
    return found


def test(python: Path, name: str, report: Path) -> dict[str, Any]:
    """Counts from pytest's own report, of the tests with the front end's name."""
    files = [path.format(name) for path in TESTS]
    chosen = f"{name} and not demo" if name in SLOW else name
    words = [
        "-q",
        "-m",
        "" if name in SLOW else "not slow",
        "-k",
        chosen,
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    subprocess.run([str(python), "-m", "pytest", *words, *files], cwd=ROOT)
    cases = list(xml.parse(report).getroot().iter("testcase"))
    tags = [{child.tag for child in case} for case in cases]
    bad = [f"{c.get('classname')}::{c.get('name')}" for c, tag in zip(cases, tags) if tag & {"failure", "error"}]
    skipped = sum("skipped" in tag for tag in tags)
    passed = len(cases) - len(bad) - skipped
    return {"passed": passed, "skipped": skipped, "failed": len(bad), "failures": bad}


def tried(name: str, folder: Path) -> list[dict[str, Any]]:
    python, wanted, rows = environment(folder / name), requirement(name), []
    lowest = wanted.partition(",")[0].replace(">=", "==")
    for dependencies, what in (("lowest", lowest), ("newest", wanted)):
        install(python, what)
        found = versions(python, NAMED[name])
        if rows and found == rows[0]["versions"]:
            rows[0]["dependencies"] = "lowest and newest"
            break
        row = {"front_end": name, "dependencies": dependencies, "versions": found}
        rows.append(row | test(python, name, folder / f"{name}.xml"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("names", nargs="+", choices=NAMED)
    parser.add_argument("--folder", type=Path, default=ROOT / ".front-ends", help="of the environments")
    parser.add_argument("--store", type=Path, metavar="FILE", help="put the results into this JSON")
    arguments = parser.parse_args()
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()  # before a result is stored
    about = {"commit": commit, "date": date.today().isoformat(), "python": platform.python_version()}
    store: Path | None = arguments.store
    kept = json.loads(store.read_text()) if store is not None and store.exists() else []
    failed = 0
    for name in arguments.names:
        rows = [row | about for row in tried(name, arguments.folder.resolve())]
        for row in rows:
            print(", ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
        failed += sum(row["failed"] or not row["passed"] for row in rows)
        kept = [row for row in kept if row["front_end"] != name] + rows
        if store is not None:
            store.write_text(json.dumps(kept, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
