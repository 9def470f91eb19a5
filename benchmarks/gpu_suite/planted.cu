// One error on purpose, named by the argument: `write` goes past the end of an allocation, `race`
// reads shared memory that another warp writes, without a barrier. compute-sanitizer must report it
// here before its silence elsewhere means anything.
#include <cstdio>
#include <cstring>

__global__ void write_past_the_end(int* out) {
  out[blockDim.x + threadIdx.x] = 1;
}

__global__ void read_without_a_barrier(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

int main(int count, char** words) {
  const bool race = count > 1 && std::strcmp(words[1], "race") == 0;
  int* out = nullptr;
  cudaError_t error = cudaMalloc(&out, 64 * sizeof(int));
  if (error == cudaSuccess) {
    if (race) {
      read_without_a_barrier<<<1, 64>>>(out);
    } else {
      write_past_the_end<<<1, 64>>>(out);
    }
    error = cudaDeviceSynchronize();
  }
  std::printf("%s\n", cudaGetErrorString(error));
  return error == cudaSuccess ? 0 : 1;
}
