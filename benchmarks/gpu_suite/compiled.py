"""Our extension modules as a wheel made beforehand, so that a machine lent for minutes spends none on compiling.

    PYTHONPATH=benchmarks python3 -m gpu_suite.compiled build [FOLDER]
    PYTHONPATH=benchmarks python3 -m gpu_suite.compiled lay SITE ARCHITECTURE FOLDER -- COMMAND...

The wheel holds what a compiler made and nothing else, and beside it lies a note of the sources, the Python and the GPU
that it is for. ``lay`` puts it under this tree's Python files if the note fits and both modules can be loaded; if not,
it runs the command, which compiles. So a change of a Python file, a Triton kernel for instance, needs no new wheel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from . import machine, wheels

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VERSION = ".".join(map(str, wheels.PYTHON))
NOTE = "compiled.json"
HOPPER = "90a-real"
PACKAGE = {"rest_fast": "rest_fast", "kernels": "rest_fast/kernels"}  # folder of the tree -> where it is installed


def python() -> str | None:
    """A Python of the version that the wheels are for: ``GPU_BUILD_PYTHON``, or on PATH, or one of pyenv's."""
    name, named = f"python{VERSION}", os.environ.get("GPU_BUILD_PYTHON")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    asking = ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    for candidate in [named] if named else [name, *map(str, sorted(pyenv.glob(f"{VERSION}.*/bin/{name}")))]:
        if machine.asked([candidate, *asking]) == (0, VERSION):
            return candidate
    return None


def build(folder: Path) -> int:
    """Compile for Python 3.12 and Hopper with what ``wheels.py fetch`` has brought. Exit code."""
    program, nvcc = python(), machine.tool("nvcc")
    if program is None or nvcc is None:
        what = f"Python {VERSION} (name one with GPU_BUILD_PYTHON=...)" if program is None else "nvcc"
        print(f"expected {what}, found none: no wheel of our own, so the GPU machine will compile for a minute or two")
        return 0
    for old in (*folder.glob("rest_fast-*.whl"), folder / NOTE):
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        site, made = Path(scratch, "site"), Path(scratch, "made")
        code = subprocess.run([program, str(HERE / "wheels.py"), "unpack", str(site), str(folder)]).returncode
        variables = {"REST_FAST_CUDA": "ON", "REST_FAST_REQUIRE_EXT": "1", "CUDACXX": nvcc, "PYTHONPATH": str(site)}
        code = code or subprocess.run(making(program, made), env=os.environ | variables).returncode
        if code:
            return code
        (wheel,) = made.glob("rest_fast-*.whl")
        compiled_only(wheel, folder / wheel.name)
    (folder / NOTE).write_text(json.dumps(note(HOPPER)))
    print(f"{wheel.name}, {(folder / wheel.name).stat().st_size / 1e6:.1f} MB, for {HOPPER}")
    return 0


def making(program: str, made: Path) -> list[str]:
    """The command that leaves a wheel of the whole package in ``made``. What it compiles is kept for the next time."""
    kept = ROOT / "build" / f"cmake-{VERSION}-{HOPPER}"
    command = [program, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    command += [f"-Cbuild-dir={kept}", f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={HOPPER}"]
    return [*command, "--wheel-dir", str(made), str(ROOT)]


def note(architecture: str) -> dict[str, str]:
    """What a wheel must be for, to be used."""
    digest = machine.digest(ROOT, machine.COMPILED)
    return {"sources": digest, "python": VERSION, "architecture": architecture}


def compiled_only(wheel: Path, target: Path) -> None:
    """A copy with the modules, what they say of themselves, and the package's metadata, without its record."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            path = Path(info.filename)
            metadata = path.parent.suffix == ".dist-info" and path.name != "RECORD"
            if path.suffix == ".so" or path.name == "_build_info.py" or metadata:
                new.writestr(info.filename, old.read(info))


def misfit(folder: Path, architecture: str) -> str:
    """Why the wheel in this folder cannot be used here, or an empty string."""
    try:
        found = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        return "there is none"
    if sys.version_info[:2] != wheels.PYTHON:
        return f"it is for Python {found['python']}, this is {sys.version_info[0]}.{sys.version_info[1]}"
    wanted = note(architecture)
    return next((f"{k}: expected {v}, got {found.get(k)}" for k, v in wanted.items() if found.get(k) != v), "")


def lay(site: Path, architecture: str, folder: Path) -> str:
    """Put the wheel and this tree's Python files into ``site``. Why that cannot be done, or an empty string."""
    why = misfit(folder, architecture)
    if why:
        return why
    package = site / "rest_fast"
    shutil.rmtree(package, ignore_errors=True)
    for source, target in PACKAGE.items():
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / source, site / target, ignore=ignored, dirs_exist_ok=True)
    (wheel,) = folder.glob("rest_fast-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return "; ".join(filter(None, map(unloadable, sorted(package.glob("*.so")))))


def unloadable(path: Path) -> str:
    """Why a compiled module cannot be loaded, or an empty string. A process of its own tries: it might crash."""
    name = f"rest_fast.{path.name.partition('.')[0]}"
    text = "import importlib.util as u, sys; s = u.spec_from_file_location(*sys.argv[1:]); u.module_from_spec(s)"
    code, said = machine.asked([sys.executable, "-S", "-c", text, name, str(path)])
    return f"{path.name}: {said.splitlines()[-1] if said else f'exit code {code}'}" if code else ""


def main(words: list[str]) -> int:
    if words[:1] == ["build"] and len(words) <= 2:
        return build(Path(words[1]) if words[1:] else wheels.FOLDER)
    if words[:1] == ["lay"] and words[4:5] == ["--"]:
        why = lay(Path(words[1]), words[2], Path(words[3]))
        said = f"compiled here, as the wheel made beforehand cannot be used: {why}" if why else "made beforehand"
        print(said, flush=True)
        return subprocess.run(words[5:]).returncode if why else 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
