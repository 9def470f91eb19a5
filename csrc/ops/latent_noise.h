#pragma once

#include "../core.h"

namespace rest_fast {

// Standard normal numbers of latent frames: Philox4x32-10 and Box-Muller.
struct LatentNoiseParams {
  float* out;            // [frames, count]
  const int32_t* words;  // [frames, 5]: seed low and high, latent index low and high, purpose
  int64_t frames;
  int64_t count;
};

inline int check_sizes(const LatentNoiseParams& p) {
  // Four numbers for each value of a word of the counter.
  if (p.frames < 0 || p.count < 0 || p.count > int64_t{1} << 34) return kBadShape;
  if (p.frames == 0 || p.count == 0) return kOk;
  return p.out == nullptr || p.words == nullptr ? kNullAddress : kOk;
}

// In the order of the call.
inline auto arguments(const LatentNoiseParams*) {
  return std::make_tuple(REST_FAST_FIELD(out), REST_FAST_FIELD(words), REST_FAST_FIELD(frames),
                         REST_FAST_FIELD(count));
}

// csrc/cpu: every pointer in host memory. Nothing is written when an error comes back.
int latent_noise_cpu(const LatentNoiseParams& p);

// csrc/cuda: every pointer in the memory of `device`. `stream` is a cudaStream_t.
int latent_noise_cuda(const LatentNoiseParams& p, void* stream, int device);

}  // namespace rest_fast
