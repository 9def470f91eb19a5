"""Counter-based noise: Philox4x32-10 and Box-Muller, a function of (seed, latent index, element, purpose).

It has no state, and the order of drawing does not matter: the noise of a latent frame is the same on every device, in
every batch and however a stream was cut. Integers are exact everywhere; the transform runs in float64 and is rounded
once, so that differences in the last bits of logarithms do not show. (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011.)
"""

from __future__ import annotations

import math

import torch

from rest_fast.errors import ArgumentError

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# purposes: initial noise of a chunk; of a rebuilt context; in latents before decoding; images inside the decoder;
# fresh noise behind a sampling step; that with which frames shown, and a photo, are drawn from the VAE's posterior
LATENT, CONTEXT, DECODER, TEXTURE, RENOISE, POSTERIOR, PHOTO = range(7)


def _multiply(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(high, low) 32 bits of a 32 x 32 bit product, in int64 without overflow."""
    low = a * (b & 0xFFFF)  # under 2^48
    mid = a * (b >> 16) + (low >> 16)
    return mid >> 16, ((mid & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(
    counter: tuple[torch.Tensor, ...], key: tuple[int | torch.Tensor, int | torch.Tensor], rounds: int = 10
) -> tuple[torch.Tensor, ...]:
    """Four int64 tensors holding 32-bit words, from four counter words of one shape and a 64-bit key.

    The words of the key are integers, or int64 tensors that broadcast to the counter's shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _require(name: str, value: int, bits: int) -> None:
    """ArgumentError unless ``value`` fits: a larger one would make words of more than 32 bits, and then NaN."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise ArgumentError(f"{name}: expected an integer in 0..2^{bits} - 1, got {value!r}")


MOST = (1 << 32) - 1  # interrupts, and latents, of one stream


def in_epoch(epoch: int, latent: int) -> int:
    """The index of latent number ``latent`` of a stream after so many interrupts: unlike that of any other."""
    _require("epoch", epoch, 32)
    _require("latent", latent, 32)
    return epoch << 32 | latent


def at_step(purpose: int, step: int) -> int:
    """The purpose of noise that each sampling step draws anew."""
    _require("step", step, 16)
    return step << 8 | purpose


def words(seed: int, latent: int, purpose: int = LATENT) -> list[int]:
    """What a latent frame's noise is a function of, in five 32-bit words as int32 holds them.

    Seed low and high, latent index low and high, purpose: a row of the ``words`` of :func:`normals`.
    """
    _require("seed", seed, 64)
    _require("latent", latent, 64)
    _require("purpose", purpose, 32)
    unsigned = (seed & _MASK, seed >> 32, latent & _MASK, latent >> 32, purpose)
    return [w - (w >> 31 << 32) for w in unsigned]


def normals(words: torch.Tensor, count: int) -> torch.Tensor:
    """fp32 [F, count] standard normal numbers of F latent frames, whose :func:`words` are int32 [F, 5].

    Element i of a frame depends on neither ``count`` nor the other frames.
    """
    block = torch.arange((count + 3) // 4, dtype=torch.int64, device=words.device).expand(len(words), -1)
    seed_low, seed_high, *rest = (words.long() & _MASK)[:, :, None].unbind(1)  # [F, 1] each
    counter = (block, *(word.expand_as(block) for word in rest))
    bits = torch.stack(philox4x32(counter, (seed_low, seed_high)), 2).double()  # [F, blocks, 4]
    uniform = (bits + 0.5) / 2**32  # never 0 or 1
    radius = (-2 * uniform[..., 0::2].log()).sqrt()
    angle = 2 * math.pi * uniform[..., 1::2]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1)[:, :count].float()


def normal(
    seed: int, latent: int, count: int, purpose: int = LATENT, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """fp32 [count] standard normal numbers of one latent frame; element i does not depend on ``count``."""
    _require("count", count, 34)  # four numbers for each value of a counter word
    return normals(torch.tensor([words(seed, latent, purpose)], dtype=torch.int32, device=device), count)[0]
