"""One op's kernels on tiny inputs, for a run under compute-sanitizer: ``sanitize.py OP``, or ``sanitize.py _cuda``.

Every dtype; then, for the Triton kernels, every index tensor with an entry far out of range, which must not be
followed. Checks nothing but that the kernels ran: the sanitizer watches.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch

from rest_fast import ops

ROOT = Path(__file__).resolve().parents[2]
FAR = (2**30, -(2**30), -1)
# Where a kernel wants more than the smallest call has.
SHAPES = {"sink_ring_attention": {"dim": 64}}
ONE_DTYPE = ("latent_noise",)  # float32 always
BORDERED = "causal_conv3d"  # whose kernel wants 16 channels, and a border of zeros around its pictures


def tests_of_this_tree() -> None:
    """Make ``tests`` importable without the repository on the path, where the sources would be found, too."""
    package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = package


def dtypes(name: str) -> tuple[torch.dtype, ...]:
    from tests.kernels import kit

    return kit.DTYPES[:1] if name in ONE_DTYPE else kit.DTYPES


def triton_calls(name: str) -> Iterator[str]:
    """Run them one by one; yields what has run."""
    from rest_fast.ops.triton_kernels import kernel
    from tests.kernels import kit
    from tests.kit import pictures
    from tests.ops import calls

    for dtype in dtypes(name):
        if name == BORDERED:
            call = {n: pictures.moved(v, kit.DEVICE) for n, v in pictures.convolution_call(dtype=dtype).items()}
        else:
            call = kit.copied(calls.VALID[name](dtype=dtype, **SHAPES.get(name, {})))
        with ops.use_backend("triton"):
            calls.invoke(name, call)
        yield str(dtype)
    indices = [key for key, value in call.items() if isinstance(value, torch.Tensor) and value.dtype == torch.int32]
    for index in indices:
        for far in FAR:
            changed = kit.copied(call)
            changed[index][-1] = far
            args, kwargs = calls.split(name, changed)
            kernel(name).launch(*args, **kwargs)  # past the checks
            yield f"{index} = {far}"


def cuda_calls() -> Iterator[str]:
    """As :func:`triton_calls`, for every op that has a CUDA backend, in the dtypes that it takes."""
    from tests.kernels import kit
    from tests.ops import calls

    for name, op in calls.OPS.items():
        backend = next((b for b in op.backends if b.name == "cuda"), None)
        for dtype in dtypes(name) if backend else ():
            made = kit.copied(calls.VALID[name](dtype=dtype, **SHAPES.get(name, {})), "cuda")
            args, kwargs = calls.split(name, made)
            if not backend.supports(op.check(*args, **kwargs))[0]:
                continue
            backend.run(*args, **kwargs)  # raises for an error code
            yield f"{name} {dtype}"
            for index in [key for key, value in made.items() if getattr(value, "dtype", None) == torch.int32]:
                for far in FAR:
                    changed = kit.copied(made, "cuda")
                    changed[index][-1] = far
                    args, kwargs = calls.split(name, changed)
                    backend.run(*args, **kwargs)
                    yield f"{name} {index} = {far}"


def main(name: str) -> None:
    tests_of_this_tree()
    ran = []
    for what in cuda_calls() if name == "_cuda" else triton_calls(name):
        if torch.cuda.is_available():  # or else Triton's interpreter
            torch.cuda.synchronize()
        ran.append(what)
    print(f"{name}: {len(ran)} calls ran: {', '.join(ran)}")


if __name__ == "__main__":
    main(sys.argv[1])
