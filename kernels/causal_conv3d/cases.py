"""Every layer shape of the LTX-Video decoders 0.9.1 and 0.9.5 at 512 x 512, with what their stores hold there.

One latent of one stream. More of either are a larger grid and the same code: sizes that depend on them are no constants
of the kernels (``tests/kernels/test_causal_conv3d_plan.py``).
"""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Any

import torch

from rest_fast.kernels.causal_conv3d import KERNELS, arguments, memory
from rest_fast.kernels.causal_conv3d.kernel import remember_kernel
from rest_fast.kernels.causal_conv3d.plan import of_capability, plan
from rest_fast.kernels.offline import CAPABILITIES, TYPES, Case, as_launched
from rest_fast.ops.memory_layouts import haloed

STAGES = ((1024, 1, 16), (512, 2, 32), (256, 4, 64), (128, 8, 128))  # channels, frames of a latent, height and width
EPS = 1e-8


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of the decoder: what goes in, what comes out, and what its store adds."""

    channels: int
    to: int
    frames: int
    size: int
    factors: tuple[int, int, int] = (1, 1, 1)
    noise: bool = False
    residual: bool = False
    modulated: bool = True
    results: tuple[str, ...] = ("out", "normed")
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        added = [n for n in ("noise", "residual") if getattr(self, n)]
        results = [n + (" modulated" if n == "normed" and self.modulated else "") for n in self.results]
        factors = "" if prod(self.factors) == 1 else " by " + " ".join(map(str, self.factors))
        shape = f"{self.channels} to {self.to}{factors} at {self.size} x {self.size}"
        return f"{shape}, {', '.join([*added, 'to ' + ' and '.join(results), TYPES[self.dtype][1:]])}"


def call(layer: Layer, latents: int = 1, streams: int = 1) -> tuple:
    """Buffer, history, weight and operands of a layer, on the ``meta`` device."""
    kind: dict[str, Any] = {"dtype": layer.dtype, "device": "meta"}
    frames, size, cell = layer.frames * latents, layer.size, prod(layer.factors)
    buffer = haloed((streams, layer.channels, frames + 2, size, size), **kind)
    history = haloed((streams, layer.channels, 2, size, size), **kind)
    weight = torch.empty(layer.to, layer.channels, 3, 3, 3, **kind).to(memory_format=torch.channels_last_3d)
    shape = (streams, layer.to // cell, *(n * f for n, f in zip((frames, size, size), layer.factors, strict=True)))
    vector, bias = torch.empty(shape[1], **kind), torch.empty(layer.to, **kind)
    operands = dict.fromkeys(("noise", "noise_scale", "residual", "scale", "shift", "out", "normed", "pictures"))
    operands |= {"bias": bias}
    if layer.noise:
        operands |= {"noise": torch.empty(streams, size, size, **kind), "noise_scale": bias}
    if layer.modulated and "normed" in layer.results:
        operands |= {"scale": vector, "shift": vector}
    if "out" in layer.results:
        operands["out"] = torch.empty(shape, **kind, memory_format=torch.channels_last_3d)
    if "normed" in layer.results:
        operands["normed"] = haloed(shape, **kind)
    if "pictures" in layer.results:
        operands["pictures"] = torch.empty(streams, *shape[2:], 3, dtype=torch.uint8, device="meta")
    if layer.residual:  # of the upsampler: its own input; of a block: what it adds to
        stream = torch.empty(streams, layer.to, frames, size, size, **kind, memory_format=torch.channels_last_3d)
        operands["residual"] = buffer[:, :, 2:] if cell > 1 else stream
    return buffer, history, weight, operands


def launches(layer: Layer, capability: int, latents: int = 1, streams: int = 1) -> list[Case]:
    """What :func:`rest_fast.kernels.causal_conv3d.launch` makes of it on such a GPU: one kernel, or two."""
    buffer, history, weight, operands = call(layer, latents, streams)
    cell, gpu = prod(layer.factors), of_capability(divmod(capability, 10))
    sizes = {"channels": layer.channels, "outputs": layer.to // cell, "area": layer.size * (layer.size + 2)}
    chosen = plan(**sizes, cell=cell, dtype=layer.dtype, gpu=gpu)
    calls, _ = arguments(chosen, buffer, history, weight, operands, list(layer.factors), 0, False, EPS)
    made = []
    for kernel, arguments_, part in zip(KERNELS, calls, ("", ", the sum of the splits"), strict=False):
        first, cores = not part, layer.dtype != torch.float32
        properties = {"tensor_cores": first and cores, "tma": first and gpu.descriptors}
        made.append(as_launched(layer.name + part, kernel, arguments_, **properties))
    return made


def cases(layer: Layer) -> list[Case]:
    of = {capability: launches(layer, capability) for capability in CAPABILITIES}
    assert len({len(made) for made in of.values()}) == 1, f"{layer.name}: expected as many launches on every GPU"
    made = []
    for i, case in enumerate(of[90]):
        elsewhere = {capability: others[i] for capability, others in of.items() if others[i] != case}
        made.append(dataclasses.replace(case, elsewhere=elsewhere))
    return made


def stage(channels: int, frames: int, size: int) -> list[Layer]:
    """Both convolutions of a block, with noise (0.9.1) and without (0.9.5), and the last one before an upsampler."""
    layer = Layer(channels, channels, frames, size)
    kinds = [
        dataclasses.replace(layer, residual=second, noise=noise, results=("out", "normed") if second else ("normed",))
        for second in (False, True)
        for noise in (True, False)
    ]
    if channels == STAGES[-1][0]:  # no upsampler there: the last norm
        return [*kinds, dataclasses.replace(layer, residual=True, results=("normed",))]
    return [*kinds, dataclasses.replace(layer, residual=True, results=("out",))]


UP = [Layer(c, 4 * c, t, size, (2, 2, 2), residual=True) for c, t, size in STAGES[:-1]]
CONV_IN = Layer(128, 1024, 1, 16)
CONV_OUT = Layer(128, 48, 8, 128, (1, 4, 4), modulated=False, results=("pictures",))
LAYERS = [
    *stage(*STAGES[3]),
    *stage(*STAGES[2]),
    *stage(*STAGES[1]),
    *stage(*STAGES[0]),
    *UP,
    CONV_IN,
    CONV_OUT,
    dataclasses.replace(CONV_OUT, results=("out",)),
]
OTHERS = [  # fp16 is the same code; fp32 is for checking
    dataclasses.replace(stage(*STAGES[3])[1], dtype=torch.float16),
    dataclasses.replace(stage(*STAGES[3])[1], dtype=torch.float32),
    dataclasses.replace(UP[2], dtype=torch.float32),
]


def moved(layer: Layer, past: int = 2) -> Case:
    buffer, history, _, _ = call(layer)
    arguments_, _ = memory(buffer, history[:, :, :past], layer.frames, False)
    name = f"{layer.channels} at {layer.size} x {layer.size}, the history's move, {past} kept"
    return as_launched(name, remember_kernel, arguments_)


def distinct(cases: list[Case]) -> list[Case]:
    """Without those that are another one under a second name: the products of a split know no store."""
    kept: list[Case] = []
    for case in cases:
        if not any(anonymous(case) == anonymous(other) for other in kept):
            kept.append(case)
    return kept


def anonymous(case: Case) -> Case:
    return dataclasses.replace(case, name="", elsewhere={c: anonymous(x) for c, x in case.elsewhere.items()})


CASES = distinct([case for layer in [*LAYERS, *OTHERS] for case in cases(layer)])
CASES += [moved(Layer(c, c, t, size)) for c, t, size in STAGES] + [moved(Layer(128, 128, 8, 128), past=1)]
