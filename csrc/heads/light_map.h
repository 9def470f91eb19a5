// A picture of heights as a light sees them, without a lens.
#pragma once

#include <cstdint>

#include "vec.h"

namespace rest_fast::heads {

struct LightMap {
  Vec right, up, light, middle;
  float radius;
  int64_t size;

  LightMap(const Vec& towards, const Vec& centre, float reach, int64_t side)
      : light(towards), middle(centre), radius(reach), size(side) {
    const bool steep = std::fabs(towards.y) > 0.9f;
    right = unit(cross(steep ? Vec{0, 0, 1} : Vec{0, 1, 0}, towards));
    up = cross(towards, right);
  }

  // x, y in elements of the map and the height above a plane behind everything.
  Vec place(const Vec& world) const {
    const Vec q = world - middle;
    const float scale = 0.5f * size / radius;
    return {0.5f * size + scale * dot(q, right), 0.5f * size - scale * dot(q, up),
            100.0f + dot(q, light)};
  }

  // Whether something lies more than `bias` above a place. height: [size, size], 0 for nothing.
  bool covered(const float* height, const Vec& place, float bias) const {
    const int64_t x = static_cast<int64_t>(place.x), y = static_cast<int64_t>(place.y);
    const bool within = place.x >= 0 && place.y >= 0 && x < size && y < size;
    return within && place.z + bias <= height[y * size + x];
  }
};

}  // namespace rest_fast::heads
