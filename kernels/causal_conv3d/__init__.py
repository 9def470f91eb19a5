"""3x3x3 convolution of one piece of a stream as an implicit matrix product, fused with everything that follows it.

    y   = sum over taps and channels of weight x window + bias + noise_scale noise
    out = depth_to_space(y) + tiled residual;  normed = silu(norm(out) (1 + scale) + shift);  pictures = to_uint8(out)

Windows are read directly from the frames, which have a border of zeros (``memory_layouts.haloed``), so nothing is
padded or copied. The frames before the piece are read directly from the history, and a second kernel moves the last
frames there afterwards. Sums are fp32; their order depends neither on the frames of a call nor on its streams. Each
result is rounded once, with one exception: where no program sees all channels of a pixel (``plan.py``), the norm reads
the sum as rounded into ``out``, or into ``normed`` itself.

Limits: a multiple of 16 channels, weights in ``channels_last_3d`` order, zeros at the border. Split layers take scratch
memory from PyTorch's allocator. See docs/kernels/causal_conv3d.md.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from rest_fast.kernels import pixel_norm_silu
from rest_fast.kernels.causal_conv3d.kernel import causal_conv3d_kernel, combine_kernel, remember_kernel
from rest_fast.kernels.causal_conv3d.plan import CUDNN_FASTER, Plan, gpu, plan
from rest_fast.kernels.rows import DTYPES, on
from rest_fast.ops.dispatch import OpError
from rest_fast.ops.memory_layouts import CHANNELS_LAST, HALOED, halo

NAME = "causal_conv3d"
UNIT = 16  # channels: a step of a tensor core, and 16 bytes at least
COMBINED = 4096  # elements of a program of the combining kernel
MOVED = 2048  # elements of a program that moves the history
LIMIT = 2**31


def supports(spec: Any) -> tuple[bool, str]:
    if spec.dtype not in DTYPES:
        return False, f"float32, bfloat16 and float16 only, got {spec.dtype}"
    if spec.get("reflect"):
        return False, "zeros at the border only, got reflect"
    for name, wanted in (("layout", HALOED), ("history_layout", HALOED), ("weight_layout", CHANNELS_LAST)):
        if spec.get(name) not in (None, wanted):
            return False, f"{name} {wanted} only, got {spec.get(name)}"
    channels = spec.get("in")
    if channels is None:
        return True, ""
    if channels % UNIT:
        return False, f"input channels that are a multiple of {UNIT} only, got {channels}"
    height, width, outputs = (spec.get(n) for n in ("height", "width", "channels"))
    sizes = {"a frame": (height + 2) * (width + 2) * channels, "the weight": outputs * 27 * channels}
    windows = spec.get("batch") * spec.get("frames") * height * (width + 2)
    sizes["a launch"] = windows * max(outputs // UNIT, spec.get("cell") or 1)
    for what, size in sizes.items():
        if size >= LIMIT:
            return False, f"{what} of fewer than 2^31 {'pixels' if what == 'a launch' else 'elements'} only, got {size}"
    return True, ""


def slower(spec: Any) -> str:
    """Why cuDNN should run this layer: it was measured to be faster. Empty for all others."""
    if spec.device != "cuda" or spec.dtype != torch.bfloat16 or not CUDNN_FASTER:
        return ""
    layer = tuple(spec.get(name) for name in ("in", "channels", "height", "width"))
    capability = torch.cuda.get_device_capability(spec.device_index)
    return "cuDNN measured faster for this layer" if layer in CUDNN_FASTER.get(capability, ()) else ""


def launch(
    buffer: torch.Tensor,  # [B, C, T + 2, H, W], haloed
    history: torch.Tensor,  # [B, C, past, H, W], haloed, written
    weight: torch.Tensor,  # [O, C, 3, 3, 3], channels last
    bias: torch.Tensor | None,  # [O]
    noise: torch.Tensor | None,  # [B, H, W]
    noise_scale: torch.Tensor | None,  # [O]
    residual: torch.Tensor | None,  # [B, R, T, H, W], any strides
    scale: torch.Tensor | None,  # [O / cell], as shift
    shift: torch.Tensor | None,
    out: torch.Tensor | None,  # [B, O / cell, T p1 - drop, H p2, W p3], any strides, written
    normed: torch.Tensor | None,  # as out
    pictures: torch.Tensor | None,  # uint8 [B, T p1 - drop, H p2, W p3, 3], written
    *,
    factors: list[int],
    drop: int,
    keep: int,
    first: bool,
    reflect: bool,
    eps: float,
) -> None:
    chosen = planned(buffer, weight, factors)
    operands = {"bias": bias, "noise": noise, "noise_scale": noise_scale, "residual": residual}
    operands |= {"scale": scale, "shift": shift, "out": out, "normed": normed, "pictures": pictures}
    launch_plan(chosen, buffer, history, weight, operands, factors=factors, drop=drop, keep=keep, first=first, eps=eps)


def planned(buffer: torch.Tensor, weight: torch.Tensor, factors: list[int]) -> Plan:
    """The plan of a call."""
    (h, w), cell = buffer.shape[3:], prod(factors)
    sizes = {"channels": weight.shape[1], "outputs": weight.shape[0] // cell, "cell": cell, "area": h * (w + 2)}
    return plan(**sizes, dtype=buffer.dtype, gpu=gpu(buffer.device))


def launch_plan(
    chosen: Plan,
    buffer: torch.Tensor,
    history: torch.Tensor,
    weight: torch.Tensor,
    operands: dict[str, torch.Tensor | None],
    *,
    factors: list[int],
    drop: int,
    keep: int,
    first: bool,
    eps: float,
) -> None:
    """:func:`launch` under a plan of the caller's choice: for tests and measurements."""
    if buffer.numel() == 0:
        return
    for name in ("out", "normed", "pictures"):
        _apart(name, operands[name], buffer, history)
    calls, grids = arguments(chosen, buffer, history, weight, operands, factors, drop, first, eps)
    with on(buffer):
        for kernel, call, grid in zip(KERNELS, calls, grids, strict=False):
            kernel[(grid,)](**call)
        normed = operands["normed"]
        if normed is not None and not chosen.norm:
            raw = normed if operands["out"] is None else operands["out"]
            pixel_norm_silu.launch(raw, operands["scale"], operands["shift"], normed, eps=eps)
        if keep or first:
            call, grid = memory(buffer, history, keep, first)
            remember_kernel[(grid,)](**call)


