"""What the compiled modules say of themselves: the arguments of each op, the same for CPU and CUDA."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rest_fast.ops import native

CPU, CUDA = (native.module(name)[0] for name in ("_cpu", "_cuda"))
SOURCES = Path(__file__).parents[2] / "csrc"
HEADERS = SOURCES / "ops"
FIELD = re.compile(r'REST_FAST_(?:FIELD\(|SETS\(\s*")(\w+)')


@pytest.mark.skipif(CPU is None, reason="no compiled module")
def test_every_header_is_bound_and_names_each_argument_once():
    ops = {path.stem: path.read_text() for path in HEADERS.glob("*.h")}
    heads = "".join(path.read_text() for path in (SOURCES / "heads").glob("*.h"))  # draws training data, no op
    drawing = {name: heads for name in re.findall(r"\bint (heads_\w+)\(", heads)}
    assert sorted(CPU.arguments) == sorted(ops | drawing) and len(drawing) == 7
    for op, names in CPU.arguments.items():
        assert len(set(names)) == len(names) > 2, op
        if op in ops:
            assert list(names) == FIELD.findall(ops[op])
        else:
            assert set(names) <= set(FIELD.findall(heads))
        with pytest.raises(TypeError, match=rf"{op}\(\): incompatible function arguments"):
            getattr(CPU, op)(*[0] * (len(names) + 1))


@pytest.mark.skipif(CPU is None or CUDA is None, reason="no CUDA module is compiled")
def test_cuda_takes_what_the_cpu_takes_and_a_stream_and_a_device():
    for op, names in CUDA.arguments.items():
        assert names == CPU.arguments[op]
        signature = re.search(r"\((.*)\) -> int", getattr(CUDA, op).__doc__)[1]
        assert signature.count("arg") == len(names) + 2
