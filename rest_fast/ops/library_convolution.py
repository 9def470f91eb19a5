"""Backend ``library`` of ``causal_conv3d``: oneDNN on the CPU, cuDNN on a GPU; only the history is copied.

The history goes to the front of the buffer, and one convolution reads the whole buffer. What follows is one pass in C++
on the CPU, and a sequence of ops on a GPU. Buffers with channels innermost (``channels_last`` or ``haloed``) are fast;
the library reorders others at every call. A ``haloed`` buffer is read with its halo, which has to be zero.

oneDNN is called directly, because ``F.conv3d`` takes a loop that is four times slower for a single small piece
(64 channels, 6 frames of 32 x 32). A frozen weight is kept a second time in the order that oneDNN wants for this size
if reordering it would cost a tenth of the convolution, that is, if the weight is small or there are few pixels
(:func:`packed`).
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F

from rest_fast.ops import native
from rest_fast.ops.depth_to_space import depth_to_space
from rest_fast.ops.derived import derived
from rest_fast.ops.dispatch import Backend, Spec, forced_backend, use_backend
from rest_fast.ops.frames_to_uint8 import frames_to_uint8
from rest_fast.ops.memory_layouts import halo
from rest_fast.ops.pixel_norm_silu import pixel_norm_silu

EPILOGUE = "conv_epilogue"  # of rest_fast._cpu
MOST_CHANNELS = 8192  # that the epilogue takes: kMaxConvChannels in csrc/ops/conv_epilogue.h
SMALL = 1 << 20  # numbers of a weight: a second copy of all of a small decoder costs a few megabytes
FEW = 1024  # pixels of a call; with more, the convolution takes much longer than reordering even the widest weight
KEPT = 4 * SMALL  # numbers of all orders of one weight together, unless it is the first one


def _cpu_dtypes() -> tuple[torch.dtype, ...]:
    """Dtypes that oneDNN convolves on this processor; bfloat16 needs AVX-512. Measured and tested on x86-64 only."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if not x86 or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


DTYPES = {"cpu": _cpu_dtypes(), "cuda": (torch.float32, torch.bfloat16, torch.float16)}


def supports(spec: Spec) -> tuple[bool, str]:
    if spec.device not in DTYPES:
        return False, f"CPU and CUDA tensors only, got {spec.device}"
    if spec.dtype not in DTYPES[spec.device]:
        return False, f"dtype {spec.dtype} is not convolved by the library here"
    if spec.get("batch") == 0 or 0 in (spec.get("height"), spec.get("width"), spec.get("channels"), spec.get("in")):
        return False, "an empty tensor"
    return True, ""


def run(
    buffer, history, weight, bias, noise, noise_scale, residual, scale, shift, out, normed, pictures,
    *, factors, drop, keep, first, reflect, eps,
) -> None:  # fmt: skip
    past = history.shape[2]
    buffer[:, :, :past] = buffer[:, :, past : past + 1] if first else history
    if past == 1:
        buffer[:, :, -1:] = buffer[:, :, -2:-1]
    y = convolved(buffer, weight, bias, reflect=reflect)
    history.copy_(buffer[:, :, keep : keep + past])
    if _one_pass(y, residual, out, normed):
        finish = follow_in_cpp
    else:
        finish = follow
    finish(y, noise, noise_scale, residual, scale, shift, out, normed, pictures, factors=factors, drop=drop, eps=eps)


def convolved(buffer: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, reflect: bool) -> torch.Tensor:
    """Buffer [B, C, T + 2, H, W] -> a new [B, O, T, H, W], channels innermost where the buffer's are.

    Rows and columns outside are zeros, or (``reflect``) mirrored; a ``haloed`` buffer brings its own zeros.
    """
    x, side = buffer, 1
    if reflect:
        x, side = _mirrored(buffer), 0
    elif not buffer.is_contiguous(memory_format=torch.channels_last_3d):
        surrounded = halo(buffer)
        if surrounded is not None:
            x, side = surrounded, 0
    return conv3d(x, weight, bias, padding=(0, side, side))


def conv3d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
) -> torch.Tensor:
    """``F.conv3d`` of a kernel of three frames, by oneDNN where nothing learns and this CPU can."""
    learns = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (x, weight, bias))
    if learns or not x.is_cpu or x.dtype not in DTYPES["cpu"]:
        return F.conv3d(x, weight, bias, stride, padding)
    b, _, t, h, w = x.shape
    if weight.shape[-1] == 3 and stride == (1, 1, 1) and (weight.numel() <= SMALL or b * (t - 2) * h * w <= FEW):
        weight = packed(weight, (t, h, w, padding[1]))
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, list(padding), list(stride), [1, 1, 1], 1, "none", [], ""
    )


