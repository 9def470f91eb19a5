// Runs a CUDA source file on the CPU: one fiber per CUDA thread, one block after the other.
//
// Compile the .cu as C++ with -DREST_FAST_CUDA_ON_CPU and this folder on the include path. It
// proves indices, masks and barriers of the very code that nvcc compiles; it cannot show races
// (fibers run in turn), alignment faults of the hardware, or anything asynchronous.
// A barrier that only some threads reach ends the program with a message.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time, so one copy is enough

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}

// Set by the scheduler before it resumes a fiber.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

enum class Wait { kNothing, kBlock, kWarp, kFinished };

struct Fiber {
  ucontext_t context;
  dim3 thread;
  Wait wait = Wait::kNothing;
  std::unique_ptr<char[]> stack;
};

// The block in flight.
struct Machine {
  std::vector<Fiber> fibers;
  std::vector<uint64_t> exchange;  // one word per thread, for shuffles
  ucontext_t scheduler;
  size_t current = 0;
  std::function<void()> body;
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

inline void pause(Wait wait) {
  Machine& m = machine();
  Fiber& self = m.fibers[m.current];
  self.wait = wait;
  swapcontext(&self.context, &m.scheduler);
}

inline void fiber_main() {
  machine().body();
  pause(Wait::kFinished);
}

// Lets threads [begin, end) go on when every one that still runs waits for `barrier`.
inline bool release(size_t begin, size_t end, Wait barrier) {
  Machine& m = machine();
  bool waiting = false;
  for (size_t i = begin; i < end; ++i) {
    if (m.fibers[i].wait == barrier) {
      waiting = true;
    } else if (m.fibers[i].wait != Wait::kFinished) {
      return false;
    }
  }
  for (size_t i = begin; waiting && i < end; ++i) {
    if (m.fibers[i].wait == barrier) m.fibers[i].wait = Wait::kNothing;
  }
  return waiting;
}

inline void run_block() {
  constexpr size_t kStack = 64 * 1024;
  Machine& m = machine();
  const size_t threads = size_t{blockDim.x} * blockDim.y * blockDim.z;
  m.fibers.resize(threads);
  m.exchange.assign(threads, 0);
  for (size_t i = 0; i < threads; ++i) {
    Fiber& fiber = m.fibers[i];
    const unsigned n = static_cast<unsigned>(i);
    fiber.thread = dim3(n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y);
    fiber.wait = Wait::kNothing;
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  while (true) {
    size_t finished = 0;
    bool progress = false;
    for (m.current = 0; m.current < threads; ++m.current) {
      Fiber& fiber = m.fibers[m.current];
      if (fiber.wait == Wait::kNothing) {
        threadIdx = fiber.thread;
        swapcontext(&m.scheduler, &fiber.context);
        progress = true;
      }
      finished += fiber.wait == Wait::kFinished;
    }
    if (finished == threads) return;
    for (size_t warp = 0; warp < threads; warp += 32) {
      progress |= release(warp, std::min(warp + 32, threads), Wait::kWarp);
    }
    progress |= release(0, threads, Wait::kBlock);
    if (!progress) {
      std::fprintf(stderr, "cuda_on_cpu: a barrier that some threads of the block never reach\n");
      std::abort();
    }
  }
}

// The value that thread `source` of the calling thread's warp holds.
template <class T>
T from_lane(T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "one word");
  Machine& m = machine();
  const size_t self = m.current, first = self / 32 * 32;
  std::memcpy(&m.exchange[self], &value, sizeof(T));
  pause(Wait::kWarp);
  T other;
  std::memcpy(&other, &m.exchange[first + source % 32], sizeof(T));
  pause(Wait::kWarp);
  return other;
}

inline unsigned lane() {
  return static_cast<unsigned>(machine().current % 32);
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
  cuda_on_cpu::pause(cuda_on_cpu::Wait::kBlock);
}
inline void __syncwarp(unsigned = ~0u) {
  cuda_on_cpu::pause(cuda_on_cpu::Wait::kWarp);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_cpu::from_lane(value, cuda_on_cpu::lane() ^ static_cast<unsigned>(mask));
}
template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return cuda_on_cpu::from_lane(value, static_cast<unsigned>(source));
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}

// 16-bit floats, rounded to nearest even.
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t u = uint32_t{x.bits} << 16;
  float f;
  std::memcpy(&f, &u, sizeof(f));
  return f;
}
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof(u));
  if (f != f) return {0x7fff};
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  const float magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(float(mantissa), -24)
                                          : std::ldexp(float(mantissa + 1024), exponent - 25);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}
inline __half __float2half_rn(float f) {
  const unsigned sign = std::signbit(f) ? 0x8000u : 0u;
  const float magnitude = std::fabs(f);
  if (f != f) return {0x7fff};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  int exponent = magnitude > 0 ? std::ilogb(magnitude) : -14;
  if (exponent < -14) exponent = -14;
  // In units of the last place; a carry into 2048 runs into the exponent field by itself.
  const unsigned units =
      static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return {static_cast<uint16_t>(sign + (static_cast<unsigned>(exponent + 14) << 10) + units)};
}

// The part of the runtime that launchers use.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101 };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid device ordinal";
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... args) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  cuda_on_cpu::machine().body = [&] { kernel(args...); };
  for (unsigned z = 0; z < gridDim.z; ++z) {
    for (unsigned y = 0; y < gridDim.y; ++y) {
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = dim3(x, y, z);
        cuda_on_cpu::run_block();
      }
    }
  }
  return cudaSuccess;
}
