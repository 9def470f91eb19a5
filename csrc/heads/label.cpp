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

// sRGB of linear light after a soft shoulder, from a table over the square root: dark tones need
// the finest steps.
class Tone {
 public:
  explicit Tone(float shoulder) : bend_(0.35f * shoulder) {
    for (int i = 0; i <= kSteps; ++i) {
      const float root = static_cast<float>(i) / kSteps, x = root * root;
      table_[i] = x <= 0.0031308f ? 12.92f * x : 1.055f * std::pow(x, 1.0f / 2.4f) - 0.055f;
    }
    table_[kSteps + 1] = table_[kSteps];
  }
  float operator()(float x) const {
    x = std::max(0.0f, x);
    x = std::min(1.0f, x * (1.0f + bend_) / (1.0f + bend_ * x));
    const float at = std::sqrt(x) * kSteps;
    const int i = static_cast<int>(at);
    return table_[i] + (at - i) * (table_[i + 1] - table_[i]);
  }
  Vec operator()(const Vec& c) const { return {(*this)(c.x), (*this)(c.y), (*this)(c.z)}; }

 private:
  static constexpr int kSteps = 512;
  float bend_;
  float table_[kSteps + 2];
};

}  // namespace

int heads_flow(const HeadsFlowParams& p) {
  if (p.grid < 1 || p.side < p.grid || p.side % p.grid) return kBadShape;
  if (p.id == nullptr || p.photo_id == nullptr || p.flow == nullptr) return kNullAddress;
  for (int64_t i = 0; i < p.side * p.side; ++i) {
    if (p.id[i] < -1 || p.id[i] >= p.triangles || p.photo_id[i] >= p.triangles) return kBadShape;
  }
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
  const Tone tone(p.shoulder);
  const int64_t side = 2 * p.size;
  for (int64_t y = 0; y < p.size; ++y) {
    for (int64_t x = 0; x < p.size; ++x) {
      const int64_t out = y * p.size + x;
      const Vec behind = load(p.background + 3 * out);
      const Vec wall = tone(behind);
      Vec sum;
      for (int64_t k = 0; k < 4; ++k) {
        const int64_t element = (2 * y + k / 2) * side + 2 * x + k % 2;
        if (p.id[element] < 0) {
          sum = sum + wall;
          continue;
        }
        sum = sum + tone(load(p.colour + 3 * element) * p.gain);
      }
      store(sum * 0.25f, p.picture + 3 * out);
    }
  }
  return kOk;
}

}  // namespace rest_fast
