// A picture of distances as a light sees them, without a lens.
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

  // x, y in elements of the map and the distance from a plane before everything.
  Vec place(const Vec& world) const {
    const Vec q = world - middle;
    const float scale = 0.5f * size / radius;
    return {0.5f * size + scale * dot(q, right), 0.5f * size - scale * dot(q, up),
            100.0f - dot(q, light)};
  }
};

}  // namespace rest_fast::heads
