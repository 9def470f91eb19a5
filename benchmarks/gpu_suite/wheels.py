"""The packages that a GPU machine lacks: fetched where there is a network, installed where there is none.

python3 benchmarks/gpu_suite/wheels.py fetch [FOLDER]
python3 benchmarks/gpu_suite/wheels.py install SITE [FOLDER]
python3 benchmarks/gpu_suite/wheels.py unpack SITE [FOLDER]
python3 benchmarks/gpu_suite/wheels.py carried [FOLDER]
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("wheels.txt")
FOLDER = ROOT / "build" / "gpu-wheels"
PYTHON = (3, 12)  # that of the machines the wheels are for
# pip takes a platform by its exact name: the glibc versions that wheels are tagged with.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]
MARK = ".rest_fast-gpu-suite"
CARRIED = 64 << 20  # bytes that may travel to a machine that is lent: the tree and this folder
# What the suite imports, wherever it comes from.
NEEDED = {
    "torch": "PyTorch",
    "numpy": "NumPy",
    "pybind11": "pybind11",
    "scikit_build_core": "scikit-build-core",
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
    "xdist": "pytest-xdist",
    "hypothesis": "hypothesis",
    "safetensors": "safetensors",
    "PIL": "pillow",
    "soxr": "soxr",
    "tqdm": "tqdm",
}


def pinned(path: Path = LIST) -> dict[str, str]:
    """Name -> version of every line of the list. A line that is no pin is a ``ValueError``."""
    pins: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, equals, version = text.partition("==")
        if not equals or not name or not version or set(text) & set(" ;<>~!,"):
            raise ValueError(f"{path.name}, line {number}: expected NAME==VERSION, got {text!r}")
        if name in pins:
            raise ValueError(f"{path.name}, line {number}: expected every name once, got {name} again")
        pins[name] = version
    return pins


def fetch(folder: Path) -> int:
    """Download the list for Python 3.12 on Linux, and note which source it was done for. pip's exit code."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from gpu_suite import machine

    pinned()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", ".".join(map(str, PYTHON))]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    code = subprocess.run([*command, "--dest", str(folder), "--requirement", str(LIST)]).returncode
    if code == 0:
        # A machine without a network may get the sources without their history.
        (folder / "source.json").write_text(json.dumps(machine.source(ROOT)))
        size = sum(p.stat().st_size for p in folder.glob("*.whl"))
        print(f"{len(list(folder.glob('*.whl')))} wheels, {size / 1e6:.0f} MB, in {folder}")
    return code


def unpack(site: Path, folder: Path) -> int:
    """Install the list into ``site``, for the Python that runs this. pip's exit code."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    command += ["--no-cache-dir", "--find-links", str(folder), "--target", str(site), "--requirement", str(LIST)]
    return subprocess.run(command).returncode


def install(site: Path, folder: Path) -> int:
    """Install the list into ``site`` where it fits this Python, then look whether anything is missing. Exit code."""
    if site.exists() and not (site / MARK).exists():
        print(f"{site}: expected a folder that this script has made, got another one")
        return 1
    shutil.rmtree(site, ignore_errors=True)  # two versions of one package would both be found
    site.mkdir(parents=True)
    (site / MARK).touch()
    version = ".".join(map(str, sys.version_info[:2]))
    if not any(folder.glob("*.whl")):
        print(f"no wheels in {folder}: the packages of this Python are used")
    elif sys.version_info[:2] != PYTHON:
        print(f"the wheels are for Python {PYTHON[0]}.{PYTHON[1]}, this is {version}: its own packages are used")
    else:
        code = unpack(site, folder)
        if code:
            return code
    importlib.invalidate_caches()  # the path may have named the folder before it was there
    path = [str(site), *sys.path[1:]]  # without this script's own folder
    missing = [
        name for module, name in NEEDED.items() if importlib.machinery.PathFinder.find_spec(module, path) is None
    ]
    if missing:
        print(f"missing: {', '.join(missing)}; run `make gpu-wheels` where there is a network and bring {folder.name}")
    return 1 if missing else 0


def carried(folder: Path) -> int:
    """Whether the tree and this folder are small enough to travel. Exit code."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tree = sum(path.stat().st_size for name in listed.split("\0") if name and (path := ROOT / name).is_file())
    brought = sum(path.stat().st_size for path in folder.glob("*"))
    size = f"the tree has {tree / 2**20:.1f} MiB, {folder.name} {brought / 2**20:.1f} MiB"
    fits = tree + brought <= CARRIED
    print(f"{size}: {'of' if fits else 'expected at most'} {CARRIED >> 20} MiB that can be carried")
    return 0 if fits else 1


def main(words: list[str]) -> int:
    folder = Path(words[-1]) if len(words) > 1 else FOLDER
    if words[:1] == ["fetch"] and len(words) <= 2:
        return fetch(folder)
    if words[:1] == ["carried"] and len(words) <= 2:
        return carried(folder)
    if words[:1] in (["install"], ["unpack"]) and 2 <= len(words) <= 3:
        return (install if words[0] == "install" else unpack)(Path(words[1]), folder if words[2:] else FOLDER)
    print(__doc__)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
