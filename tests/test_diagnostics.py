"""The report of ``rest-fast doctor``: complete, readable, and a problem comes with its cure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import rest_fast
from rest_fast import diagnostics, ops
from rest_fast.ops import native, oldest_torch, triton_host, triton_kernels
from rest_fast.ops.dispatch import Spec


def test_report_is_complete():
    text = diagnostics.describe()
    first = text.splitlines()[0]
    assert rest_fast.__version__ in first and torch.__version__ in first
    for word in [op.name for op in ops.ALL] + ["_cpu", "_cuda", *diagnostics.EXTRAS]:
        assert re.search(rf"^  {word} ", text, re.M), word
    for heading in ("devices", "compiled modules", "extras", "paths", "ops"):
        assert re.search(rf"^{heading}", text, re.M), heading


def test_show_config_prints_it(capsys):
    rest_fast.show_config()
    assert capsys.readouterr().out.splitlines()[0] == diagnostics.describe().splitlines()[0]


def test_every_extra_of_the_package_is_explained():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.M)) - {"test", "dev", "docs"}
    assert extras and extras <= set(diagnostics.EXTRAS)


def test_a_missing_extra_comes_with_its_install_line(monkeypatch):
    monkeypatch.setattr(diagnostics, "_is_there", lambda name: name != "transformers")
    assert re.search(r"whisper +missing .*\[pip install 'rest_fast\[whisper\]'\]", diagnostics.describe())


def test_a_pytorch_that_is_too_old_is_refused_in_one_line():
    """From the version that pyproject.toml names."""
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"torch>={".".join(map(str, oldest_torch.OLDEST))}",' in project
    for version in ("2.6.0", "2.6.0a0+git1", "2.15.0+cu130", "3.0", torch.__version__, "unknown"):
        oldest_torch.check(version)
    for version in ("2.5.1", "1.13.1+cpu"):
        expected = rf"PyTorch: expected 2.6 or newer \(pip install 'torch>=2.6'\), got {re.escape(version)}$"
        with pytest.raises(rest_fast.InstallError, match=expected):
            oldest_torch.check(version)


@pytest.fixture
def healthy():
    """A report of a machine on which nothing is wrong."""
    modules = {"_cpu": "available", "_cuda": "available"}
    build = {"version": "1"}
    return {"version": "1", "modules": modules, "build": build, "gpus": [], "triton": "", "forced_backend": None}


def problems(monkeypatch, report, *, there: bool = True, driver: Path = Path("/none")) -> str:
    monkeypatch.setattr(diagnostics, "_is_there", lambda name: there)
    monkeypatch.setattr(diagnostics, "DRIVER", driver)
    return "\n".join(f"{what} -> {cure}" for what, cure in diagnostics.problems(report))


def test_nothing_wrong(monkeypatch, healthy):
    assert problems(monkeypatch, healthy) == ""


@pytest.mark.parametrize(("change", "what", "cure"), [
    ({"modules": {"_cpu": "not available: undefined symbol"}}, "undefined symbol", "pip install"),
    ({"build": {"version": "0"}}, "compiled modules are of version 0", "pip install"),
    ({"forced_backend": "cpp"}, "REST_FAST_BACKEND=cpp: there is no such backend of causal_conv3d", "unset"),
])  # fmt: skip
def test_a_problem_has_a_cure(monkeypatch, healthy, change, what, cure):
    text = problems(monkeypatch, healthy | change)
    assert text.count("\n") == 0 and what in text.partition(" -> ")[0] and cure in text.partition(" -> ")[2]


def test_no_compiled_module(monkeypatch, healthy):
    report = healthy | {"modules": {"_cpu": "not available"}, "build": {"compiled": False}}
    assert "C++ compiler" in problems(monkeypatch, report, there=False)


@pytest.mark.parametrize(("cuda", "cure"), [(None, "CUDA build of PyTorch"), ("13.0", "driver for CUDA 13.0")])
def test_a_gpu_that_pytorch_does_not_see(monkeypatch, healthy, tmp_path, cuda, cure):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert cure in problems(monkeypatch, healthy, driver=tmp_path)
    assert problems(monkeypatch, healthy | {"gpus": ["H200"]}, driver=tmp_path) == ""


def test_a_gpu_whose_triton_cannot_build(monkeypatch, healthy):
    lacking = healthy | {"triton": "Triton needs Python.h for its launcher, found none in /usr"}
    assert problems(monkeypatch, lacking) == "", "without a GPU nobody needs it"
    text = problems(monkeypatch, lacking | {"gpus": ["H200"]})
    assert "found none in /usr" in text.partition(" -> ")[0] and "apt install" in text.partition(" -> ")[2]


@pytest.fixture
def without_a_compiler(monkeypatch):
    """A machine with a GPU as it seems to the tables, on which Triton cannot build its launcher."""
    monkeypatch.setattr(triton_kernels.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(triton_kernels, "interpreted", lambda: False)
    monkeypatch.setattr(triton_host, "unable", lambda: "Triton needs a C compiler for its launcher; found none")


def test_the_path_without_a_compiler(without_a_compiler):
    """The next backends run, and what cannot be captured without Triton is named with its reason."""
    path = diagnostics.path("cuda")
    assert path["dtype"] == "bfloat16" and "triton" not in path["backends"]
    assert sorted(name for taken in path["backends"].values() for name in taken) == sorted(op.name for op in ops.ALL)
    assert set(path["uncaptured"]) == {"qk_norm_rope_cache", "rotate_context"}
    text = path["uncaptured"]["rotate_context"]
    assert "'triton' cannot run" in text and "C compiler" in text and "picks the lanes that are not idle" in text


def test_the_path_in_cuda_by_name(without_a_compiler, monkeypatch):
    """Where the wheel's module is there nothing is left to the reference but what PyTorch convolves and
    multiplies, and a graph can hold all of it."""

    def supports(spec, dtypes, device="cpu"):
        return spec.device == device and spec.dtype in dtypes, "not in this dtype"

    monkeypatch.setattr(native, "supports", supports)
    path = diagnostics.path("cuda", "cuda,library,reference")
    assert set(path["backends"]) == {"cuda", "library", "reference"} and path["uncaptured"] == {}
    assert (path["backends"]["library"], path["backends"]["reference"]) == (["causal_conv3d"], ["linear", "conv3x3"])


def test_the_path_of_this_machine_is_what_runs():
    path = diagnostics.path("cpu")
    for backend, taken in path["backends"].items():
        for name in taken:
            spec = Spec("cpu", torch.float32, (("lengths", "on the device"),))
            assert next(op for op in ops.ALL if op.name == name).choose(spec, None).name == backend
    assert re.search(r"^  cpu +float32: \w+ for \d+ ops", diagnostics.describe(), re.M)


def test_no_video_encoder(monkeypatch, healthy):
    def codec(name, mode):
        raise ValueError(name)

    monkeypatch.setattr("av.Codec", codec)
    assert "libx264" in problems(monkeypatch, healthy)


def test_a_demo_that_is_not_whole(monkeypatch, healthy):
    monkeypatch.setattr(diagnostics, "DEMO", ("config.json", "portrait_9.png"))
    assert "the demo lacks portrait_9.png" in problems(monkeypatch, healthy)


def test_problems_are_shown(monkeypatch):
    monkeypatch.setattr(diagnostics, "problems", lambda report: iter([("it rains", "an umbrella")]))
    assert diagnostics.describe().endswith("\nproblems\n  it rains\n    fix: an umbrella")
    monkeypatch.setattr(diagnostics, "problems", lambda report: iter([]))
    assert diagnostics.describe().endswith("\nno problems found")
