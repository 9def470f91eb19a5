// Noise of latent frames: Philox4x32-10 and Box-Muller in float64, rounded once to float32.
//
// Layout: ops/latent_noise.h. Why it exists: eager PyTorch runs a hundred small kernels for what
// are 120 instructions a number. The file is compiled without contraction of products and sums: the
// angle is to be rounded as the reference rounds it, and all instruction sets agree.
#include "../ops/latent_noise.h"

#include "../normal_pair.h"
#include "common.h"

namespace rest_fast {
namespace {

constexpr int kTile = 64;  // blocks of four numbers at a time

// Words of the blocks first .. first + kTile - 1 of a frame.
REST_FAST_INLINE void philox(const int32_t* words, int64_t first, uint32_t (&c)[4][kTile]) {
  for (int i = 0; i < kTile; ++i) {
    c[0][i] = static_cast<uint32_t>(first + i);
    for (int j = 1; j < 4; ++j) c[j][i] = static_cast<uint32_t>(words[j + 1]);
  }
  uint32_t k0 = static_cast<uint32_t>(words[0]);
  uint32_t k1 = static_cast<uint32_t>(words[1]);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kTile; ++i) {
      philox_round(c[0][i], c[1][i], c[2][i], c[3][i], k0, k1);
    }
    next_key(k0, k1);
  }
}

// Pairs of words to pairs of numbers.
REST_FAST_INLINE void box_muller(const uint32_t (&c)[4][kTile], float (&out)[4 * kTile]) {
  for (int pair = 0; pair < 4; pair += 2) {
    for (int i = 0; i < kTile; ++i) {
      normal_pair(c[pair][i], c[pair + 1][i], out[4 * i + pair], out[4 * i + pair + 1]);
    }
  }
}

// Tiles [begin, end) of all frames.
REST_FAST_MULTI_ISA void run_tiles(const LatentNoiseParams& p, int64_t begin, int64_t end) {
  const int64_t tiles = (p.count + 4 * kTile - 1) / (4 * kTile);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t frame = item / tiles;
    const int64_t first = item % tiles * kTile;
    uint32_t c[4][kTile];
    float made[4 * kTile];
    philox(p.words + kNoiseWords * frame, first, c);
    box_muller(c, made);
    const int64_t wanted = std::min<int64_t>(4 * kTile, p.count - 4 * first);
    std::memcpy(p.out + frame * p.count + 4 * first, made, wanted * sizeof(float));
  }
}

}  // namespace

int latent_noise_cpu(const LatentNoiseParams& p) {
  if (const int error = check_sizes(p)) return error;
  if (p.frames == 0 || p.count == 0) return kOk;
  const int64_t items = p.frames * ((p.count + 4 * kTile - 1) / (4 * kTile));
  in_parallel(items, p.frames * p.count,
              [&](int64_t begin, int64_t end) { run_tiles(p, begin, end); });
  return kOk;
}

}  // namespace rest_fast
