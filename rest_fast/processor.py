"""Choices that depend on the processor, by a table of its features; each entry names the measurement behind it.

Nothing is chosen by timing at load, since frames must not depend on chance.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch

from rest_fast.ops import library_convolution

CPUINFO = Path("/proc/cpuinfo")

# (features that the processor must have, dtype of the decoder's convolutions, where that was measured). The first entry
# that fits counts. Measured with the decoder of the preset drawn: bfloat16 is 1.5 times as fast as float32 with AMX,
# and 1.46 times on an AMD EPYC (the decode alone). It is 1.2 times slower on an Intel Xeon with AMX disabled, and 1.4
# times on one without AMX. Without instructions for it, it is emulated. The demo's decoder was measured with AMX alone:
# 1.34 times as fast (docs/motion_vae.md), before its float32 convolutions were our own (docs/kernels/conv3x3.md).
DECODER_DTYPES: tuple[tuple[frozenset[str], torch.dtype | None, str], ...] = (
    (frozenset({"amx_bf16"}), torch.bfloat16, "benchmarks/results/decoder_dtype_cpu.json"),
    (frozenset({"amd", "avx512_bf16"}), torch.bfloat16, "benchmarks/results/decoder_dtype_epyc.json"),
    (frozenset(), None, "benchmarks/results/decoder_dtype_cpu.json"),
)


def decoder_dtype() -> torch.dtype | None:
    """The dtype for the convolutions of the demo's decoder on this processor; None: that of the rest of the model."""
    here = features()
    found = next(dtype for needed, dtype, _ in DECODER_DTYPES if needed <= here)
    # ONEDNN_MAX_CPU_ISA may forbid the library these instructions; then it would run a plain loop.
    return found if found in library_convolution.DTYPES["cpu"] else None


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; without them float32 is several times faster."""
    return not features().isdisjoint({"avx512_bf16", "amx_bf16"})


@functools.cache
def features() -> frozenset[str]:
    """``intel`` or ``amd``, and ``avx512_bf16`` and ``amx_bf16`` where the processor has these instructions."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else [platform.processor()]
    words = " ".join(line for line in lines if line.startswith("vendor_id")) or lines[0]
    found = {name for name in ("intel", "amd") if name in words.lower()}
    if torch.cpu._is_avx512_bf16_supported():
        found.add("avx512_bf16")
    if torch.cpu._is_amx_tile_supported():
        found.add("amx_bf16")
    return frozenset(found)
