"""What `pip install` yields on four kinds of machine, and the sizes that files may have."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

NO_NVCC = {"CUDACXX": "/nonexistent/nvcc"}
NO_COMPILER = {**NO_NVCC, "CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}
# What a wheel holds does not depend on how far it is optimised, which takes three times as long.
QUICK = ["-Ccmake.build-type=Debug", "-Ccmake.define.CMAKE_CXX_FLAGS_DEBUG=-O0"]
# name -> (environment on top of the current one, arguments for pip)
BUILDS: dict[str, tuple[dict[str, str], list[str]]] = {
    # One architecture: nor on how many there are.
    "nvcc": ({"REST_FAST_CUDA": "ON"}, [*QUICK, "-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=90a-real"]),
    "no_nvcc": (NO_NVCC, QUICK),
    "no_compiler": (NO_COMPILER, []),
    "no_compiler_required": ({**NO_COMPILER, "REST_FAST_REQUIRE_EXT": "1"}, []),
}
# minutes; `make install` compiles the same, and that module is tried in tests/kernels
NVCC = pytest.param("nvcc", marks=pytest.mark.slow)
WITH_CPU_MODULE = [NVCC, "no_nvcc"]
WHEELS = [*WITH_CPU_MODULE, "no_compiler"]

# builds that this machine has no tools for
MISSING = {}
if shutil.which("nvcc") is None:
    MISSING["nvcc"] = "no nvcc on this machine"
if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
    MISSING |= {"nvcc": "no C++ compiler on this machine", "no_nvcc": "no C++ compiler on this machine"}


@dataclass
class Built:
    returncode: int
    log: str
    wheel: Path | None = None
    unpacked: Path | None = None

    def names(self) -> list[str]:
        assert self.wheel is not None, self.log
        return zipfile.ZipFile(self.wheel).namelist()

    def modules(self) -> list[Path]:
        assert self.unpacked is not None, self.log
        return sorted((self.unpacked / "rest_fast").glob("_c*.so"))


def build(where: Path, env: dict[str, str], args: list[str]) -> Built:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("REST_FAST_")}
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-cache-dir", "--wheel-dir", str(where), *args, str(ROOT)]
    done = subprocess.run(
        command, env=inherited | env, cwd=where, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    built = Built(done.returncode, done.stdout)
    if done.returncode == 0:
        (built.wheel,) = where.glob("*.whl")
        built.unpacked = where / "unpacked"
        zipfile.ZipFile(built.wheel).extractall(built.unpacked)
    return built


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """A function that gives the build of a name, which is made when a test first asks for it."""
    for name in ("scikit_build_core", "pybind11"):
        pytest.importorskip(name, reason="wheels are built without isolation")
    return functools.cache(lambda name: build(tmp_path_factory.mktemp(name), *BUILDS[name]))


def result(builds, name: str) -> Built:
    if name in MISSING:
        pytest.skip(MISSING[name])
    built = builds(name)
    assert built.returncode == 0, built.log
    return built


@pytest.mark.packaging
@pytest.mark.parametrize("name", WHEELS)
def test_wheel_holds_the_package_and_nothing_else(builds, name):
    names = result(builds, name).names()
    top = {n.split("/")[0] for n in names}
    assert {n for n in top if not n.endswith(".dist-info")} == {"rest_fast"}, top
    assert "rest_fast/kernels/__init__.py" in names
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)
    folders = ("rest_fast/assets", "rest_fast/serving/page")
    in_tree = {p.relative_to(ROOT).as_posix() for name in folders for p in (ROOT / name).rglob("*") if p.is_file()}
    assert in_tree <= set(names), in_tree - set(names)


@pytest.mark.packaging
def test_wheel_tags_and_modules(builds):
    pure = result(builds, "no_compiler")
    assert pure.wheel is not None and pure.wheel.name.endswith("py3-none-any.whl")
    assert pure.modules() == []
    native = result(builds, "no_nvcc")
    assert [m.name.split(".")[0] for m in native.modules()] == ["_cpu"]
    assert "rest_fast/_build_info.py" in native.names()


@pytest.mark.slow
@pytest.mark.packaging
def test_nvcc_adds_the_cuda_module(builds):
    built = result(builds, "nvcc")
    assert [m.name.split(".")[0] for m in built.modules()] == ["_cpu", "_cuda"]


@pytest.mark.packaging
def test_required_extension_refuses_the_rescue(builds):
    built = builds("no_compiler_required")
    assert built.returncode != 0
    assert "REST_FAST_REQUIRE_EXT is set" in built.log, built.log


@pytest.mark.packaging
@pytest.mark.skipif(shutil.which("ldd") is None, reason="needs ldd")
@pytest.mark.parametrize("name", WITH_CPU_MODULE)
def test_modules_link_neither_torch_nor_cuda(builds, name):
    for module in result(builds, name).modules():
        linked = subprocess.run(["ldd", module], capture_output=True, text=True, check=True).stdout
        for library in ("libtorch", "libc10", "libcuda", "libpython"):
            assert library not in linked, f"{module.name}:\n{linked}"


# Run in a clean folder on the unpacked wheel. An editable install of this very checkout would win
# over PYTHONPATH by its import hook, so that goes first.
SHOW_CONFIG = """
import importlib, sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
import rest_fast
print("location:", rest_fast.__file__)
try:
    importlib.import_module("rest_fast._cpu")
except ImportError:
    print("compiled module: absent")
else:
    print("compiled module: present")
print("show_config:")
rest_fast.show_config()
"""


@pytest.mark.packaging
@pytest.mark.parametrize("name", WHEELS)
def test_installed_wheel_imports_and_shows_its_configuration(builds, name, tmp_path):
    built = result(builds, name)
    done = subprocess.run(
        [sys.executable, "-c", SHOW_CONFIG],
        env=os.environ | {"PYTHONPATH": str(built.unpacked)},
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    head, _, shown = done.stdout.partition("show_config:")
    assert f"location: {built.unpacked}" in head
    assert ("compiled module: present" in head) == (name != "no_compiler")
    assert "_cpu" in shown, "show_config() does not say whether rest_fast._cpu is there"
