// What the host does around a launch: the device, the dtype, addresses, and errors as codes.
#pragma once

#include <initializer_list>

#include "../core.h"
#include "device.h"

namespace rest_fast {

inline int error_code(cudaError_t error) {
  return error == cudaSuccess ? int{kOk} : kCudaErrorBase + static_cast<int>(error);
}

// Raw pointers carry no device: make theirs current for the launch, and put the old one back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ == cudaSuccess && previous_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

// run(T{}) with the type of the dtype. Returns the error code of `run`.
template <class Run>
int by_dtype(DType dtype, Run run) {
  switch (dtype) {
    case DType::kFloat32: return run(float{});
    case DType::kBFloat16: return run(__nv_bfloat16{});
    case DType::kFloat16: return run(__half{});
  }
  return kBadDType;
}

// The same, on the device.
template <class Run>
int on_device(int device, DType dtype, Run run) {
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return error_code(guard.error());
  return by_dtype(dtype, run);
}

// Kernels with instructions of a later architecture ask before a launch that would find no code.
inline int expect_capability(int major, int device) {
  int found = 0;
  const cudaError_t error =
      cudaDeviceGetAttribute(&found, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error_code(error);
  return found < major ? int{kOldGpu} : int{kOk};
}

inline bool aligned(std::initializer_list<const void*> pointers, uintptr_t bytes) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) return false;
  }
  return true;
}

constexpr int64_t kMaxGridY = 65535;  // and z

// Queues kernel<<<grid, threads, shared, stream>>>(p); neither waits nor allocates.
template <class Params>
int launch(void (*kernel)(Params), const Params& p, dim3 grid, int threads, void* stream,
           size_t shared = 0) {
  constexpr size_t kWithoutAsking = 48 * 1024;  // bytes of shared memory
  if (shared > kWithoutAsking) {
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    const cudaError_t error = cudaFuncSetAttribute(kernel, attribute, static_cast<int>(shared));
    if (error != cudaSuccess) return error_code(error);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads), 1, 1);
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  return error_code(cudaLaunchKernelEx(&config, kernel, p));
}

// Queues a thread for each of `count` pieces of work (blockIdx.x and threadIdx.x), in blocks of
// `threads`, and as many for each of the `lanes` (blockIdx.y).
template <class Params>
int launch_each(void (*kernel)(Params), const Params& p, int64_t count, int64_t lanes, int threads,
                void* stream) {
  const int64_t blocks = (count + threads - 1) / threads;
  if (blocks > INT32_MAX || lanes > kMaxGridY) return kBadShape;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(lanes), 1);
  return launch(kernel, p, grid, threads, stream);
}

// Threads of a block that is to do `work` pieces, `most` at a time: whole warps.
inline int whole_warps(int64_t work, int64_t most) {
  const int64_t threads = work < most ? work : most;
  return static_cast<int>((threads + kWarp - 1) / kWarp * kWarp);
}

}  // namespace rest_fast