def _mirrored(x: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] -> [B, C, T, H + 2, W + 2], rows and columns mirrored at the border, channels innermost."""
    b, c, t, h, w = x.shape
    y = x.new_empty(b, t, h + 2, w + 2, c).permute(0, 4, 1, 2, 3)
    y[..., 1:-1, 1:-1] = x
    y[..., 0, 1:-1], y[..., -1, 1:-1] = x[..., 1, :], x[..., -2, :]
    y[..., 0], y[..., -1] = y[..., 2], y[..., -3]
    return y


def _one_pass(y: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether the compiled pass takes these tensors: on the CPU, channels innermost."""
    fits = y.is_cpu and y.shape[1] <= MOST_CHANNELS and hasattr(native.module()[0], EPILOGUE)
    return fits and all(x is None or x.stride(1) == 1 for x in (y, *others))


def follow_in_cpp(
    y, noise, noise_scale, residual, scale, shift, out, normed, pictures, *, factors, drop, eps
) -> None:  # fmt: skip
    b, channels, t, h, w = y.shape
    cell = factors[0] * factors[1] * factors[2]
    none = (0, 1, 0, 0, 0)
    tensors = (y, noise, noise_scale, residual, scale, shift, out, normed, pictures)
    native.call(
        EPILOGUE,
        *(0 if x is None else x.data_ptr() for x in tensors),
        (b, channels // cell, t, h, w),
        0 if residual is None else residual.shape[1],
        factors,
        drop,
        *(none if x is None else x.stride() for x in (y, residual, out, normed)),
        eps,
        native.DTYPES[y.dtype],
    )


def follow(y, noise, noise_scale, residual, scale, shift, out, normed, pictures, *, factors, drop, eps) -> None:
    """The same, composed of ops: for a GPU, and for layouts that the compiled pass does not take."""
    names = "triton,cpp,reference"  # of these ops: a caller who asked for "library" meant the convolution
    asked = (forced_backend() or "").split(",")
    with use_backend(f"cuda,{names}" if "cuda" in asked else names):
        _compose(y, noise, noise_scale, residual, scale, shift, out, normed, pictures, factors, drop, eps)


def _compose(y, noise, noise_scale, residual, scale, shift, out, normed, pictures, factors, drop, eps) -> None:
    if noise is not None:
        y.addcmul_(noise_scale.view(-1, 1, 1, 1), noise[:, None, None])
    y, added = (None if x is None else _rearranged(x, factors, drop) for x in (y, residual))
    if added is not None:
        y.unflatten(1, (-1, added.shape[1])).add_(added[:, None])
    if out is not None:
        out.copy_(y)
    if normed is not None:
        pixel_norm_silu(y, scale, shift, normed, eps=eps)
    if pictures is not None:
        frames_to_uint8(y, pictures)


def _rearranged(x: torch.Tensor, factors: list[int], drop: int) -> torch.Tensor:
    """``depth_to_space`` into a new tensor with channels innermost; with factors of 1 some frames of x itself."""
    if list(factors) == [1, 1, 1]:
        return x[:, :, drop:]
    (b, c, t, h, w), (p1, p2, p3) = x.shape, factors
    shape = (b, t * p1 - drop, h * p2, w * p3, c // (p1 * p2 * p3))
    y = x.new_empty(shape).permute(0, 4, 1, 2, 3)
    depth_to_space(x, y, factors=list(factors), drop=drop)
    return y


def packed(weight: torch.Tensor, size: tuple[int, int, int, int]) -> torch.Tensor:
    """A frozen weight [O, C, 3, 3, 3] in the order that oneDNN wants for a size: frames, rows, columns and border of
    what is convolved. It is kept with the weight until that changes; other weights come back unchanged.

    The numbers are the same, and so are the results. The order depends on the size and the number of threads, and one
    for another size is worse than none: turning a weight of 128 channels from order to order takes 30 ms at every call.
    """
    none: dict[tuple[int, ...], torch.Tensor] = {}
    orders = derived(weight, "packed", (weight,), dict, learning=none)
    if orders is none:
        return weight
    key = (torch.get_num_threads(), *size)
    if key not in orders:
        if orders and (len(orders) + 1) * weight.numel() > KEPT:
            return weight
        orders[key] = _reordered(weight.detach(), size)
    return orders[key]


def _reordered(weight: torch.Tensor, size: tuple[int, int, int, int]) -> torch.Tensor:
    *frames_rows_columns, side = size
    with torch.inference_mode(False), torch.no_grad():
        reordered: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            weight, [0, side, side], [1, 1, 1], [1, 1, 1], 1, [1, weight.shape[1], *frames_rows_columns]
        )
    return reordered


BACKEND = Backend("library", supports, run, measured="ops_cpu.json")
