"""Where the suite runs: folders, processes that see what was built, digests; and the steps that build it."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import compiled, judges, machine, wheels
from .report import PASSED, Outcome
from .steps import Ended, Step, by_exit_code

HERE = Path(__file__).parent
CHILD = "benchmarks/gpu_suite/child.py"
NO_GPU = "no CUDA device"


@dataclass(frozen=True)
class Place:
    """Where a part runs, and on what."""

    root: Path  # the repository
    work: Path  # for what is built and kept between calls
    out: Path  # for results
    found: Mapping[str, Any]  # machine.record()
    ungated: bool = False
    rehearse: bool = False  # the short part at tiny sizes, on the CPU

    @property
    def site(self) -> Path:
        return self.work / "site"

    @property
    def gpu(self) -> bool:
        return "gpu" in self.found

    @property
    def path(self) -> str:
        """PYTHONPATH of a process that imports what was built, and ``gpu_suite`` by its name."""
        return os.pathsep.join((str(self.site), str(HERE.parent)))

    @property
    def cores(self) -> int:
        return os.cpu_count() or 1

    @property
    def absent(self) -> str:
        """Why what asks for a GPU cannot run, or an empty string."""
        return "" if self.gpu or self.rehearse else NO_GPU

    def digest(self, *names: str, here: bool = False) -> str:
        """Of this machine, how steps run on it, and these files; ``here``: of this work folder, too."""
        words = [*machine.identity(self.found), "tiny" if self.rehearse else "real"]
        return machine.digest(self.root, (CHILD, *names), *words, *([self.token] if here else []))

    @property
    def token(self) -> str:
        """A name for this work folder: what was made in another one is not here."""
        path = self.result("token")
        if not path.exists():
            path.write_text(uuid.uuid4().hex)
        return path.read_text()

    @property
    def workers(self) -> int:
        """Steps at a time, for those that may run beside each other."""
        return max(1, min(4, self.cores // 2))

    def python(self, *words: str | Path) -> tuple[str, ...]:
        """A module or a script in a process that sees the package just built."""
        return (sys.executable, str(HERE / "child.py"), str(self.site), *map(str, words))

    def pytest(self, *words: str | Path) -> tuple[str, ...]:
        return self.python("pytest", "-q", "-p", "no:cacheprovider", *words)

    def result(self, name: str) -> Path:
        """A file for what a step leaves."""
        self.work.mkdir(parents=True, exist_ok=True)
        return self.work / name.replace("/", "-")


def environment(place: Place) -> dict[str, str]:
    """The variables of every step: those of this process without what would change a result."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and not k.startswith("REST_FAST_")}
    return kept | {
        "PYTHONPATH": str(place.site),
        "PYTHONUNBUFFERED": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TRITON_CACHE_DIR": str(place.work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(place.work / "inductor"),
        **({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} if place.rehearse else {}),
    }


def architecture(found: Mapping[str, Any]) -> str:
    """What CMake builds for: the GPU that is there; Hopper where there is none."""
    major, minor = found["gpu"]["capability"] if "gpu" in found else (9, 0)
    return f"{major}{minor}{'a' if major >= 9 else ''}-real"


def built(place: Place) -> list[Step]:
    """The wheels, the package with its extension modules, and a look at what was loaded."""
    nvcc = machine.tool("nvcc")
    variables = {"REST_FAST_CUDA": "ON" if nvcc else "OFF", "REST_FAST_REQUIRE_EXT": "1", "PYTHONPATH": place.path}
    kept = f"cmake-{sys.implementation.cache_tag}-{architecture(place.found)}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    pip += ["--no-cache-dir", "--upgrade", "--target", str(place.site), f"-Cbuild-dir={place.work / kept}"]
    pip += [f"-Ccmake.define.CMAKE_CUDA_ARCHITECTURES={architecture(place.found)}", str(place.root)]
    fits = not compiled.misfit(wheels.FOLDER, architecture(place.found))
    lay = [sys.executable, "-m", "gpu_suite.compiled", "lay", str(place.site), architecture(place.found)]
    modules = ["rest_fast._cpu", *(["rest_fast._cuda"] if nvcc or fits else [])]
    fetched = (sys.executable, str(HERE / "wheels.py"), "install", str(place.site))
    package = place.digest(*machine.PACKAGE, "benchmarks/gpu_suite/compiled.py", here=True)
    return [
        Step(
            "wheels",
            fetched,
            limit=90,
            expected=10,
            product=place.site,
            judge=said,
            digest=place.digest("benchmarks/gpu_suite/wheels.py", "benchmarks/gpu_suite/wheels.txt", here=True),
        ),
        Step(
            "build",
            (*lay, str(wheels.FOLDER), "--", *pip),
            limit=300,
            expected=5 if fits else 90,
            needs=("wheels",),
            product=place.site / "rest_fast",
            environment=variables | ({"CUDACXX": nvcc} if nvcc else {}),
            judge=said,
            digest=package,
        ),
        Step(
            "loaded",
            place.python(HERE / "loaded.py", *modules),
            needs=("build",),
            limit=120,
            expected=15,
            judge=judges.printed,
            digest=package,
        ),
    ]


def said(ended: Ended) -> Outcome:
    """By exit code, with the last line that was printed for the record."""
    lines = ended.output.strip().splitlines()
    return Outcome(PASSED, lines[-1] if lines else "") if ended.code == 0 else by_exit_code(ended)
