// The part of the CUDA runtime that launchers use, with the limits that a GPU has.
#pragma once

#include <map>

#include "fibers.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
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
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "invalid device ordinal";
  }
}

namespace cuda_on_cpu {

// What a block may have, in bytes: 99 KiB on sm_86, 89 and 120, 163 on sm_80, 227 on sm_90 and 100.
inline size_t most_shared() {
  switch (cuda_on_cpu_capability) {
    case 80:
    case 87: return 163 * 1024;
    case 90:
    case 100:
    case 103: return 227 * 1024;
    default: return cuda_on_cpu_capability < 80 ? 64 * 1024 : 99 * 1024;
  }
}

inline std::map<const void*, size_t>& allowed_shared() {
  static std::map<const void*, size_t> bytes;
  return bytes;
}

inline bool within_limits(const cudaLaunchConfig_t& c, const void* kernel) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  const auto asked = allowed_shared().find(kernel);
  const size_t shared = asked == allowed_shared().end() ? kWithoutAsking : asked->second;
  const size_t threads = size_t{c.blockDim.x} * c.blockDim.y * c.blockDim.z;
  const bool empty = threads == 0 || c.gridDim.x == 0 || c.gridDim.y == 0 || c.gridDim.z == 0;
  return !empty && threads <= 1024 && c.gridDim.x <= INT32_MAX && c.gridDim.y <= 65535 &&
         c.gridDim.z <= 65535 && c.dynamicSmemBytes <= shared;
}

// Fresh for each block, of exactly this size, and full of NaN.
inline void allocate_shared(size_t bytes) {
  void* memory = nullptr;
  if (bytes > 0 && posix_memalign(&memory, 1024, bytes) == 0) std::memset(memory, 0xff, bytes);
  machine().shared.reset(static_cast<unsigned char*>(memory));
}

inline unsigned char* dynamic_shared() {
  return machine().shared.get();
}

}  // namespace cuda_on_cpu

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = cuda_on_cpu_capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = cuda_on_cpu_capability % 10; break;
    default: *value = static_cast<int>(cuda_on_cpu::most_shared());
  }
  return cudaSuccess;
}
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > cuda_on_cpu::most_shared())
    return cudaErrorInvalidValue;
  cuda_on_cpu::allowed_shared()[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... args) {
  if (!cuda_on_cpu::within_limits(*config, reinterpret_cast<const void*>(kernel))) {
    return cudaErrorInvalidConfiguration;
  }
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  cuda_on_cpu::machine().body = [&] { kernel(args...); };
  for (unsigned z = 0; z < gridDim.z; ++z) {
    for (unsigned y = 0; y < gridDim.y; ++y) {
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = dim3(x, y, z);
        cuda_on_cpu::allocate_shared(config->dynamicSmemBytes);
        cuda_on_cpu::run_block();
      }
    }
  }
  return cudaSuccess;
}
