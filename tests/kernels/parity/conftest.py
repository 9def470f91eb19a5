"""Collected only where Triton kernels run: under ``TRITON_INTERPRET=1`` (test_interpreter.py) or on a GPU."""

from tests.kernels import kit

if not (kit.ON_GPU or kit.triton_kernels.interpreted()):
    collect_ignore_glob = ["*.py"]
