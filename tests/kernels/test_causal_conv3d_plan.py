"""What ``causal_conv3d`` is compiled for: known from the layer alone, never from the frames or streams of a call."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rest_fast.ops.dispatch import Spec
from tests.kernels.fitness import PAGE_MADE_BY, UNFIT

pytestmark = pytest.mark.skipif(bool(UNFIT), reason=UNFIT or "Triton compiles here")

if not UNFIT:
    import triton

    from rest_fast.kernels import causal_conv3d as subject
    from rest_fast.kernels import offline
    from rest_fast.kernels.causal_conv3d import arguments, cases, kernel
    from rest_fast.kernels.causal_conv3d.plan import Gpu, of_capability, plan

    LAYERS = [*cases.LAYERS, *cases.OTHERS]
else:
    LAYERS = []


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_frames_and_streams_change_no_code(layer):
    """The same types, hints and constants: the same code, so every sum is taken in the same order."""
    one = [cases.launches(layer, capability) for capability in offline.CAPABILITIES]
    for latents, streams in ((3, 1), (1, 5), (2, 2)):
        more = [cases.launches(layer, capability, latents, streams) for capability in offline.CAPABILITIES]
        assert more == one


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_every_gpu_gets_a_launch_of_its_own_kind(layer):
    for case in cases.cases(layer):
        for capability in offline.CAPABILITIES:
            here = case.elsewhere.get(capability, case)
            wanted = here.kernel is kernel.causal_conv3d_kernel and capability in (90, 100)
            assert here.constants.get("DESCRIPTORS", False) == here.tma == wanted
            assert here.name == case.name


@pytest.mark.parametrize(
    "capability, shared, descriptors",
    [((8, 0), 163, False), ((8, 6), 99, False), ((8, 9), 99, False), ((9, 0), 227, True), ((12, 0), 99, False)],
)
def test_what_a_gpu_has(capability, shared, descriptors):
    assert of_capability(capability) == Gpu(shared, descriptors)


@pytest.mark.parametrize("channels", [16, 48, 64, 80, 1024])
def test_a_step_divides_the_channels(channels):
    chosen = plan(channels=channels, outputs=64, cell=1, area=4224, dtype=torch.bfloat16, gpu=of_capability((9, 0)))
    assert channels % chosen.tile.depth == 0 and chosen.tile.depth >= 16


def test_few_programs_are_split_and_only_long_sums():
    sizes = {"cell": 1, "dtype": torch.bfloat16, "gpu": of_capability((9, 0))}
    assert plan(channels=1024, outputs=1024, area=288, **sizes).splits == 3  # 40 programs a frame
    assert plan(channels=128, outputs=1024, area=288, **sizes).splits == 1  # a short sum
    assert plan(channels=1024, outputs=1024, area=1088, **sizes).splits == 1  # more programs
    assert plan(channels=1024, outputs=512, area=288, **sizes | {"cell": 8}).splits == 1


def test_a_launch_is_typed_as_triton_types_it():
    """Descriptors and numbers that are not specialised, against Triton's own binding of the call."""
    if triton.__version__ != PAGE_MADE_BY:
        pytest.skip(f"looks inside Triton {PAGE_MADE_BY}, here is {triton.__version__}")
    from triton.runtime.jit import create_function_from_signature

    compiler = triton.compiler.make_backend(triton.backends.compiler.GPUTarget("cuda", 90, 32))
    function = kernel.causal_conv3d_kernel
    bind = create_function_from_signature(function.signature, function.params, compiler)
    layer = dataclasses.replace(cases.UP[2], channels=32, to=128, size=4, frames=1)
    buffer, history, weight, operands = (
        {n: None if x is None else torch.empty_like(x, device="cpu") for n, x in part.items()}
        if isinstance(part, dict)
        else torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="cpu")
        for part in cases.call(layer)
    )
    buffer, history = (torch.zeros(1, n, 6, 6, 32).bfloat16().permute(0, 4, 1, 2, 3)[..., 1:-1, 1:-1] for n in (3, 2))
    sizes = {"channels": 32, "outputs": 16, "cell": 8, "area": 24, "dtype": torch.bfloat16}
    chosen = plan(**sizes, gpu=of_capability((9, 0)))
    (call,), _ = arguments(chosen, buffer, history, weight, operands, [2, 2, 2], 0, False, 1e-8)
    case = offline.as_launched("", function, call)
    _, bound, _ = bind(**call)
    for name, (kind, hint) in zip(function.arg_names, bound, strict=True):
        assert case.arguments.get(name, "constexpr") == kind, name
        assert (name in case.aligned) == (hint == "D"), name


def test_layers_that_cudnn_does_faster_are_left_to_it(monkeypatch):
    """By compute capability, in bf16; the table is filled from a measurement, and empty until there is one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    sizes = (("in", 512), ("channels", 512), ("height", 32), ("width", 32))
    here, elsewhere = Spec("cuda", torch.bfloat16, sizes), Spec("cuda", torch.bfloat16, (("in", 256), *sizes[1:]))
    assert subject.slower(here) == ""
    for capability, told in (((9, 0), "cuDNN measured faster for this layer"), ((8, 0), "")):
        monkeypatch.setattr(subject, "CUDNN_FASTER", {capability: frozenset({(512, 512, 32, 32)})})
        assert subject.slower(here) == told and not subject.slower(elsewhere)
        assert not subject.slower(here._replace(dtype=torch.float32))
