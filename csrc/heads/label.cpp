// Flow, visibility and the picture itself; layout in label.h.
//
//   place in the photo = sum_k share_k d_k screen_k / sum_k share_k d_k,  d the distance from the
//   camera there
//
// which is the projection of the same point of the surface. A point is seen if the photo has a
// surface of the same kind at the same distance there, or one element beside it.
#include "label.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../cpu/exp.h"
#include "noise.h"
#include "shade.h"
#include "vec.h"

namespace rest_fast {
namespace {

using namespace heads;

// Kinds that may be taken for each other: skin and what is inside a mouth may not.
int family(uint8_t kind) {
  const HeadsKind k = static_cast<HeadsKind>(kind);
  return k == HeadsKind::kStrand || k == HeadsKind::kSolid ? static_cast<int>(HeadsKind::kSkin)
                                                           : kind;
}

bool seen(const HeadsFlowParams& p, const Vec& at, int32_t triangle) {
  const int64_t x = static_cast<int64_t>(std::floor(at.x)),
                y = static_cast<int64_t>(std::floor(at.y));
  const bool hair = p.kind[triangle] == static_cast<uint8_t>(HeadsKind::kStrand);
  const float near = hair ? p.near_hair : p.near;
  for (int64_t j = std::max<int64_t>(0, y - 1); j <= std::min(p.side - 1, y + 1); ++j) {
    for (int64_t i = std::max<int64_t>(0, x - 1); i <= std::min(p.side - 1, x + 1); ++i) {
      const int32_t other = p.photo_id[j * p.side + i];
      if (other < 0 || family(p.kind[other]) != family(p.kind[triangle])) continue;
      if (std::fabs(p.photo_depth[j * p.side + i] - at.z) < near) return true;
    }
  }
  return false;
}

Vec in_photo(const HeadsFlowParams& p, int64_t element, int32_t triangle) {
  const int32_t* corner = p.triangle + 3 * triangle;
  const float* share = p.share + 3 * element;
  Vec sum;
  float weight = 0;
  for (int k = 0; k < 3; ++k) {
    const Vec at = load(p.photo_screen + 3 * corner[k]);
    const float w = share[k] * at.z;
    sum = sum + Vec{at.x, at.y, 0} * w;
    weight += w;
  }
  return {sum.x / weight, sum.y / weight,
          weight};  // shares add up to one: the weight is the distance
}

// x^exponent for 0 <= x <= 1, to a few units of 1e-7. x = m 2^n with m close to 1, and ln m is
// 2 artanh t with |t| < 0.172, by its series up to t^7 / 7.
REST_FAST_INLINE float power(float x, float exponent) {
  constexpr int32_t kRootHalf = 0x3f3504f3;  // bits of sqrt(1 / 2)
  const int32_t bits = static_cast<int32_t>(as_bits(x)), n = (bits - kRootHalf) >> 23;
  const float m = as_float(static_cast<uint32_t>(bits - n * (1 << 23)));
  const float t = (m - 1.0f) / (m + 1.0f), t2 = t * t;
  const float series = 2.0f + t2 * (2.0f / 3 + t2 * (2.0f / 5 + t2 * (2.0f / 7)));
  return exp_nonpositive(std::min(0.0f, exponent * (n * 0.693147181f + t * series)));
}

REST_FAST_INLINE float srgb(float x) {
  return x <= 0.0031308f ? 12.92f * x : 1.055f * power(x, 1.0f / 2.4f) - 0.055f;
}

// Linear light through an exposure, a soft shoulder and sRGB.
REST_FAST_MULTI_ISA void tones(const float* __restrict light, int64_t count, float gain,
                               float shoulder, float* __restrict out) {
  const float bend = 0.35f * shoulder, whole = 1.0f + bend;
  for (int64_t i = 0; i < count; ++i) {
    const float x = std::max(0.0f, light[i] * gain);
    out[i] = srgb(std::min(1.0f, x * whole / (1.0f + bend * x)));
  }
}

// The mean of a pixel's four elements; where there is no head, of the background. out: [3, size].
void average(const int32_t* id, const float* elements, const float* wall, int64_t size,
             float* out) {
  for (int64_t x = 0; x < size; ++x) {
    Vec sum;
    for (const int64_t element : {2 * x, 2 * x + 1, 2 * (size + x), 2 * (size + x) + 1}) {
      sum = sum + load(id[element] < 0 ? wall + 3 * x : elements + 3 * element);
    }
    out[x] = sum.x * 0.25f;
    out[size + x] = sum.y * 0.25f;
    out[2 * size + x] = sum.z * 0.25f;
  }
}

// Nearly normal, standard deviation 1: the sum of the four bytes of a random number.
REST_FAST_INLINE float grain(uint32_t at, uint32_t seed) {
  const uint32_t h = scatter(at * 0x9e3779b9u ^ seed);
  const uint32_t pairs = (h & 0x00ff00ffu) + (h >> 8 & 0x00ff00ffu);
  const int32_t sum = static_cast<int32_t>((pairs & 0xffffu) + (pairs >> 16));
  return (sum - 510) * (1.0f / 147.8f);
}

// What a sensor makes of a row of colours [3, size].
REST_FAST_MULTI_ISA void sense(const HeadsDevelopParams& p, int64_t row,
                               const float* __restrict colours, uint8_t* __restrict out) {
  const int64_t size = p.size;
  const float saturation = p.saturation, gamma = p.gamma, noise = p.grain;
  const uint32_t seed = static_cast<uint32_t>(p.seed), first = static_cast<uint32_t>(row * size);
  for (uint32_t c = 0; c < 3; ++c) {
    for (int64_t x = 0; x < size; ++x) {
      const float grey =
          0.3f * colours[x] + 0.59f * colours[size + x] + 0.11f * colours[2 * size + x];
      const float full = clamp01(grey + (colours[c * size + x] - grey) * saturation);
      const uint32_t at = 3 * (first + static_cast<uint32_t>(x)) + c;
      const float noisy = clamp01(power(full, gamma) + noise * grain(at, seed));
      out[3 * x + c] = static_cast<uint8_t>(static_cast<int32_t>(noisy * 255.0f + 0.5f));
    }
  }
}

}  // namespace

int heads_flow(const HeadsFlowParams& p) {
  if (p.grid < 1 || p.side < p.grid || p.side % p.grid) return kBadShape;
  if (p.id == nullptr || p.photo_id == nullptr || p.flow == nullptr) return kNullAddress;
  bool good = true;
  for (int64_t i = 0; i < p.side * p.side; ++i)
    good &= p.id[i] >= -1 && p.id[i] < p.triangles && p.photo_id[i] < p.triangles;
  if (!good) return kBadShape;
  const int64_t cell = p.side / p.grid;
  for (int64_t y = 0; y < p.grid; ++y) {
    for (int64_t x = 0; x < p.grid; ++x) {
      const int64_t out = y * p.grid + x;
      const int64_t row = y * cell + cell / 2, column = x * cell + cell / 2,
                    element = row * p.side + column;
      int64_t covered = 0;
      for (int64_t j = y * cell; j < (y + 1) * cell; ++j) {
        for (int64_t i = x * cell; i < (x + 1) * cell; ++i) covered += p.id[j * p.side + i] >= 0;
      }
      p.matte[out] = static_cast<uint8_t>((255 * covered + cell * cell / 2) / (cell * cell));
      p.flow[2 * out] = p.flow[2 * out + 1] = 0;
      p.visible[out] = 0;
      const int32_t triangle = p.id[element];
      if (triangle < 0) continue;
      const Vec at = in_photo(p, element, triangle);
      p.flow[2 * out] = (at.x - (column + 0.5f)) * p.unit;
      p.flow[2 * out + 1] = (at.y - (row + 0.5f)) * p.unit;
      p.visible[out] = seen(p, at, triangle) ? 2 : 1;
    }
  }
  return kOk;
}

int heads_develop(const HeadsDevelopParams& p) {
  if (p.size < 1) return kBadShape;
  if (p.colour == nullptr || p.id == nullptr || p.background == nullptr || p.picture == nullptr)
    return kNullAddress;
  const int64_t row = 3 * p.size;
  std::vector<float> elements(4 * row), wall(row), pixels(row);
  for (int64_t y = 0; y < p.size; ++y) {
    tones(p.colour + 4 * row * y, 4 * row, p.gain, p.shoulder, elements.data());
    tones(p.background + row * y, row, 1.0f, p.shoulder, wall.data());
    average(p.id + 4 * p.size * y, elements.data(), wall.data(), p.size, pixels.data());
    sense(p, y, pixels.data(), p.picture + row * y);
  }
  return kOk;
}

}  // namespace rest_fast
