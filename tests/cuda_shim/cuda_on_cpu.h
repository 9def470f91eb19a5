// Runs a CUDA source file on the CPU: a fiber for each CUDA thread, one block after the other.
//
// Compile the .cu as C++ with -DREST_FAST_CUDA_ON_CPU and this folder on the include path
// (built.py does it). What it has:
//
//   fibers.h        threads and blocks, __syncthreads, and work that a warp does together
//   warp.h          shuffles and votes; mma.sync and ldmatrix, by the layouts of the PTX manual
//   async_copy.h    cp.async: poison in the target at once, the data at the wait that covers it
//   numbers.h       bfloat16 and half, rounded to nearest even, and the math that kernels use
//   runtime.h       the part of the CUDA runtime that launchers use, with its limits
//
// It proves indices, masks, barriers and waits of the very code that nvcc compiles. These end the
// program with a message: a barrier that only some threads reach, lanes of a warp in different
// collectives, a lane that takes part without being named, a vector's address that is no multiple
// of its size, one of 16-byte copies or of ldmatrix that is none of 16, and a copy that nobody
// waited for. What is read before the
// wait or the barrier behind a cp.async is NaN; so is dynamic shared memory that nobody has
// written. Static shared memory keeps what the block before left there.
//
// It cannot show races between writes (fibers run in turn, forwards or backwards), anything of the
// memory model, or time. Sums of mma.sync are exact and rounded once, where tensor cores cut off.
//
// Python reads and sets these by ctypes:
//   cuda_on_cpu_backwards        1: threads of a block run from the last to the first
//   cuda_on_cpu_capability       compute capability that the runtime reports, 80 for 8.0
//   cuda_on_cpu_bank_conflicts   how often ldmatrix read a bank of shared memory once more
#pragma once

#include <cstdint>

#define CUDA_ON_CPU_KNOB extern "C" inline __attribute__((visibility("default"), used))
CUDA_ON_CPU_KNOB int cuda_on_cpu_backwards = 0;
CUDA_ON_CPU_KNOB int cuda_on_cpu_capability = 80;
CUDA_ON_CPU_KNOB int64_t cuda_on_cpu_bank_conflicts = 0;

#include "async_copy.h"
#include "fibers.h"
#include "numbers.h"
#include "runtime.h"
#include "warp.h"
