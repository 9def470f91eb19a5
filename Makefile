# make demo      install, then one portrait and one voice -> talking.mp4
# make test      install, then the tests that belong to every change
# make test-full the slow ones too
# make lint      ruff, mypy;  make format  ruff, clang-format
# make bench     the latency suites
# make gpu-suite PART=ops OUT=build/gpu   on a machine with a GPU, no network needed (docs/gpu_suite.md);
# make gpu-wheels before, where there is one, fetches what that machine lacks
#
# One virtual environment: the active one, else .venv. The install is editable and is repeated only
# when something that the build reads has changed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := test

VENV := $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
    "$$p" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null \
    && echo "$$p" && break; done)
STAMP := $(VENV)/.rest_fast-installed
BUILD_INPUTS := pyproject.toml CMakeLists.txt constraints-cpu.txt Makefile \
    $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu)

# Without an NVIDIA GPU: the pinned PyTorch, whose CPU build must be the one that pip finds (README).
# With one: the CUDA PyTorch that is there.
PIP_FLAGS := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)
EXTRAS := test,dev
# CUDA builds of PyTorch bring the Triton that fits them; beside a CPU build this one interprets the kernels and
# compiles them for GPUs that are not there.
TRITON := triton==3.6.0

.PHONY: install demo test test-full lint format bench clean

install: $(STAMP)

$(BIN)/python:
	$(if $(PYTHON),,$(error no Python 3.10 to 3.13 on PATH; name one with make PYTHON=...))
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BUILD_INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -e ".[$(EXTRAS)]"
	@$(BIN)/python -c 'import importlib.util as u, platform as p, sys; \
	    sys.exit(u.find_spec("triton") is None and p.system() + p.machine() == "Linuxx86_64")' \
	    || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) $(TRITON)
	@# An editable install puts the repository on sys.path, and with it a top-level `kernels`, the name
	@# of another project's package. The import hook alone finds everything: keep that, drop the paths.
	@$(BIN)/python -c 'import pathlib, sysconfig as s; \
	    [p.write_text("".join(x for x in p.read_text().splitlines(True) if x.startswith("import"))) \
	    for p in pathlib.Path(s.get_path("purelib")).glob("*rest_fast*.pth")]'
	@touch $@

demo: $(STAMP)
	$(BIN)/rest-fast demo -o talking.mp4

test: $(STAMP)
	$(BIN)/pytest -q -m "not slow"

test-full: $(STAMP)
	$(BIN)/pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	@command -v clang-format >/dev/null \
	    && clang-format -i csrc/*.h csrc/*.cpp csrc/*/*.cpp csrc/*/*.cu tests/kit/*.h \
	    || echo "clang-format is not installed: C++ left as it is"

bench: $(STAMP)
	$(BIN)/pytest benchmarks -q --benchmark-only

.PHONY: gpu-suite gpu-wheels
PART ?= all
OUT ?= build/gpu
# No install before these: the one runs where nothing can be fetched, the other needs nothing.
GPU_PYTHON ?= $(or $(wildcard $(BIN)/python),python3)

gpu-suite:
	$(GPU_PYTHON) benchmarks/gpu_suite --part $(PART) --out $(OUT)

gpu-wheels:
	$(GPU_PYTHON) benchmarks/gpu_suite/wheels.py fetch

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis talking.mp4
	rm -f $(STAMP)