KERNELS = (causal_conv3d_kernel, combine_kernel)


def arguments(
    chosen: Plan,
    buffer: torch.Tensor,
    history: torch.Tensor,
    weight: torch.Tensor,
    operands: dict[str, torch.Tensor | None],
    factors: list[int],
    drop: int,
    first: bool,
    eps: float,
) -> tuple[list[dict[str, Any]], list[int]]:
    """Keyword arguments and grids of the convolution and, if the taps are split, of the combining kernel."""
    (b, c, t, h, w), past, cell = buffer.shape, history.shape[2], prod(factors)
    t, outputs, area, tile = t - 2, weight.shape[0] // cell, h * (w + 2), chosen.tile
    results = dict(operands)
    if not chosen.norm and results["out"] is not None:
        results["normed"] = None  # the norm reads out
    residual = operands["residual"]
    sizes = {"lanes": b, "frames": t, "height": h, "width": w, "drop": drop, "eps": eps} | _strides(results)
    sizes |= {"OUT": outputs, "RESIDUAL": 1 if residual is None else residual.shape[1] // cell, "NORM": chosen.norm}
    sizes |= dict(zip(("P1", "P2", "P3"), factors, strict=True)) | {"SPLITS": chosen.splits}
    call = sources(chosen, buffer, history, weight, cell) | sizes | results | {"partial": None}
    call |= {"past": past, "remembered": 0 if first else past, "C": c, "BY_CELL": chosen.by_cell}
    call |= {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "PART": min(tile.part, tile.columns)}
    call |= {"PRECISION": "ieee" if buffer.dtype == torch.float32 else None}  # the default would be TF32
    call |= {"num_warps": tile.warps, "num_stages": tile.stages}
    grid = chosen.programs(b * t, area, outputs, cell)
    if chosen.splits == 1:
        return [call], [grid]
    partial = torch.empty(chosen.splits, b * t, area, outputs * cell, dtype=torch.float32, device=buffer.device)
    nothing = dict.fromkeys(results)
    call |= nothing | _strides(nothing) | {"RESIDUAL": 1, "partial": partial}  # one kernel, whatever is stored
    columns = triton.next_power_of_2(outputs)
    rows = max(COMBINED // columns, 1)
    second = sizes | results | {"partial": partial, "ROWS": rows, "COLUMNS": columns, "num_warps": 4}
    return [call, second], [grid, triton.cdiv(area, rows) * b * t * cell]


def _strides(tensors: dict[str, torch.Tensor | None]) -> dict[str, int]:
    """Strides of residual, out and normed as the kernels name them; 0 for those that are None."""
    steps = {}
    for name in ("residual", "out", "normed"):
        tensor = tensors[name]
        for letter, axis in zip("bcthw", range(5), strict=True):
            steps[f"{name}_{letter}"] = 0 if tensor is None else tensor.stride(axis)
    return steps


def sources(
    chosen: Plan, buffer: torch.Tensor, history: torch.Tensor, weight: torch.Tensor, cell: int
) -> dict[str, Any]:
    """Input, history and weight as matrices, and how many slots of the first two a lane has."""
    c, slot_size, groups = buffer.shape[1], buffer.stride(2), cell if chosen.by_cell else 1
    pitch, tile = groups * 27 * c, chosen.tile
    whole = {"buffer": _bordered("buffer", buffer), "history": _bordered("history", history)}
    lanes = {f"{n}_slots": x.stride(0) // x.stride(2) if x.shape[0] > 1 else x.shape[2] for n, x in whole.items()}
    matrices: dict[str, Any] = whole | {"weight": weight}
    descriptors = chosen.descriptors and all(x.data_ptr() % 16 == 0 for x in matrices.values())
    if descriptors:
        for name, x in whole.items():
            slots = (x.shape[0] - 1) * lanes[f"{name}_slots"] + x.shape[2]
            shape = [slots, x.shape[3] * x.shape[4], c]
            matrices[name] = TensorDescriptor(x, shape, [slot_size, c, 1], [1, tile.rows, tile.depth])
        shape = [weight.shape[0] // groups, pitch]
        matrices["weight"] = TensorDescriptor(weight, shape, [pitch, 1], [tile.columns, tile.depth])
    return matrices | lanes | {"slot_size": slot_size, "DESCRIPTORS": descriptors}


def _bordered(name: str, x: torch.Tensor) -> torch.Tensor:
    whole = halo(x)
    if whole is None:
        raise OpError(f"{NAME}: argument {name}: expected a tensor of memory_layouts.haloed, got strides {x.stride()}")
    return whole


def memory(buffer: torch.Tensor, history: torch.Tensor, keep: int, first: bool) -> tuple[dict[str, Any], int]:
    """Keyword arguments and grid of the kernel that moves the history."""
    (b, c, past, h, w), line = history.shape, buffer.stride(3)
    run = c * w
    call = {"buffer": buffer, "history": history, "height": h, "run": run, "remembered": 0 if first else past}
    call |= {"keep": keep, "buffer_b": buffer.stride(0), "history_b": history.stride(0)}
    call |= {"slot_size": buffer.stride(2), "line": line, "PAST": past, "BLOCK": MOVED, "num_warps": 4}
    return call, triton.cdiv(run, MOVED) * b * h


def _apart(name: str, result: torch.Tensor | None, buffer: torch.Tensor, history: torch.Tensor) -> None:
    """Raise :class:`OpError` for a result in memory that programs still read."""
    if result is None:
        return
    begin, end = _span(result)
    for source, tensor in (("buffer", buffer), ("history", history)):
        other = _span(tensor)
        if begin < other[1] and other[0] < end:
            raise OpError(f"{NAME}: argument {name}: expected memory apart from {source}, got a part of it")


def _span(x: torch.Tensor) -> tuple[int, int]:
    """The first address of a tensor, and the address after its last element."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()
