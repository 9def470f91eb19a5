#pragma once

#include "../core.h"

namespace rest_fast {

// Which triangle is seen in the middle of each picture element, and where in it.
struct HeadsRasterParams {
  const float*
      screen;  // [n, 3] x, y in picture elements (0, 0 is the upper left corner), distance > 0
  const int32_t* triangle;  // [triangles, 3], each seen from both sides
  int32_t* id;              // [height, width] the nearest triangle, or -1
  float* share;             // [height, width, 3] shares of its corners, right in perspective
  float* depth;             // [height, width] distance, 1e30 where there is none
  int64_t points;
  int64_t triangles;
  int64_t height;
  int64_t width;
};

inline auto arguments(const HeadsRasterParams*) {
  return std::make_tuple(REST_FAST_FIELD(screen), REST_FAST_FIELD(triangle), REST_FAST_FIELD(id),
                         REST_FAST_FIELD(share), REST_FAST_FIELD(depth), REST_FAST_FIELD(points),
                         REST_FAST_FIELD(triangles), REST_FAST_FIELD(height),
                         REST_FAST_FIELD(width));
}

int heads_raster(const HeadsRasterParams& p);

// Only heights, without a lens: how near to a light the first surface is.
struct HeadsShadowParams {
  const float* world;       // [points, 3]
  const int32_t* triangle;  // [triangles, 3]
  const float* light;       // [3] unit, towards the light
  const float* middle;      // [3] of what the map covers
  float* height;            // [size, size] as in light_map.h, 0 where there is none
  int64_t points;
  int64_t triangles;
  int64_t size;
  float radius;  // decimetres from the middle of the map to its edge
};

inline auto arguments(const HeadsShadowParams*) {
  return std::make_tuple(REST_FAST_FIELD(world), REST_FAST_FIELD(triangle), REST_FAST_FIELD(light),
                         REST_FAST_FIELD(middle), REST_FAST_FIELD(height), REST_FAST_FIELD(points),
                         REST_FAST_FIELD(triangles), REST_FAST_FIELD(size),
                         REST_FAST_FIELD(radius));
}

int heads_shadow(const HeadsShadowParams& p);

// How much of the sky each point sees: 1 all of it, 0 none.
struct HeadsOcclusionParams {
  const float* world;       // [points, 3]
  const float* normal;      // [points, 3]
  const int32_t* triangle;  // [triangles, 3]
  const float* directions;  // [count, 3] unit, all around
  const float* middle;      // [3]
  float* open;              // [points]
  int64_t points;
  int64_t triangles;
  int64_t count;
  int64_t size;
  float radius;
};

inline auto arguments(const HeadsOcclusionParams*) {
  return std::make_tuple(REST_FAST_FIELD(world), REST_FAST_FIELD(normal), REST_FAST_FIELD(triangle),
                         REST_FAST_FIELD(directions), REST_FAST_FIELD(middle),
                         REST_FAST_FIELD(open), REST_FAST_FIELD(points), REST_FAST_FIELD(triangles),
                         REST_FAST_FIELD(count), REST_FAST_FIELD(size), REST_FAST_FIELD(radius));
}

int heads_occlusion(const HeadsOcclusionParams& p);

}  // namespace rest_fast
