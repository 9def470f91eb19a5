"""``latent_noise``: standard normal numbers of latent frames, each a function of seed, latent index and purpose alone.

    out[f, i] = Box-Muller of Philox4x32-10 (counter: i // 4, latent index, purpose; key: seed)

:func:`rest_fast.noise.normals` is the functional reference. Integers are exact in every backend. The transform runs in
float64 and is rounded once. Other backends have logarithms, sines and cosines of their own, whose last bits differ from
the reference's: a number is the same float32 unless it lies within some units of 2^-52 of a border between two, which
happens a few times in 10^9 numbers (measured: 2 of 5 x 10^8), and then it is the neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rest_fast import noise
from rest_fast.ops import native, triton_kernels
from rest_fast.ops.dispatch import Op, OpError, Spec, expect
from rest_fast.ops.transfer import sent

NAME = "latent_noise"
WORDS = 5  # of a frame, see rest_fast.noise.words
LIMIT = 1 << 31  # numbers of a frame: 32 bits count them


def check(out, words) -> Spec:
    expect(NAME, "out", out, (-1, -1), dtype=torch.float32)
    frames, count = out.shape
    if count >= LIMIT:
        raise OpError(f"{NAME}: argument out: expected fewer than {LIMIT} numbers a frame, got {count}")
    expect(NAME, "words", words, (frames, WORDS), dtype=torch.int32, device=out.device)
    return Spec(out.device.type, out.dtype, (("frames", frames), ("count", count)))


def reference(out: torch.Tensor, words: torch.Tensor) -> None:
    """Standard normal numbers of F latent frames.

    Args:
        out: float32 [F, n], contiguous. Written.
        words: int32 [F, 5], on the same device: seed low and high, latent index low and high, purpose, as bits.
    """
    out.copy_(noise.normals(words, out.shape[1]))


def _arguments(out, words) -> tuple[int, ...]:
    """Those that csrc/ops/latent_noise.h lists."""
    return out.data_ptr(), words.data_ptr(), *out.shape


latent_noise = Op(
    f"{NAME}(Tensor(a!) out, Tensor words)",
    check=check,
    reference=reference,
    backends=(
        triton_kernels.backend(NAME),
        native.cpp_backend(NAME, _arguments, dtypes=(torch.float32,)),
        native.cuda_backend(NAME, _arguments, dtypes=(torch.float32,)),
    ),
)


def drawn(
    seed: int, latents: Iterable[int], count: int, purpose: int = noise.LATENT, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """fp32 [F, count], the noise of these latent frames, made on the device; nothing waits for it."""
    words = torch.tensor([noise.words(seed, latent, purpose) for latent in latents], dtype=torch.int32)
    words = sent(words.view(-1, WORDS), device)  # of no frames, too
    out = torch.empty(len(words), count, dtype=torch.float32, device=device)
    latent_noise(out, words)
    return out
