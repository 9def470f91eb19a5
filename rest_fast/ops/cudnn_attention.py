"""Optional adapter: cuDNN's attention through PyTorch, on views of the slots; only by name.

Through PyTorch cuDNN takes one length for a batch, and lanes at even distances in the cache. PyTorch builds cuDNN's
graph of the operation at the first call of a shape and keeps it for the thread (``aten/src/ATen/native/cudnn/MHA.cpp``,
read at 02a4a0fe), so there is one for each length: two at ``rest-512``. cuDNN itself could read lengths and pages on
the device; PyTorch passes neither for tensors of one shape. So the host must know lengths and places
(``host_n_valid``, ``host_place``), they must be such that one view of the cache shows all lanes, and a CUDA graph of it
would hold the length and the rows of its capture. Everything else is refused with the reason. SDPA has no ``out=``: its
result is copied once, and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rest_fast.ops.dispatch import Backend, OpError, Spec
from rest_fast.ops.flash_attention import OP, copies

NAME = "cudnn"
OLDEST = (8, 0)  # compute capability
LARGEST_HEAD = 128


def view(places: Sequence[int], lengths: Sequence[int]) -> tuple[slice, int]:
    """(which places of a flat cache, how many slots of each) of lanes that one view shows.

    Raises: :class:`OpError` for lanes of different lengths, or whose places do not ascend by one distance.
    """
    step = places[1] - places[0] if len(places) > 1 else 1
    if len(set(lengths)) != 1:
        raise OpError(f"{OP}: backend {NAME}: host_n_valid: expected one length for all lanes, got {list(lengths)}")
    if step < 1 or any(b - a != step for a, b in pairwise(places)):
        raise OpError(
            f"{OP}: backend {NAME}: host_place: expected places that follow one another at one distance, got "
            f"{list(places)}"
        )
    return slice(places[0], places[-1] + 1, step), lengths[0]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale q k^T) v by cuDNN alone: q [B, H, N, D], k and v [B, H, n, D] of any strides but the last."""
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def run(
    q, k_cache, v_cache, out, *, row_index, bank_index, n_valid, host_n_valid, scale, lse=None, host_place=None
) -> None:
    where, n = view(host_place, host_n_valid)
    k, v = (c.flatten(0, 1)[where, :n].transpose(1, 2) for c in (k_cache, v_cache))
    queries = q.transpose(1, 2)
    try:
        result = attend(queries, k, v, scale)
    except RuntimeError as e:  # as PyTorch says that it has no kernel for this call
        raise OpError(f"{OP}: backend {NAME}: refuses this call: {e}") from e
    copies[NAME] += 1
    out.copy_(result.transpose(1, 2))
    if lse is not None:  # which SDPA does not return
        score = queries.float() @ k.float().transpose(2, 3)
        lse.copy_(score.mul_(scale).logsumexp(-1))


def supports(spec: Spec) -> tuple[bool, str]:
    if spec.device != "cuda":
        return False, f"CUDA tensors only, got {spec.device}"
    if spec.dtype not in (torch.bfloat16, torch.float16):
        return False, f"bfloat16 and float16 only, got {spec.dtype}"
    dim = spec.get("head_dim") or 8
    if dim % 8 or dim > LARGEST_HEAD:
        return False, f"head_dim: expected a multiple of 8 up to {LARGEST_HEAD}, got {dim}"
    for name, argument in (("lengths", "host_n_valid"), ("places", "host_place")):
        if spec.get(name) == "on the device":
            return False, f"reads {name} on the host, and {argument} is None"
    if torch.cuda.is_available() and (got := torch.cuda.get_device_capability(spec.device_index)) < OLDEST:
        return False, f"compute capability: expected {OLDEST[0]}.{OLDEST[1]} or newer, got {got}"
    return True, ""


BACKEND = Backend(
    NAME,
    supports,
    run,
    "its numbers were never compared on a GPU",
    "it reads host_n_valid and host_place, and a graph would hold those of its capture",
)
