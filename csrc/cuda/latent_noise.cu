// Noise of latent frames: Philox4x32-10 and Box-Muller in float64, rounded once to float32.
//
// Layout: ops/latent_noise.h; arithmetic: normal_pair.h. A thread makes the four numbers of one
// block of Philox, and writes them as 16 bytes where a frame is a whole number of these. Seed,
// index and purpose are read here, so that a captured launch draws other noise at each replay.
#include "../normal_pair.h"
#include "../ops/latent_noise.h"
#include "launch.h"

namespace rest_fast {
namespace {

constexpr int kThreads = 128;
constexpr int kNumbers = 4;  // of a block of Philox

template <int kVec>
__global__ void __launch_bounds__(kThreads) latent_noise_kernel(const LatentNoiseParams p) {
  const int64_t block = int64_t{blockIdx.x} * kThreads + threadIdx.x, first = block * kNumbers;
  if (first >= p.count) return;
  const int32_t* words = p.words + int64_t{blockIdx.y} * kNoiseWords;
  uint32_t key[2], c[4] = {static_cast<uint32_t>(block), 0, 0, 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) key[i] = static_cast<uint32_t>(words[i]);
#pragma unroll
  for (int i = 1; i < 4; ++i) c[i] = static_cast<uint32_t>(words[i + 1]);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    philox_round(c[0], c[1], c[2], c[3], key[0], key[1]);
    next_key(key[0], key[1]);
  }

  Vector<float, kNumbers> made;
#pragma unroll
  for (int i = 0; i < kNumbers; i += 2) normal_pair(c[i], c[i + 1], made.at[i], made.at[i + 1]);
  float* out = p.out + int64_t{blockIdx.y} * p.count + first;
  if constexpr (kVec == kNumbers) {
    store<float, kNumbers>(out, 0, made);
  } else {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      if (first + i < p.count) out[i] = made.at[i];
    }
  }
}

}  // namespace

int latent_noise_cuda(const LatentNoiseParams& p, void* stream, int device) {
  if (const int error = check_sizes(p)) return error;
  if (p.frames == 0 || p.count == 0) return kOk;
  const int64_t blocks = (p.count + kNumbers - 1) / kNumbers;  // of Philox
  const bool in_vectors = p.count % kNumbers == 0 && aligned({p.out}, kNumbers * sizeof(float));
  const auto kernel = in_vectors ? latent_noise_kernel<kNumbers> : latent_noise_kernel<1>;
  return on_device(device, DType::kFloat32, [&](auto) {
    return launch_each(kernel, p, blocks, p.frames, kThreads, stream);
  });
}

}  // namespace rest_fast
